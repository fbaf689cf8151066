"""Where data comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from srlm_pipeline.config.sections import EMBEDDED_DATA, Section, path

FieldName = Literal[
    "id",
    "kind",
    "prompt",
    "response",
    "reference",
    "messages",
    "system",
    "replies",
    "ranks",
    "scores",
    "chosen",
    "rejected",
    "score",
    "winner",
    "preference",
]
# What says of several replies which is better; of the second kind, by itself.
_ORDERS, _VERDICTS = frozenset({"ranks", "scores", "winner", "preference"}), frozenset({"winner", "preference"})


class SourceSettings(Section):
    """Where one kind of data comes from and how it is written; `ift: FILE` is short for `ift: {source: FILE}`."""

    short_form = "source"

    source: str = path(
        EMBEDDED_DATA,
        description="embedded: the set in the package; else a file (.jsonl, .json, .csv, .tsv, .parquet; all but the "
        "last also .gz or .zst), a folder or a hub name that `datasets` loads",
    )
    format: Literal[
        "auto",
        "plain",
        "messages",
        "preferences",
        "rated_replies",
        "open_assistant_messages",
        "open_assistant_trees",
    ] = Field(
        "auto", description="auto: told by the first row's fields; plain: prompt with response, replies, or alone"
    )
    columns: dict[FieldName, str | tuple[str, ...]] = Field(
        {},
        description="which column holds a field, e.g. {prompt: instruction}; dots lead into nested ones, * through "
        'lists; "{a}\\n\\n{b}" joins columns; for replies, ranks and scores also a list of columns',
    )
    turns: Literal["first", "last", "each"] = Field(
        "first", description="of a chat: which of the assistant's turns are learned, each after what was said before"
    )
    score_range: tuple[float, float] | None = Field(
        None, description="lowest and highest possible score of ranked replies, which become 0 and 5"
    )
    subset: str | None = Field(None, description="of a folder or hub dataset")
    split: str = Field("train", description="of a folder or hub dataset")
    languages: tuple[str, ...] = Field(
        ("en",), description="of Open Assistant messages; pt stands for pt-BR too; []: all languages"
    )

    @field_validator("columns")
    @classmethod
    def _lists_and_orders(cls, value: dict[FieldName, str | tuple[str, ...]]) -> dict[FieldName, str | tuple[str, ...]]:
        for name, column in value.items():
            if not isinstance(column, str) and name not in ("replies", "ranks", "scores"):
                raise ValueError(f'{name}: a list is for replies, ranks and scores; "{{a}}\\n\\n{{b}}" joins columns')
        if "*" in value.get("replies", "") and not _ORDERS & value.keys():
            raise ValueError(
                "replies: nothing says which is better; name ranks or scores too, or list columns best first"
            )
        if _VERDICTS & value.keys() and len(_ORDERS & value.keys()) > 1:
            raise ValueError("winner or preference orders replies alone: name no other, nor ranks or scores")
        return value

    @field_validator("score_range")
    @classmethod
    def _low_and_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lowest score comes first, e.g. [1, 10]")
        return value


class DataSettings(Section):
    """Instruction, judging and evaluation data."""

    ift: SourceSettings = SourceSettings()
    ranked_replies: SourceSettings = SourceSettings()
    evaluation_prompts: SourceSettings = SourceSettings()
    bad_rows: Literal["fail", "skip"] = Field("fail", description="skip: rows that cannot be used are counted instead")
    include_unreviewed: bool = Field(
        False, description="use Open Assistant messages that no reviewer approved, written by models among them, too"
    )
    ranked_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of prompts that both ift and ranked_replies have, the share used for judging alone",
    )
    held_out_fraction: float = Field(0.35, gt=0, lt=1, description="share of judging prompts never trained on")
    ift_limit: int | None = Field(None, ge=1, description="use only the first so many pairs")
    ranked_limit: int | None = Field(None, ge=2, description="use only the first so many judging prompts")
    evaluation_limit: int | None = Field(None, ge=1, description="use only the first so many evaluation prompts")
