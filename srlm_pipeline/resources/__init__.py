"""Dagster resources: the project and its tables."""
