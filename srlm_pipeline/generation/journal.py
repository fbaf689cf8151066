"""The per-item journal: what is finished stays finished, whatever happens next.

An item's key says all that its result depends on: the model, what it was asked, how it drew, its seed. So a rerun
takes up whatever was finished and does only the rest; batch sizes, thresholds and how many items there are change no
key, and settings that do change what is asked find nothing under the new keys and leave the old items alone.

One JSONL file per stage. Every finished batch is appended and flushed to disk; a line that a crash cut short, or that
was damaged later, is passed over. Reading changes nothing, so another process may append meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from srlm_pipeline.files import replacing_file

log = logging.getLogger(__name__)


class Journal:
    """Finished items of one stage.

    Args:
        folder: Of the stage.

    Attributes:
        broken: Lines that hold no item; a last one that has not come to its end is none of them, for it may be just
            being written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "items.jsonl"
        self.broken = 0
        self._items = self._read()
        if self.broken:
            log.warning(
                "%s: broken lines passed over: %d; what they held is done again, all others are kept",
                self.path,
                self.broken,
            )
        self._used: set[str] = set()
        self._added: dict[str, dict[str, Any]] = {}

    @property
    def items(self) -> Mapping[str, dict[str, Any]]:
        """Finished items by key."""
        return self._items

    @property
    def added(self) -> Mapping[str, dict[str, Any]]:
        """Those of them that were appended here, not found."""
        return self._added

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return those of the items that are finished."""
        found = {key: self._items[key] for key in keys if key in self._items}
        self._used.update(found)
        return found

    def append(self, items: Mapping[str, dict[str, Any]]) -> None:
        """Make items final: they are on disk when this returns."""
        if not items:
            return
        with self.path.open("ab+") as stream:
            stream.write(self._line_end(stream) + _lines(items))
            stream.flush()
            os.fsync(stream.fileno())
        self._items.update(items)
        self._added.update(items)
        self._used.update(items)

    def prune(self) -> None:
        """Keep only what was found or appended here: to be called when the stage is done.

        What other settings had left is no longer needed then, journals of earlier versions included.
        """
        if self._used != self._items.keys():
            kept = {key: item for key, item in self._items.items() if key in self._used}
            with replacing_file(self.path) as temporary:
                temporary.write_bytes(_lines(kept))
            self._items = kept
        for other in self.path.parent.glob("*.jsonl"):
            if other != self.path:
                other.unlink()

    def _read(self) -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return items
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    item = json.loads(line)
                    items[item.pop("key")] = item
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                    self.broken += bool(line.strip()) and line.endswith(b"\n")
        return items

    @staticmethod
    def _line_end(stream: Any) -> bytes:
        """Return what ends the line that a crash cut short, if there is one."""
        if stream.seek(0, os.SEEK_END) == 0:
            return b""
        stream.seek(-1, os.SEEK_END)
        return b"" if stream.read(1) == b"\n" else b"\n"


def _lines(items: Mapping[str, dict[str, Any]]) -> bytes:
    return "".join(json.dumps({"key": key, **item}, ensure_ascii=False) + "\n" for key, item in items.items()).encode()


def fingerprint(*parts: str | int | float | Iterable[str]) -> str:
    """Return sixteen hex digits over everything that determines a result."""
    total = hashlib.sha256()
    for part in parts:
        pieces = [str(part)] if isinstance(part, str | int | float) else list(part)
        for piece in [str(len(pieces)), *pieces]:
            encoded = piece.encode()
            total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()[:16]
