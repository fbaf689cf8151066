"""Measurements of the pipeline against plain implementations; each module is one command, all together `make bench`."""
