"""Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020) as a Dagster asset pipeline."""

from srlm_pipeline.acceleration.allocation import ask_for_huge_pages

__version__ = "0.2.0"

ask_for_huge_pages()
