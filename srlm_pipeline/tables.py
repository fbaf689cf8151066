"""The tables that stages hand to each other: declared once, checked whenever written or read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pyarrow import ArrowInvalid

from srlm_pipeline.errors import TableError
from srlm_pipeline.files import replacing_file

_SCORE_RANGE = pa.Check.in_range(0, 5)
_NOT_NEGATIVE = pa.Check.ge(0)
_FINISH_REASON = pa.Check.isin(["stop", "length"])
_NOT_BLANK = pa.Check(lambda text: text.str.strip() != "", name="not blank", error="is blank")


def _text(nullable: bool = False, filled: bool = False) -> pa.Column:
    return pa.Column(str, _NOT_BLANK if filled else None, nullable=nullable)


def _tokens() -> pa.Column:
    """Token ids that were drawn, as a JSON list; null where they are not known. Earlier versions' tables lack them."""
    return pa.Column(str, nullable=True, required=False)


def _schema(
    name: str, columns: dict[str, pa.Column], unique: list[str], rows: pa.Check | None = None
) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, rows, name=name, strict=True, coerce=True, unique=unique, ordered=True)


INSTRUCTIONS = _schema(
    "instructions",
    {"id": _text(filled=True), "kind": _text(), "prompt": _text(filled=True), "response": _text(filled=True)},
    ["id"],
)
RANKED_REPLIES = _schema(
    "ranked_replies",
    {
        "group_id": _text(filled=True),
        "split": pa.Column(str, pa.Check.isin(["train", "held_out"])),
        "kind": _text(),
        "prompt": _text(filled=True),
        "rank": pa.Column("int64", _NOT_NEGATIVE),
        "text": _text(filled=True),
        "score": pa.Column("float64", _SCORE_RANGE, nullable=True),
        "rationale": _text(nullable=True),
    },
    ["group_id", "text"],
)
EFT = _schema(
    "eft",
    {
        "group_id": _text(filled=True),
        "prompt": _text(filled=True),
        "rank": pa.Column("int64", _NOT_NEGATIVE),
        "text": _text(filled=True),
        "score": pa.Column("float64", _SCORE_RANGE, nullable=True),
        "judgement": _text(nullable=True),
    },
    ["group_id", "text"],
)
EVALUATION_PROMPTS = _schema(
    "evaluation_prompts",
    {
        "id": _text(filled=True),
        "kind": _text(),
        "prompt": _text(filled=True),
        # A good reply, where the data has one.
        "reference": _text(nullable=True),
    },
    ["id"],
)
GENERATED_PROMPTS = _schema(
    "generated_prompts",
    {
        "prompt_id": _text(filled=True),
        "prompt": _text(filled=True),
        # few_shot: invented from the examples `parent_ids`; else made out of the one prompt there, or by program.
        "operator": pa.Column(
            str, pa.Check.isin(["few_shot", "deepen", "concretise", "broaden", "constrain", "given", "task"])
        ),
        # How many operators lie between it and an invention.
        "round": pa.Column("int64", _NOT_NEGATIVE),
        "parent_ids": _text(),
        # What a program checks of its replies, as `checkable.write_checks` writes it; blank if nothing.
        "checks": _text(),
        "nearest_rouge_l": pa.Column("float64", pa.Check.in_range(0, 1)),
        "n_words": pa.Column("int64", _NOT_NEGATIVE),
    },
    ["prompt_id"],
)
REFUSED_PROMPTS = _schema(
    "refused_prompts",
    {"attempt": pa.Column("int64", _NOT_NEGATIVE), "reason": _text(filled=True), "prompt": _text()},
    ["attempt"],
)
CANDIDATES = _schema(
    "candidates",
    {
        "prompt_id": _text(filled=True),
        "sample": pa.Column("int64", _NOT_NEGATIVE),
        "prompt": _text(filled=True),
        "completion": _text(),
        "n_tokens": pa.Column("int64", _NOT_NEGATIVE),
        "finish_reason": pa.Column(str, _FINISH_REASON),
        # What is wrong with it at first sight, as `vital_signs.name_signs` writes it; blank if nothing.
        "signs": _text(),
        "seed": pa.Column("int64", _NOT_NEGATIVE),
        "token_ids": _tokens(),
    },
    ["prompt_id", "sample"],
)
JUDGED_SCORES = _schema(
    "judged_scores",
    {
        "prompt_id": _text(filled=True),
        "sample": pa.Column("int64", _NOT_NEGATIVE),
        "prompt": _text(filled=True),
        "completion": _text(),
        "n_tokens": pa.Column("int64", _NOT_NEGATIVE),
        "finish_reason": pa.Column(str, _FINISH_REASON),
        "signs": _text(),
        "judge": _text(filled=True),
        "score": pa.Column("float64", _SCORE_RANGE, nullable=True),
        "n_valid": pa.Column("int64", _NOT_NEGATIVE),
        "n_invalid": pa.Column("int64", _NOT_NEGATIVE),
        "spread": pa.Column("float64", _NOT_NEGATIVE, nullable=True),
        # Standard deviation between the judges of a panel.
        "disagreement": pa.Column("float64", _NOT_NEGATIVE, nullable=True),
        # Where verifiers judged along: share of the prompt's checks that are passed, and what the others think.
        "passed": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True),
        "opinion": pa.Column("float64", _SCORE_RANGE, nullable=True),
        "raw": _text(),
        "token_ids": _tokens(),
    },
    ["prompt_id", "sample"],
)
PREFERENCE_PAIRS = _schema(
    "preference_pairs",
    {
        "prompt_id": _text(filled=True),
        "prompt": _text(filled=True),
        "strategy": pa.Column(str, pa.Check.isin(["best_worst", "positive_only"])),
        "length_control": pa.Column("float64", pa.Check.in_range(0, 0.5)),
        "min_margin": pa.Column("float64", _NOT_NEGATIVE),
        "chosen_sample": pa.Column("int64", _NOT_NEGATIVE),
        # A positive example has nothing that it was preferred to.
        "rejected_sample": pa.Column("Int64", _NOT_NEGATIVE, nullable=True),
        "chosen": _text(filled=True),
        "rejected": _text(filled=True, nullable=True),
        "chosen_finish_reason": pa.Column(str, _FINISH_REASON),
        "rejected_finish_reason": pa.Column(str, _FINISH_REASON, nullable=True),
        "chosen_score": pa.Column("float64", _SCORE_RANGE),
        "rejected_score": pa.Column("float64", _SCORE_RANGE, nullable=True),
        "margin": pa.Column("float64", nullable=True),
        # Share of the checks that each passes, where verifiers judged along.
        "chosen_passed": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True),
        "rejected_passed": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True),
        # What was wrong with the rejected reply, where that is why it was rejected.
        "rejected_for": _text(),
        "judge": _text(filled=True),
        "chosen_token_ids": _tokens(),
        "rejected_token_ids": _tokens(),
    },
    ["prompt_id", "chosen_sample"],
    # An unfit reply may have had a better score.
    pa.Check(lambda pairs: pairs["margin"].isna() | (pairs["margin"] > 0) | (pairs["rejected_for"] != "")),
)
REPLIES = _schema(
    "replies",
    {
        "model": _text(filled=True),
        "prompt_id": _text(filled=True),
        "prompt": _text(filled=True),
        "reply": _text(),
        "n_tokens": pa.Column("int64", _NOT_NEGATIVE),
        "finish_reason": pa.Column(str, _FINISH_REASON),
    },
    ["model", "prompt_id"],
)
# Every sign of `vital_signs` is a column of its own.
ASSESSED_REPLIES = _schema(
    "assessed_replies",
    {
        "model": _text(filled=True),
        "part": pa.Column(str, pa.Check.isin(["evaluation", "verifiable", "closed"])),
        "prompt_id": _text(filled=True),
        "kind": _text(),
        "prompt": _text(filled=True),
        "reply": _text(),
        "n_tokens": pa.Column("int64", _NOT_NEGATIVE),
        "finish_reason": pa.Column(str, _FINISH_REASON),
        "loops": pa.Column(bool),
        "echoes": pa.Column(bool),
        "recites": pa.Column(bool),
        "empty": pa.Column(bool),
        "refuses": pa.Column(bool),
        "other_language": pa.Column(bool),
        # To the reference reply, where there is one and a sentence encoder.
        "nearness": pa.Column("float64", pa.Check.in_range(-1.001, 1.001), nullable=True),
        # Of closed tasks: 1 right, 0 wrong.
        "right": pa.Column("float64", pa.Check.isin([0.0, 1.0]), nullable=True),
    },
    ["part", "prompt_id"],
)
LIKELIHOOD = _schema(
    "likelihood",
    {
        "model": _text(filled=True),
        "group_id": _text(filled=True),
        "nats": pa.Column("float64"),
        "n_tokens": pa.Column("int64", pa.Check.gt(0)),
    },
    ["group_id"],
)
VITAL_SIGNS = _schema(
    "vital_signs",
    {
        "model": _text(filled=True),
        "measure": _text(filled=True),
        "value": pa.Column("float64", nullable=True),
        "low": pa.Column("float64", nullable=True),
        "high": pa.Column("float64", nullable=True),
        "n": pa.Column("int64", _NOT_NEGATIVE),
        # Why it was not measured; blank if it was.
        "note": _text(),
    },
    ["model", "measure"],
)
WIN_RATES = _schema(
    "win_rates",
    {
        "prompt_id": _text(filled=True),
        "opponent": _text(filled=True),
        "order": pa.Column(str, pa.Check.isin(["model_first", "opponent_first"])),
        "verdict": pa.Column(str, pa.Check.isin(["win", "tie", "loss"])),
        "preference": pa.Column("float64"),
        # Of every juror: name, weight, and preference before the jurors were combined, null for no opinion (JSON list).
        "opinions": _text(filled=True),
    },
    ["prompt_id", "opponent", "order"],
)
JUDGE_ACCURACY = _schema(
    "judge_accuracy",
    {
        "model": _text(filled=True),
        "group_id": _text(filled=True),
        "rank": pa.Column("int64", _NOT_NEGATIVE),
        "n_characters": pa.Column("int64", _NOT_NEGATIVE),
        "score": pa.Column("float64", _SCORE_RANGE, nullable=True),
    },
    [],
)
VERIFIABLE = _schema(
    "verifiable",
    {
        "model": _text(filled=True),
        "key": _text(filled=True),
        "prompt": _text(filled=True),
        "reply": _text(),
        # Comma-separated kinds, one per instruction; `failed` are those of them that were not followed, strictly.
        "instructions": _text(filled=True),
        "n_instructions": pa.Column("int64", pa.Check.ge(1)),
        "n_strict": pa.Column("int64", _NOT_NEGATIVE),
        "n_loose": pa.Column("int64", _NOT_NEGATIVE),
        "failed": _text(),
    },
    ["model", "key"],
)
MONITORS = _schema(
    "monitors",
    {
        "name": _text(filled=True),
        # Null where something could not be measured.
        "passed": pa.Column("boolean", nullable=True),
        "value": pa.Column("float64", nullable=True),
        "threshold": pa.Column("float64"),
        "explanation": _text(filled=True),
    },
    ["name"],
)


def check_table(table: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Return the table with the declared columns and types.

    Raises:
        TableError: With one sentence per violation.
    """
    cut = _fractions(table, schema)
    if cut:
        raise TableError(str(schema.name), cut)
    try:
        wanted = [name for name, column in schema.columns.items() if column.required or name in table]
        return schema.validate(table[wanted], lazy=True)
    except KeyError as error:
        raise TableError(str(schema.name), [f"column missing: {error}"]) from error
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.head(5)
        problems = [f"{c.column}: {c.check} fails at row {c.index} ({c.failure_case!r})" for c in cases.itertuples()]
        raise TableError(str(schema.name), problems) from error


def _fractions(table: pd.DataFrame, schema: pa.DataFrameSchema) -> list[str]:
    """Name the fractions that coercion to whole numbers would silently cut off."""
    whole = [name for name, column in schema.columns.items() if str(column.dtype) == "int64" and name in table]
    problems = []
    for name in whole:
        broken = table[name][pd.to_numeric(table[name], errors="coerce") % 1 > 0]
        problems += [f"{name}: {value!r} at row {row} is not a whole number" for row, value in broken.head(5).items()]
    return problems


def write_table(table: pd.DataFrame, schema: pa.DataFrameSchema, path: Path) -> None:
    """Check a table and write it as Parquet, atomically.

    Raises:
        TableError: If it breaks its schema.
    """
    checked = check_table(table, schema)
    with replacing_file(path) as temporary:
        checked.to_parquet(temporary, index=False)


def read_table(schema: pa.DataFrameSchema, path: Path) -> pd.DataFrame:
    """Read a Parquet table and check it.

    Raises:
        TableError: If it is missing, damaged, or breaks its schema.
    """
    if not path.is_file():
        raise TableError(str(schema.name), [f"there is no {path}; materialize its asset first"])
    try:
        table = pd.read_parquet(path)
    except (ArrowInvalid, OSError) as error:
        raise TableError(str(schema.name), [f"{path} cannot be read; materialize its asset again: {error}"]) from error
    return check_table(table, schema)
