"""What every call of an external judge took and cost: one line each in a project's `judge_calls.jsonl`.

Journals keep what was said; this keeps what it cost to have it said, also where an answer was of no use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock

import pandas as pd


@dataclass(frozen=True)
class Call:
    """One message that a server was asked to answer.

    Attributes:
        at: When it was sent, in UTC, as ISO 8601.
        model: The server's name for it.
        server: Its host.
        seconds: Until there was an answer, tries and pauses included.
        prompt_tokens: Read, as the server counts; 0 if it does not tell.
        completion_tokens: Drawn, thoughts included; 0 if it does not tell.
        thought_characters: Of what a reasoning model thought, as far as the server shows it.
        finish_reason: What ended the answer; see `Completion`.
        cost: In the currency of the prices; None if it is not known.
    """

    at: str
    model: str
    server: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    thought_characters: int
    finish_reason: str
    cost: float | None


class CallLog:
    """A project's calls. Several threads may add to it.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()

    def add(self, call: Call) -> None:
        """Append a call."""
        line = json.dumps(asdict(call), ensure_ascii=False) + "\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as stream:
                # A line that a crash cut short spoils no other.
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    line = line if stream.read(1) == b"\n" else f"\n{line}"
                stream.write(line.encode())

    def size(self) -> int:
        """Return where the next call will be added, for `table`."""
        return self._path.stat().st_size if self._path.exists() else 0

    def table(self, start: int = 0) -> pd.DataFrame:
        """Return the calls from a place on, one row each; a line that a crash cut short is left out."""
        rows = []
        if self._path.exists():
            with self._path.open("rb") as stream:
                stream.seek(start)
                for line in stream:
                    try:
                        rows.append(asdict(Call(**json.loads(line))))
                    except (ValueError, TypeError):
                        continue
        return pd.DataFrame(rows, columns=[field.name for field in fields(Call)])


def call_figures(calls: pd.DataFrame) -> dict[str, float]:
    """Return how many calls there were and what they took: nothing if there were none, no cost if it is not known.

    Args:
        calls: As `CallLog.table` returns them.
    """
    if calls.empty:
        return {}
    costs = calls["cost"].dropna().astype(float)
    return {
        "requests": float(len(calls)),
        "prompt_tokens": float(calls["prompt_tokens"].sum()),
        "completion_tokens": float(calls["completion_tokens"].sum()),
        "median_seconds": float(calls["seconds"].median()),
        "p95_seconds": float(calls["seconds"].quantile(0.95)),
        **({"cost": float(costs.sum())} if len(costs) else {}),
    }


def cost_of(usage: Mapping[str, object], prices: tuple[float | None, float | None]) -> float | None:
    """Return what an answer cost: what the server says itself (`usage.cost`), else by the prices.

    Args:
        usage: As the server counts.
        prices: Of a million tokens read, and of a million drawn.
    """
    told = usage.get("cost")
    if isinstance(told, int | float) and not isinstance(told, bool):
        return float(told)
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    parts = [
        count * price / 1e6
        for count, price in zip(counts, prices, strict=True)
        if isinstance(count, int) and price is not None
    ]
    return sum(parts) if len(parts) == 2 else None
