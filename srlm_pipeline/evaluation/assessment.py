"""What is known of one model: its replies with their signs, what it follows and solves, how it judges.

Made once per model (`assessing`), kept under the digest of its weights, and read by whatever compares models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
import pandera.pandas as pa

from srlm_pipeline.errors import AssessmentError
from srlm_pipeline.files import replacing_folder
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.store import ProjectStore, iteration_of, partition_key
from srlm_pipeline.tables import (
    ASSESSED_REPLIES,
    JUDGE_ACCURACY,
    LIKELIHOOD,
    REPLIES,
    VERIFIABLE,
    read_table,
    write_table,
)

Part = Literal["evaluation", "verifiable", "closed"]
_FACTS = "assessment.json"
_TABLES: dict[str, pa.DataFrameSchema] = {
    "replies": ASSESSED_REPLIES,
    "verifiable": VERIFIABLE,
    "judgements": JUDGE_ACCURACY,
    "likelihood": LIKELIHOOD,
}


@dataclass(frozen=True)
class Assessment:
    """One model, measured.

    Attributes:
        model: Its name.
        digest: Of its weights.
        replies: Table `ASSESSED_REPLIES`: to evaluation prompts, verifiable prompts and closed tasks.
        verifiable: Table `VERIFIABLE`: what the replies to verifiable prompts follow.
        judgements: Table `JUDGE_ACCURACY`: its scores of the held-out human-ranked replies.
        likelihood: Table `LIKELIHOOD`: how probable it finds the best of them.
        limits: Tokens that a reply could have at most, by part.
    """

    model: str
    digest: str
    replies: pd.DataFrame
    verifiable: pd.DataFrame
    judgements: pd.DataFrame
    likelihood: pd.DataFrame
    limits: Mapping[str, int] = field(default_factory=dict)

    def of_copy(self, checkpoint: Checkpoint) -> Assessment:
        """Return the same of a model that has the very same weights."""
        tables = {name: getattr(self, name).assign(model=checkpoint.name) for name in _TABLES}
        return Assessment(checkpoint.name, checkpoint.digest, **tables, limits=self.limits)

    def part(self, part: Part) -> pd.DataFrame:
        """Return the rows of `replies` that belong to one set of prompts, in the order in which they were asked."""
        return self.replies[self.replies["part"] == part].reset_index(drop=True)

    def evaluation_replies(self) -> pd.DataFrame:
        """Return the replies to the evaluation prompts as table `REPLIES`."""
        return self.part("evaluation")[list(REPLIES.columns)]


def write_assessment(assessment: Assessment, store: ProjectStore, checkpoint: Checkpoint) -> None:
    """Keep everything that was measured of a model, all at once or not at all.

    Raises:
        TableError: If a table breaks its schema.
    """
    with replacing_folder(store.assessment_folder(checkpoint), _FACTS) as folder:
        for name, schema in _TABLES.items():
            write_table(getattr(assessment, name), schema, folder / f"{name}.parquet")
        facts = {"model": assessment.model, "digest": assessment.digest, "limits": dict(assessment.limits)}
        (folder / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def read_assessment(store: ProjectStore, checkpoint: Checkpoint) -> Assessment:
    """Return what was measured of a model.

    Raises:
        AssessmentError: If these very weights were not assessed, naming the asset to materialize.
        TableError: If a table is damaged.
    """
    folder = store.assessment_folder(checkpoint)
    if not folder.is_dir():
        raise AssessmentError(
            [f"{checkpoint.name} has not been assessed as it is now; materialize {assessed_by(checkpoint.name)} first"],
        )
    return open_assessment(folder)


def open_assessment(folder: Path) -> Assessment:
    """Return what a folder holds, whichever model it is of.

    Raises:
        TableError: If a table is missing or damaged.
    """
    tables = {name: read_table(schema, folder / f"{name}.parquet") for name, schema in _TABLES.items()}
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        return Assessment(facts["model"], facts["digest"], **tables, limits=facts["limits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssessmentError([f"{folder / _FACTS} cannot be read; materialize its asset again: {error!r}"]) from error


def read_assessments(store: ProjectStore, checkpoints: Sequence[Checkpoint]) -> dict[str, Assessment]:
    """Return what was measured of several models, by their names.

    Raises:
        AssessmentError: If one of them was not assessed, or they were not asked the same: an older assessment is of
            other prompts, and nothing could be compared.
    """
    found = {checkpoint.name: read_assessment(store, checkpoint) for checkpoint in checkpoints}
    asked = {name: _asked(assessment) for name, assessment in found.items()}
    last = checkpoints[-1].name
    stale = [name for name in found if asked[name] != asked[last]]
    if stale:
        raise AssessmentError(
            [
                f"{name} was asked other prompts than {last}, or with another limit of tokens; "
                f"materialize {assessed_by(name)} again"
                for name in stale
            ],
        )
    return found


def assessed_by(model: str) -> str:
    """Return the asset, with its partition, that assesses a model."""
    iteration = iteration_of(model)
    return "seed_assessment" if iteration is None else f"assessment[{partition_key(iteration)}]"


def _asked(assessment: Assessment) -> tuple[object, ...]:
    asked = [tuple(row) for row in assessment.replies[["part", "prompt_id", "prompt"]].itertuples(index=False)]
    ranked = [tuple(row) for row in assessment.judgements[["group_id", "rank"]].itertuples(index=False)]
    return tuple(asked), tuple(ranked), tuple(sorted(assessment.limits.items()))
