"""Instruction, judging and evaluation data: from the package or from a user's own JSONL files."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field, StringConstraints, model_validator

from srlm_pipeline.config import EMBEDDED_DATA, DataSettings
from srlm_pipeline.data.jsonl import read_rows
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.files import digest_files
from srlm_pipeline.tables import EVALUATION_PROMPTS, INSTRUCTIONS, RANKED_REPLIES

Source = Literal["ift", "ranked_replies", "evaluation_prompts"]
_EMBEDDED_FILES: dict[Source, str] = {
    "ift": "ift.jsonl",
    "ranked_replies": "ranked_replies.jsonl",
    "evaluation_prompts": "evaluation_prompts.jsonl",
}
Filled = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class InstructionRow(BaseModel):
    """One IFT pair; `id` and `kind` are optional."""

    id: Filled | None = None
    kind: str = ""
    prompt: Filled
    response: Filled


class ReplyRow(BaseModel):
    """One ranked reply; 0 is the best rank."""

    text: Filled
    rank: int | None = Field(None, ge=0)
    score: float | None = None
    rationale: str | None = None

    @model_validator(mode="after")
    def _score_in_range(self) -> ReplyRow:
        if self.score is not None and not 0 <= self.score <= 5:
            raise ValueError(f"score {self.score} is not between 0 and 5")
        return self


class RankedRow(BaseModel):
    """A prompt with ranked replies; where ranks are missing, the order in the list counts, best first."""

    id: Filled | None = None
    kind: str = ""
    prompt: Filled
    replies: list[ReplyRow]

    @model_validator(mode="after")
    def _comparable(self) -> RankedRow:
        if len(self.replies) < 2:
            raise ValueError("replies: at least two are needed for a ranking")
        ranks = [reply.rank for reply in self.replies]
        if any(rank is None for rank in ranks) and any(rank is not None for rank in ranks):
            raise ValueError("replies: either all have a rank or none")
        if len({reply.text for reply in self.replies}) < len(self.replies):
            raise ValueError("replies: two have the same text")
        return self


class PromptRow(BaseModel):
    """One evaluation prompt."""

    id: Filled | None = None
    kind: str = ""
    prompt: Filled


def load_instructions(settings: DataSettings) -> pd.DataFrame:
    """Return the IFT pairs as table `INSTRUCTIONS`.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If there are none.
    """
    path = _path(settings.ift, _EMBEDDED_FILES["ift"])
    rows = [
        {"id": row.id or f"ift-{number:05d}", "kind": row.kind, "prompt": row.prompt, "response": row.response}
        for number, row in read_rows(path, InstructionRow, settings.ift_limit)
    ]
    return _unique_ids(pd.DataFrame(rows, columns=list(INSTRUCTIONS.columns)), "id", path)


def load_ranked_replies(settings: DataSettings) -> pd.DataFrame:
    """Return ranked replies with their split as table `RANKED_REPLIES`, one row per reply.

    Prompts are split into train and held-out by a hash of the prompt's text: the same prompt is always on the
    same side, whatever the order of the file.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If a split would have no prompt.
    """
    path = _path(settings.ranked_replies, _EMBEDDED_FILES["ranked_replies"])
    groups = read_rows(path, RankedRow, settings.ranked_limit)
    held_out = held_out_prompts([row.prompt for _, row in groups], settings.held_out_fraction)
    if not held_out or len(held_out) == len({_normal(row.prompt) for _, row in groups}):
        raise EmptyDataError(
            f"{path} has too few different prompts ({len(groups)}) to be split into train and held-out"
        )
    rows = [
        {
            "group_id": row.id or f"rank-{number:05d}",
            "split": "held_out" if _normal(row.prompt) in held_out else "train",
            "kind": row.kind,
            "prompt": row.prompt,
            "rank": reply.rank if reply.rank is not None else place,
            "text": reply.text,
            "score": reply.score,
            "rationale": reply.rationale,
        }
        for number, row in groups
        for place, reply in enumerate(row.replies)
    ]
    ids = pd.DataFrame({"group_id": [row.id or f"rank-{number:05d}" for number, row in groups]})
    _unique_ids(ids, "group_id", path)
    return pd.DataFrame(rows, columns=list(RANKED_REPLIES.columns))


def load_evaluation_prompts(settings: DataSettings) -> pd.DataFrame:
    """Return the evaluation prompts as table `EVALUATION_PROMPTS`.

    Raises:
        DataError: Naming file and line.
        EmptyDataError: If there are none.
    """
    path = _path(settings.evaluation_prompts, _EMBEDDED_FILES["evaluation_prompts"])
    rows = [
        {"id": row.id or f"eval-{number:05d}", "kind": row.kind, "prompt": row.prompt}
        for number, row in read_rows(path, PromptRow, settings.evaluation_limit)
    ]
    return _unique_ids(pd.DataFrame(rows, columns=list(EVALUATION_PROMPTS.columns)), "id", path)


def source_digest(settings: DataSettings, *sources: Source) -> str:
    """Return a digest of data files, so that an edited file makes what was read from it stale; empty if missing.

    Args:
        settings: Where the files are.
        sources: Which of them.
    """
    paths = [_path(getattr(settings, source), _EMBEDDED_FILES[source]) for source in sources]
    return digest_files([path for path in paths if path.is_file()]) if paths else ""


def held_out_prompts(prompts: list[str], fraction: float) -> set[str]:
    """Choose the held-out prompts by hash.

    Args:
        prompts: Texts; repeated ones count once.
        fraction: Share to hold out, rounded to whole prompts.

    Returns:
        Normalised texts of the held-out prompts.
    """
    different = sorted({_normal(p) for p in prompts}, key=lambda p: hashlib.sha256(p.encode()).digest())
    return set(different[: round(len(different) * fraction)])


def _normal(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def _path(source: str, embedded_name: str) -> Path:
    if source == EMBEDDED_DATA:
        return Path(str(resources.files("srlm_pipeline.data.seed").joinpath(embedded_name)))
    return Path(source).expanduser()


def _unique_ids(table: pd.DataFrame, column: str, path: Path) -> pd.DataFrame:
    repeated = table[column][table[column].duplicated()]
    if len(repeated):
        raise DataError(path, None, f"{column} {repeated.iloc[0]!r} occurs more than once")
    return table
