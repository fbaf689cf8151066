"""Rubrics that fit the kind of a request: for each some dimensions with weights, read from the package's YAML files.

Kinds whose replies are good for the same reasons share a file. A dimension is put as a question that yes or no can
answer, so that it serves rubrics, which ask how far it holds, and checklists alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from srlm_pipeline.errors import DataError

_GENERAL = "general"

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]*$")]
_Line = Annotated[str, StringConstraints(pattern=r"^\S[^\n]*$")]


class Dimension(BaseModel):
    """One respect in which a reply can be good.

    Attributes:
        name: In snake case, unique within its rubric.
        weight: In the mean of the rubric's dimensions.
        question: About the response, to be answered with yes or no.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    weight: float = Field(gt=0)
    question: Annotated[str, StringConstraints(pattern=r"^[^\n]*\bresponse\b[^\n]*\?$")]


class KindRubric(BaseModel):
    """What makes a reply to some kinds of request good.

    Attributes:
        kinds: Description by name, as a model is shown them that is to tell which one a prompt is of.
        dimensions: Two to eight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[_Name, _Line]
    dimensions: tuple[Dimension, ...] = Field(min_length=2, max_length=8)

    @model_validator(mode="after")
    def _names_differ(self) -> KindRubric:
        names = [dimension.name for dimension in self.dimensions]
        if len(set(names)) < len(names):
            raise ValueError("two dimensions have the same name")
        return self


@dataclass(frozen=True)
class KindRubrics:
    """All rubrics.

    Attributes:
        general: For whatever is of no known kind.
        by_kind: Of every known kind.
    """

    general: KindRubric
    by_kind: Mapping[str, KindRubric]

    @property
    def descriptions(self) -> dict[str, str]:
        """Every known kind, with its description."""
        return {kind: rubric.kinds[kind] for kind, rubric in self.by_kind.items()}

    def of(self, kind: str | None) -> KindRubric:
        """Return the rubric of a kind, the general one of an unknown kind or none."""
        return self.by_kind.get(kind or "", self.general)


@cache
def kind_rubrics() -> KindRubrics:
    """Return the rubrics that come with the package."""
    return load_rubrics(resources.files("srlm_pipeline.judging.rubrics"))


def load_rubrics(folder: Traversable) -> KindRubrics:
    """Read all rubrics of a folder.

    Args:
        folder: Holds ``general.yaml``, which has no kinds, and any number of others.

    Raises:
        DataError: Naming the file: one that is no rubric, a kind that two files have, no general one.
    """
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    rubrics = {file.name.removesuffix(".yaml"): _read(file) for file in files}
    if _GENERAL not in rubrics:
        raise DataError(str(folder), None, f"there is no {_GENERAL}.yaml, for requests of unknown kinds")
    by_kind: dict[str, KindRubric] = {}
    for name, rubric in rubrics.items():
        for kind in rubric.kinds:
            if kind in by_kind:
                raise DataError(f"{name}.yaml", None, f"kinds: {kind} has a rubric in another file")
            by_kind[kind] = rubric
    return KindRubrics(rubrics[_GENERAL], by_kind)


def _read(file: Traversable) -> KindRubric:
    try:
        return KindRubric.model_validate(yaml.safe_load(file.read_text("utf-8")))
    except yaml.YAMLError as error:
        raise DataError(file.name, None, f"it is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(file.name, None, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
