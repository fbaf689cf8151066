"""Which engine writes and judges: what the settings name, or what suits the machine."""

from __future__ import annotations

from srlm_pipeline.config import Settings
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.models.checkpoint import Checkpoint


def open_engine(checkpoint: Checkpoint, settings: Settings, batch_size: int) -> TextEngine:
    """Load a checkpoint for inference.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.
        batch_size: Rows that are generated together.
    """
    from srlm_pipeline.generation.transformers_engine import TransformersEngine
    from srlm_pipeline.models.loading import load_model

    loaded = load_model(checkpoint.path, settings.model)
    return TransformersEngine(loaded.model, loaded.tokenizer, checkpoint.digest, batch_size)
