"""Instruction, judging and evaluation data as tables: which prompts go where, and how many are used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from itertools import chain, count
from pathlib import Path
from typing import Literal

import pandas as pd

from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.reading import EvaluationRow, InstructionRow, PromptRow, RankedRow, Row, read_rows
from srlm_pipeline.data.rows import RowReport, in_words
from srlm_pipeline.data.sources import digest_source
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.tables import EVALUATION_PROMPTS, INSTRUCTIONS, RANKED_REPLIES

Source = Literal["ift", "ranked_replies", "evaluation_prompts"]
_ID_PREFIX: dict[Source, str] = {"ift": "ift", "ranked_replies": "rank", "evaluation_prompts": "eval"}


@dataclass(frozen=True)
class LoadedTable:
    """A table of data.

    Attributes:
        table: What is used.
        left_out: What is not: reason to number of rows, prompts or replies.
        unread: Columns of text that nothing reads; a prompt may lack what stands in them.
    """

    table: pd.DataFrame
    left_out: dict[str, int]
    unread: tuple[str, ...] = ()

    def warning(self, source: str) -> str:
        """Return what to do about text that nothing reads; the source is named as in the settings."""
        columns = "column" if len(self.unread) == 1 else "columns"
        return (
            f"nothing reads the text in {columns} {', '.join(self.unread)} of data.{source}: if a prompt is not whole "
            f"without it, name it in data.{source}.columns"
        )


def load_instructions(settings: DataSettings) -> LoadedTable:
    """Return the IFT pairs as table `INSTRUCTIONS`, without the prompts that are used for judging.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If there are none.
    """
    rows, report = _chosen(settings, "ift", InstructionRow, settings.ift_limit)
    table = [{"id": key, "kind": row.kind, "prompt": row.prompt, "response": row.response} for key, row in rows]
    return LoadedTable(
        pd.DataFrame(table, columns=list(INSTRUCTIONS.columns)), dict(report.left_out), tuple(report.unread)
    )


def load_ranked_replies(settings: DataSettings) -> LoadedTable:
    """Return ranked replies with their split as table `RANKED_REPLIES`, one row per reply.

    Prompts are split into train and held-out by a hash of the prompt's text: the same prompt is always on the
    same side, whatever the order of the file.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If a split would have no prompt.
    """
    groups, report = _chosen(settings, "ranked_replies", RankedRow, settings.ranked_limit)
    held_out = held_out_prompts([row.prompt for _, row in groups], settings.held_out_fraction)
    if not held_out or len(held_out) == len({_normal(row.prompt) for _, row in groups}):
        raise EmptyDataError(
            f"{report.name} has too few different prompts ({len(groups)}) to be split into train and held-out"
            f"{_why(report)}"
        )
    table = [
        {
            "group_id": key,
            "split": "held_out" if _normal(row.prompt) in held_out else "train",
            "kind": row.kind,
            "prompt": row.prompt,
            "rank": reply.rank,
            "text": reply.text,
            "score": reply.score,
            "rationale": reply.rationale,
        }
        for key, row in groups
        for reply in row.replies
    ]
    return LoadedTable(
        pd.DataFrame(table, columns=list(RANKED_REPLIES.columns)), dict(report.left_out), tuple(report.unread)
    )


def load_evaluation_prompts(settings: DataSettings) -> LoadedTable:
    """Return the evaluation prompts as table `EVALUATION_PROMPTS`.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If there are none.
    """
    rows, report = _chosen(settings, "evaluation_prompts", EvaluationRow, settings.evaluation_limit)
    table = [{"id": key, "kind": row.kind, "prompt": row.prompt, "reference": row.reference} for key, row in rows]
    return LoadedTable(
        pd.DataFrame(table, columns=list(EVALUATION_PROMPTS.columns)), dict(report.left_out), tuple(report.unread)
    )


def source_digest(settings: DataSettings, *sources: Source) -> str:
    """Return a digest of data sources, so that an edited file makes what was read from it stale.

    Args:
        settings: Where the data is.
        sources: Which of it.
    """
    return "-".join(digest_source(getattr(settings, source), _embedded(source)) for source in sources)


def held_out_prompts(prompts: list[str], fraction: float) -> set[str]:
    """Choose the held-out prompts by hash.

    Args:
        prompts: Texts; repeated ones count once.
        fraction: Share to hold out, rounded to whole prompts.

    Returns:
        Normalised texts of the held-out prompts.
    """
    different = sorted({_normal(p) for p in prompts}, key=prompt_hash)
    return set(different[: round(len(different) * fraction)])


def prompt_hash(prompt: str) -> bytes:
    """Return what prompts are ordered by where they are split; letter case and blanks do not matter."""
    return hashlib.sha256(_normal(prompt).encode()).digest()


def for_judging(prompt: str, share: float) -> bool:
    """Decide, by a hash of its text alone, whether a prompt that both could use goes to judging data.

    Args:
        prompt: Text.
        share: Of such prompts, about how many do.
    """
    number = int.from_bytes(hashlib.sha256(f"judging: {_normal(prompt)}".encode()).digest()[:8])
    return number < share * 2**64


def _normal(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def _chosen(
    settings: DataSettings, name: Source, row_type: type[Row], limit: int | None
) -> tuple[list[tuple[str, Row]], RowReport]:
    """Return the rows of one source that are used, the first so many of them, each with its id."""
    report, rows = read_rows(getattr(settings, name), _embedded(name), row_type, settings)
    elsewhere = _prompts_of_the_other(settings, name)
    judges, measures = name == "ranked_replies", name == "evaluation_prompts"
    chosen: list[tuple[int, Row]] = []
    ids: set[str] = set()
    asked: set[str] = set()
    for number, row in rows:
        if _normal(row.prompt) in elsewhere and for_judging(row.prompt, settings.ranked_share) != judges:
            report.leave_out(f"prompt used in {'ift' if judges else 'ranked_replies'}")
        elif row.id in ids:
            report.broken(number, "id occurs more than once", f": {row.id!r}")
        elif measures and _normal(row.prompt) in asked:
            report.leave_out("prompt that occurs more than once")
        else:
            chosen.append((number, row))
            ids |= {row.id} if row.id else set()
            asked.add(_normal(row.prompt))
        if len(chosen) == limit:
            break
    if not chosen:
        raise EmptyDataError(f"{report.name} holds no rows that can be used as {name}{_why(report)}")
    return [(row.id or _new_id(name, number, ids), row) for number, row in chosen], report


def _new_id(name: Source, number: int, ids: set[str]) -> str:
    """Return an id for a row that has none, and remember it; a chat may give several rows of one number."""
    first = f"{_ID_PREFIX[name]}-{number:05d}"
    numbered = (f"{first}-{place}" for place in count(2))
    key = next(key for key in chain([first], numbered) if key not in ids)
    ids.add(key)
    return key


def _prompts_of_the_other(settings: DataSettings, name: Source) -> set[str]:
    """Return the prompts that training and judging data must not share."""
    other: dict[Source, tuple[Source, type[PromptRow]]] = {
        "ift": ("ranked_replies", RankedRow),
        "ranked_replies": ("ift", InstructionRow),
    }
    if name not in other:
        return set()
    source, row_type = other[name]
    _, rows = read_rows(getattr(settings, source), _embedded(source), row_type, settings)
    return {_normal(row.prompt) for _, row in rows}


def _embedded(name: Source) -> Path:
    return Path(str(resources.files("srlm_pipeline.data.seed").joinpath(f"{name}.jsonl")))


def _why(report: RowReport) -> str:
    first = f"; the first bad row: {report.first_broken}" if report.first_broken else ""
    return f"; left out: {in_words(report.left_out)}{first}" if report.left_out else ""
