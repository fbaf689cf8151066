"""What would keep a trained model from being saved, put right or refused before it is trained."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from srlm_pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a reply by the model's generation configuration and its tokenizer, without repeats."""
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list | tuple) else [declared]
    return list(dict.fromkeys(int(t) for t in [*listed, tokenizer.eos_token_id] if t is not None))


def declare_ends(model: PreTrainedModel, ends: list[int]) -> None:
    """Write into a model's generation configuration what ends a reply, and make it one that can be saved.

    Many models are published with a temperature and without `do_sample`, which transformers refuses to save once
    anything else in the file was changed. Whoever named a temperature wants to sample.
    """
    config = model.generation_config
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if _can_be_saved(model):
        return
    config.do_sample = True
    if _can_be_saved(model):
        return
    from transformers import GenerationConfig

    log.warning("the model's generation_config.json contradicts itself; of it only the special tokens are kept")
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def require_savable(source: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save everything but the weights to see whether it can be.

    Raises:
        ModelError: If not.
    """
    with tempfile.TemporaryDirectory(prefix="srlm-") as folder:
        try:
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        # Whatever the libraries raise, a person can do nothing else about it.
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(source, f"could not be saved once it is trained ({reason})") from error


def _can_be_saved(model: PreTrainedModel) -> bool:
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        return False
    return True
