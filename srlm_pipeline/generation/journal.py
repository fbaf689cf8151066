"""The per-item journal: what is finished stays finished, whatever happens next.

One JSONL file per (stage, fingerprint). Every finished batch is appended and flushed to disk. A rerun with the
same fingerprint of model, inputs, settings and seed reads it and does only the rest; another fingerprint starts
anew. A line that a crash cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Finished items of one stage.

    Args:
        folder: Of the stage; journals with another fingerprint in it are removed.
        fingerprint: Of everything that determines the items' results.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{fingerprint}.jsonl"
        for other in folder.glob("*.jsonl"):
            if other != self.path:
                other.unlink()
        self._items = self._recover()

    @property
    def items(self) -> Mapping[str, dict[str, Any]]:
        """Finished items by key."""
        return self._items

    def append(self, items: Mapping[str, dict[str, Any]]) -> None:
        """Make items final: they are on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as stream:
            for key, item in items.items():
                stream.write(json.dumps({"key": key, **item}, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._items.update(items)

    def _recover(self) -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return items
        whole = 0
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    item = json.loads(line)
                    key = item.pop("key")
                except (ValueError, KeyError, AttributeError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                items[key] = item
        with self.path.open("r+b") as stream:
            stream.truncate(whole)
        return items


def fingerprint(*parts: str | int | float | Iterable[str]) -> str:
    """Return sixteen hex digits over everything that determines a stage's results."""
    total = hashlib.sha256()
    for part in parts:
        pieces = [str(part)] if isinstance(part, str | int | float) else list(part)
        for piece in [str(len(pieces)), *pieces]:
            encoded = piece.encode()
            total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()[:16]
