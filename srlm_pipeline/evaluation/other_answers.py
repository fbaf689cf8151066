"""Another model's answers from a file, as AlpacaEval writes them, so that they can meet the loop's models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, model_validator

from srlm_pipeline.config import DataSettings, SourceSettings
from srlm_pipeline.data.reading import Filled
from srlm_pipeline.data.sources import open_source
from srlm_pipeline.errors import DataError
from srlm_pipeline.store import is_own_name
from srlm_pipeline.tables import REPLIES, check_table

_LONGEST_NAME = 100


class AnswerRow(BaseModel):
    """One answer; `prompt` may stand for `instruction`, other fields are ignored."""

    instruction: Filled
    output: str
    generator: Filled

    @model_validator(mode="before")
    @classmethod
    def _either_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "instruction" not in value:
            if "prompt" not in value:
                raise ValueError("there is neither `instruction` nor `prompt`")
            return {**value, "instruction": value["prompt"]}
        return value


@dataclass(frozen=True)
class OtherAnswers:
    """One model's answers to the evaluation prompts.

    Attributes:
        model: As the file calls it.
        replies: Table `REPLIES`, in the order of the evaluation prompts, without those that are not answered. The file
            does not say what ended a reply: ``stop``.
        n_prompts: Evaluation prompts.
        n_elsewhere: Answers in the file to prompts that are not among them.
        n_repeated: Further answers to a prompt; the first counts.
    """

    model: str
    replies: pd.DataFrame
    n_prompts: int
    n_elsewhere: int
    n_repeated: int

    def met_by(self, replies: pd.DataFrame) -> pd.DataFrame:
        """Return another model's replies to the prompts that this one answers, in the same order.

        Args:
            replies: Table `REPLIES` of a model that answered all evaluation prompts.
        """
        order = self.replies["prompt_id"].tolist()
        return replies.set_index("prompt_id", drop=False).loc[order].reset_index(drop=True)


def read_other_answers(path: Path, prompts: pd.DataFrame, count_tokens: Callable[[str], int]) -> list[OtherAnswers]:
    """Read a file of answers: a JSON array (.json) or JSON Lines, of one model or several.

    Prompts are the same if their words are; blanks do not matter.

    Args:
        path: The file.
        prompts: Table `EVALUATION_PROMPTS`.
        count_tokens: Tokens of a text, by the tokenizer that counts the loop's own replies.

    Returns:
        One entry per model, in the order of the file.

    Raises:
        DataError: With file, place and field where it cannot be used; also if a model answers no evaluation prompt, or
            has a name of the project's own.
    """
    return [_of_model(path, model, given, prompts, count_tokens) for model, given in _answers(path).items()]


def require_names(paths: Sequence[Path]) -> list[str]:
    """Return whose answers the files hold, once it is clear that nobody is taken for somebody else.

    This can be asked before there are models or prompts, so that no work is done in vain.

    Raises:
        DataError: If a file cannot be read, or two models' names cannot be told apart.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in paths:
        for model in _answers(path):
            same = re.sub(r"\W", "-", model).casefold()
            if same in found:
                other, elsewhere = found[same]
                raise DataError(
                    path,
                    None,
                    f"answers of {model!r} cannot be told from those of {other!r} in {elsewhere}, which count as the "
                    "same name: change one `generator`",
                )
            found[same] = model, path
    return [model for model, _ in found.values()]


def _answers(path: Path) -> dict[str, list[AnswerRow]]:
    """Return a file's rows by model."""
    if not path.is_file():
        raise DataError(path, None, "there is no such file of answers")
    absolute = path.resolve()
    report, rows = open_source(SourceSettings(source=str(absolute)), absolute, DataSettings())
    answers: dict[str, list[AnswerRow]] = {}
    for number, content in rows:
        row = report.validated(number, AnswerRow, content)
        if row is not None:
            answers.setdefault(row.generator, []).append(row)
    if not answers:
        raise DataError(path, None, "holds no answers")
    for model in answers:
        if is_own_name(model):
            raise DataError(
                path, None, f"`generator` is {model!r}, which is a name of the project's own: call this model otherwise"
            )
        if len(model) > _LONGEST_NAME:
            raise DataError(path, None, f"`generator` has {len(model)} characters, more than {_LONGEST_NAME}")
    return answers


def _of_model(
    path: Path, model: str, given: list[AnswerRow], prompts: pd.DataFrame, count_tokens: Callable[[str], int]
) -> OtherAnswers:
    asked = {_words(prompt) for prompt in prompts["prompt"]}
    first: dict[str, str] = {}
    n_elsewhere = n_repeated = 0
    for row in given:
        words = _words(row.instruction)
        if words not in asked:
            n_elsewhere += 1
        elif words in first:
            n_repeated += 1
        else:
            first[words] = row.output
    if not first:
        raise DataError(
            path,
            None,
            f"none of the {len(prompts)} evaluation prompts is among the {len(given)} that {model} answers; "
            "data.evaluation_prompts must name the prompts that were put to it",
        )
    answered = prompts[[_words(prompt) in first for prompt in prompts["prompt"]]]
    texts = [first[_words(prompt)] for prompt in answered["prompt"]]
    table = pd.DataFrame(
        {
            "model": model,
            "prompt_id": answered["id"].tolist(),
            "prompt": answered["prompt"].tolist(),
            "reply": texts,
            "n_tokens": [count_tokens(text) for text in texts],
            "finish_reason": "stop",
        }
    )
    return OtherAnswers(model, check_table(table, REPLIES), len(prompts), n_elsewhere, n_repeated)


def _words(prompt: str) -> str:
    return " ".join(prompt.split())
