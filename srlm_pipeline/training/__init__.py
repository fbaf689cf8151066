"""SFT, ranking and DPO."""
