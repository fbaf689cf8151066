"""The embedded seed set, as data files."""
