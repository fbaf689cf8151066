"""Presets, as YAML files."""
