"""Win rates, judge accuracy, promotion, statistics."""
