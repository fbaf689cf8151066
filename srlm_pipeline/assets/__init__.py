"""Dagster assets: thin wiring of the core; each module reads like a step of the paper's figure 1."""
