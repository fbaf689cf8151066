"""Which engine writes and judges: what the settings name, or what suits the machine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Literal

from srlm_pipeline.config import Settings
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.integrity import verify

EngineKind = Literal["transformers", "vllm", "openai"]
# Loads a checkpoint with a batch size.
OpenEngine = Callable[[Checkpoint, int], TextEngine]


def choose_engine(settings: Settings) -> tuple[EngineKind, str]:
    """Return the engine that the settings lead to, and why.

    Args:
        settings: `engine` and `model.device` are read.
    """
    from srlm_pipeline.models.loading import choose_device

    if settings.engine.kind != "auto":
        return settings.engine.kind, f"engine.kind is {settings.engine.kind}"
    device = choose_device(settings.model.device)
    if not device.startswith("cuda"):
        return "transformers", f"the device is {device}; vLLM is chosen on CUDA devices"
    if settings.engine.vllm_python:
        return "vllm", f"the device is {device}, and engine.vllm_python is set"
    if importlib.util.find_spec("vllm"):
        return "vllm", f"the device is {device}, and vLLM is installed"
    return "transformers", "vLLM is not installed here, and engine.vllm_python is not set"


def open_engine(checkpoint: Checkpoint, settings: Settings, batch_size: int) -> TextEngine:
    """Open a checkpoint for inference.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.
        batch_size: Rows that are generated together, where the engine does not schedule by itself.

    Raises:
        ModelError: If the model's files are not those that its digest stands for.
    """
    verify(checkpoint.path)
    kind, _ = choose_engine(settings)
    if kind == "vllm":
        from srlm_pipeline.generation.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, settings)
    if kind == "openai":
        from srlm_pipeline.generation.openai_engine import open_openai_engine

        return open_openai_engine(checkpoint, settings)
    from srlm_pipeline.generation.transformers_engine import TransformersEngine
    from srlm_pipeline.models.loading import load_model

    loaded = load_model(checkpoint.path, settings.model)
    return TransformersEngine(loaded.model, loaded.tokenizer, checkpoint.digest, batch_size)


def release_engines() -> None:
    """Give back the memory of engines that outlive their use, before something else needs the device."""
    if "srlm_pipeline.generation.vllm_engine" in sys.modules:
        from srlm_pipeline.generation.vllm_engine import stop_servers

        stop_servers()
