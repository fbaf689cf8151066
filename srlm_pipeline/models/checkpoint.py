"""A finished model: a folder that `from_pretrained` loads, plus `srlm.json` with where it comes from.

`srlm.json` is written last. A folder without it is not a model: nothing is ever computed on half a save.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_pipeline import __version__
from srlm_pipeline.errors import ModelError
from srlm_pipeline.files import digest_files, replacing_file, replacing_folder, require_disk
from srlm_pipeline.models.integrity import MARKER, model_files, unreadable_marker, verify
from srlm_pipeline.models.loading import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In the lineage of a model that has the very weights of another: that one's digest.
COPY_OF = "copy_of"
_MARGIN = 1.1


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk with its lineage.

    Attributes:
        path: The folder.
        name: For people: ``M1``, ``sft_baseline``, ...
        digest: Over weights, config and tokenizer.
        parent: Digest of the model that training started from; None for the base model.
        lineage: Data versions, settings and run that produced it.
        code_version: Version of this package.
    """

    path: Path
    name: str
    digest: str
    parent: str | None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = __version__


def save_checkpoint(
    loaded: LoadedModel, target: Path, name: str, parent: str | None, lineage: Mapping[str, Any], save_dtype: str
) -> Checkpoint:
    """Save a model atomically.

    Args:
        loaded: Model (adapters merged) and tokenizer.
        target: Folder; an older model there is replaced only when the new one is whole.
        name: For people.
        parent: Digest of the model that training started from.
        lineage: What went into it.
        save_dtype: Type of the weights on disk.

    Raises:
        DiskSpaceError: If the weights do not fit.
        ModelError: If a weight is not a finite number.
    """
    import torch

    dtype = getattr(torch, save_dtype)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    require_disk(target.parent, int(parameters * dtype.itemsize * _MARGIN))
    with replacing_folder(target, MARKER) as folder:
        network = loaded.model.to(dtype)
        require_finite(network, target)
        network.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_marker(folder, name, parent, lineage)
    return read_checkpoint(target)


def require_finite(network: PreTrainedModel, target: Path) -> None:
    """Refuse to keep a model with weights that are no numbers, in the type that they are kept in.

    Raises:
        ModelError: Naming the first of them.
    """
    for name, weights in network.state_dict().items():
        if weights.is_floating_point() and not bool(weights.isfinite().all()):
            raise ModelError(
                target,
                f"is not saved: its weights `{name}` are not finite in {weights.dtype}. Training went astray: lower "
                "its learning_rate; or they are too large for model.save_dtype: choose bfloat16 or float32",
            )


def copy_checkpoint(source: Checkpoint, target: Path, name: str) -> Checkpoint:
    """Save a model under another name, its files unchanged.

    Args:
        source: In a folder on this machine.
        target: Folder; an older model there is replaced only when the copy is whole.
        name: For people.

    Raises:
        DiskSpaceError: If the files do not fit.
    """
    verify(source.path)
    files = [p for p in source.path.iterdir() if p.is_file() and p.name != MARKER]
    require_disk(target.parent, int(sum(p.stat().st_size for p in files) * _MARGIN))
    with replacing_folder(target, MARKER) as folder:
        for file in files:
            shutil.copy2(file, folder / file.name)
        write_marker(folder, name, source.digest, {COPY_OF: source.digest})
    return read_checkpoint(target)


def write_marker(folder: Path, name: str, parent: str | None, lineage: Mapping[str, Any]) -> None:
    """Declare a complete model folder a checkpoint."""
    facts = asdict(Checkpoint(folder, name, digest_files(model_files(folder)), parent, dict(lineage)))
    del facts["path"]
    with replacing_file(folder / MARKER) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what a folder says of itself; whether its weights are those that it names is seen where they are opened.

    Raises:
        ModelError: If the folder is not a finished model, or its marker cannot be read.
    """
    marker = folder / MARKER
    if not marker.is_file():
        raise ModelError(folder, f"is not a finished model: it has no {MARKER}")
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))
        found = Checkpoint(path=folder, **facts)
        if not (isinstance(found.name, str) and isinstance(found.digest, str) and isinstance(found.lineage, dict)):
            raise TypeError("name, digest or lineage is missing")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise unreadable_marker(folder, error) from error
    return found


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a finished model."""
    return (folder / MARKER).is_file()
