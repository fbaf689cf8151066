"""Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020) as a Dagster asset pipeline."""

import os

__version__ = "0.1.0"

# Huge pages for large tensors on a CPU; torch reads this at its first allocation. Touching fresh pages one by one took
# a good part of a training step.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
