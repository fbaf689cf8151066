"""Weights in 4 bits, where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig


def bitsandbytes_obstacle(device: str, on_gpu_alone: bool) -> str | None:
    """Return why bitsandbytes cannot be used, with what to do; None if it can.

    Args:
        device: As torch names it.
        on_gpu_alone: Whether what is wanted of it exists on GPUs alone, as its optimisers do.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return "needs the package bitsandbytes: run `pip install bitsandbytes`"
    if on_gpu_alone and not device.startswith("cuda"):
        return f"needs a CUDA device, and the device is {device}"
    return None


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how weights are quantised: as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3.

    Normal floats of 4 bits, whose scales are quantised in turn; products are computed in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
