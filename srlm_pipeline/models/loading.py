"""Loading a model and its tokenizer from a folder or hub name, with everything that later stages rely on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srlm_pipeline.config import ModelSettings
from srlm_pipeline.errors import ModelError, SrlmError
from srlm_pipeline.models.chat_format import chat_format
from srlm_pipeline.models.integrity import verify
from srlm_pipeline.models.memory import is_out_of_memory, sufficient_memory
from srlm_pipeline.models.quantization import four_bits
from srlm_pipeline.models.saving import declare_ends, end_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SMALLER = (
    "Its weights alone are too large for it: set model.dtype to bfloat16, in training method to lora or qlora, choose "
    "another model.device, or take a smaller base_model; `srlm plan` says what fits"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def choose_device(wish: str) -> str:
    """Resolve ``auto`` to the best device there is.

    Raises:
        ModelError: If a named device is not available.
    """
    import torch

    if wish == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if wish.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(wish, "no CUDA device is visible to torch; set model.device to auto or cpu")
    return wish


def cuda_device_name(number: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES, for processes that are to see it alone, calls a CUDA device that we see.

    Args:
        number: torch's, from 0.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",")[number] if shown else str(number)


def choose_dtype(wish: str, device: str) -> torch.dtype:
    """Resolve ``auto`` to bfloat16 where the device computes it natively, else float32."""
    import torch

    if wish != "auto":
        return getattr(torch, wish)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without hardware support bfloat16 on a CPU is emulated and slower than float32.
    can = torch.cpu.get_capabilities() if device == "cpu" else {}
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32


def load_tokenizer(source: str | Path, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it can format chats and pad.

    Raises:
        ModelError: If there is no tokenizer, chat template or end token, or the template is none to work with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            source,
            f"no tokenizer could be loaded ({_first_line(error)}); the folder needs tokenizer.json (or the model's own "
            "tokenizer files) and tokenizer_config.json beside the weights",
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            source,
            "its tokenizer has no chat template; use an instruction-tuned model, or put a chat_template.jinja "
            "into the model's folder",
        )
    known = chat_format(tokenizer, settings.thinking)
    if known.obstacle is not None:
        raise ModelError(source, known.obstacle)
    if not known.turn_end:
        raise ModelError(source, "its tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = known.turn_end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def readable(source: str | Path) -> Iterator[None]:
    """Say in one sentence what is wrong with weights that cannot be loaded.

    Raises:
        ModelError: Naming the model.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(source, f"its weights could not be loaded ({_first_line(error)})") from error


def choose_attention(settings: ModelSettings, device: str) -> str | None:
    """Return the implementation of attention, None being transformers' choice.

    Raises:
        SrlmError: If it is one that does not work here.
    """
    if settings.attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if not device.startswith("cuda") or not is_flash_attn_2_available():
            raise SrlmError(
                f"model.attention: flash_attention_2 needs a CUDA device and the package flash-attn, and the device "
                f"is {device}{'' if is_flash_attn_2_available() else ', the package missing'}; set it to sdpa or auto"
            )
    return None if settings.attention == "auto" else settings.attention


def load_model(
    source: str | Path,
    settings: ModelSettings,
    dtype: str | None = None,
    attention: str | None = None,
    quantized: bool = False,
) -> LoadedModel:
    """Load a causal LM for inference or training.

    Args:
        source: Folder or hub name.
        settings: Device, type and whether remote code may run.
        dtype: Overrides the settings' type, e.g. ``"float32"`` for full fine-tuning.
        attention: Overrides the settings' implementation.
        quantized: Whether the weights are put into 4 bits, to be trained by adapters alone.

    Raises:
        ModelError: If weights, tokenizer or chat template are missing or damaged.
        DeviceMemoryError: If the weights do not fit.
        SrlmError: If the settings' attention does not work here.
    """
    from transformers import AutoModelForCausalLM

    verify(Path(source))
    device = choose_device(settings.device)
    computed = choose_dtype(dtype or settings.dtype, device)
    attention = attention or choose_attention(settings, device)
    tokenizer = load_tokenizer(source, settings)
    with sufficient_memory(f"loading {source}", _SMALLER):
        with readable(source):
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=computed,
                attn_implementation=attention,
                trust_remote_code=settings.trust_remote_code,
                **({"quantization_config": four_bits(computed), "device_map": {"": device}} if quantized else {}),
            )
        model = model.eval() if quantized else model.to(device).eval()
    _match(source, model, tokenizer)
    return LoadedModel(model, tokenizer)


def _match(source: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that a model knows the tokens that its tokenizer and chat template use, and ends where they do.

    Raises:
        ModelError: If a tokenizer was given new tokens for its template, and the weights were not.
    """
    known = chat_format(tokenizer)
    written = tokenizer(known.before + known.after + known.turn_end, add_special_tokens=False).input_ids
    rows = int(model.get_input_embeddings().weight.shape[0])
    if max(written, default=0) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(written))
        raise ModelError(
            source,
            f"its chat template writes {token!r}, which is token {max(written)}, and its weights know {rows} tokens: "
            "call resize_token_embeddings(len(tokenizer)) on the model and save it again",
        )
    if int(tokenizer.pad_token_id) >= rows:
        # Some tokenizer classes bring a token for padding along that the model never had.
        tokenizer.pad_token = known.turn_end
    turn_end = int(tokenizer.convert_tokens_to_ids(known.turn_end))
    declare_ends(model, list(dict.fromkeys([turn_end, *end_tokens(model, tokenizer)])))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
