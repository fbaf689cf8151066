"""Texts for benchmarks: real ones, topped up by recombining their words where there are too few."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files of the data folder and where their prompts are. Prompts of public evaluations are left alone.
_PROMPTS = (
    ("oasst/ift_pairs.jsonl", "prompt"),
    ("oasst/eft_groups.jsonl", "prompt"),
    ("self-instruct/seed_tasks.jsonl", "instruction"),
)
_PAIRS = "oasst/ift_pairs.jsonl"
# Far more than one token has, so that what is cut to a number of tokens has at least as many.
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Exchange:
    """A prompt and a long reply."""

    prompt: str
    reply: str


def embedded_prompts() -> list[tuple[str, str]]:
    """Return id and text of the prompts in the package."""
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_instructions

    return [(str(row.id), str(row.prompt)) for row in load_instructions(DataSettings()).table.itertuples()]


def real_prompts(folder: Path) -> list[str]:
    """Return different prompts of the data folder, or of the package where the folder is absent."""
    texts = [row[key] for name, key in _PROMPTS for row in _rows(folder / name)]
    return list(dict.fromkeys(texts or [text for _, text in embedded_prompts()]))


def prompts(folder: Path, count: int, seed: int, max_words: int | None = None) -> list[str]:
    """Return so many different prompts, real ones first, the rest recombined from their words.

    A recombined prompt has the length of a real one and words drawn as often as they occur.

    Args:
        folder: Of real texts.
        count: How many.
        seed: Of order and recombination.
        max_words: Longer real prompts are left out.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing secret
    real = [text for text in real_prompts(folder) if max_words is None or len(text.split()) <= max_words]
    draw.shuffle(real)
    lengths = [len(text.split()) for text in real]
    words = [word for text in real for word in text.split()]
    chosen = dict.fromkeys(real[:count])
    while len(chosen) < count:
        chosen[" ".join(draw.choices(words, k=draw.choice(lengths)))] = None
    return list(chosen)


def exchanges(folder: Path, count: int, tokens: int, seed: int) -> list[Exchange]:
    """Return prompts with replies that are longer than so many tokens: real replies, joined.

    Args:
        folder: Of real texts.
        count: How many.
        tokens: Which prompt and reply together shall surely exceed.
        seed: Of the order.
    """
    pairs = [(row["prompt"], row["response"]) for row in _rows(folder / _PAIRS)] or _embedded_pairs()
    pairs = [pair for pair in pairs if len(pair[0].split()) <= 40]
    random.Random(seed).shuffle(pairs)  # noqa: S311 - nothing secret
    replies = _endless([reply for _, reply in pairs])
    made = []
    for number in range(count):
        parts: list[str] = []
        while sum(map(len, parts)) < tokens * _CHARACTERS_PER_TOKEN:
            parts.append(next(replies))
        made.append(Exchange(pairs[number % len(pairs)][0], "\n\n".join(parts)))
    return made


def judged_replies(count: int) -> list[tuple[str, str]]:
    """Return prompts and replies to be judged: the ranked replies in the package."""
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_ranked_replies

    table = load_ranked_replies(DataSettings()).table
    return [(str(row.prompt), str(row.text)) for row in table.head(count).itertuples()]


def _embedded_pairs() -> list[tuple[str, str]]:
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_instructions

    return [(str(row.prompt), str(row.response)) for row in load_instructions(DataSettings()).table.itertuples()]


def _endless(texts: list[str]) -> Iterator[str]:
    while True:
        yield from texts


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
