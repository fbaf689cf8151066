"""Whether a model's files are still those that were saved: its digest, held against what lies there.

Reading all weights takes as long as loading them, so it is done where a model is opened, and in one process once as
long as no file's size or time of change differs.
"""

from __future__ import annotations

import json
from pathlib import Path

from srlm_pipeline.errors import ModelError
from srlm_pipeline.files import digest_files

MARKER = "srlm.json"
# What MLflow reads of a model that is registered; no part of it.
_DESCRIPTION = "MLmodel"
_Signature = tuple[tuple[str, int, int], ...]
# Digests by folder, each with what the files were when it was computed.
_known: dict[Path, tuple[_Signature, str]] = {}


def model_files(folder: Path) -> list[Path]:
    """Return what a model's digest is over: its files but the marker, what describes it and hidden ones, by name."""
    names = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in names if path.name not in (MARKER, _DESCRIPTION))


def is_emptied(folder: Path) -> bool:
    """Whether nothing but the marker is left of a model: it is known what it was, and it cannot be opened."""
    return (folder / MARKER).is_file() and not model_files(folder)


def empty(folder: Path) -> None:
    """Remove a model's files, and leave the marker."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path != folder / MARKER:
            path.unlink()


def verify(folder: Path) -> None:
    """Hold a model's files against the digest in its marker; a folder without marker is not ours to judge.

    Raises:
        ModelError: If they differ, or were removed.
    """
    marker = folder / MARKER
    if not marker.is_file():
        return
    if is_emptied(folder):
        raise ModelError(
            folder,
            "its weights were removed (`srlm gc`): it was of an earlier iteration, and no champion. Choose another "
            "model, or delete the folder: `srlm run` makes the model again",
        )
    try:
        declared = json.loads(marker.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable_marker(folder, error) from error
    if _digest(folder) != declared:
        raise ModelError(
            folder,
            f"its files are not those that were saved: they do not give the digest in {MARKER}. Restore the folder "
            "from a copy, or delete it: `srlm run` makes the model again",
        )


def unreadable_marker(folder: Path, error: Exception) -> ModelError:
    """Return what is said of a marker that cannot be read."""
    return ModelError(
        folder,
        f"its {MARKER} cannot be read ({type(error).__name__}: {error}). Restore the folder from a copy, or delete it: "
        "`srlm run` makes the model again",
    )


def _digest(folder: Path) -> str:
    files = model_files(folder)
    signature = tuple((path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files)
    before = _known.get(folder.resolve())
    if before is not None and before[0] == signature:
        return before[1]
    digest = digest_files(files)
    _known[folder.resolve()] = (signature, digest)
    return digest
