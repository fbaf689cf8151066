"""Prompts with verifiable instructions, read from JSONL in IFEval's own format or from the embedded set.

A row has ``key``, ``prompt``, ``instruction_id_list`` and ``kwargs`` (one object per instruction; nulls in it, as in
the hub's copy of the set, mean nothing).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from srlm_pipeline.checks.instructions import KINDS, Kind
from srlm_pipeline.checks.samples import balanced_sample
from srlm_pipeline.config import DataSettings, SourceSettings, VerifiableSettings
from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.data.sources import digest_source, open_source
from srlm_pipeline.errors import EmptyDataError

NO_PROMPTS = "none"
# The argument of the one kind of instruction that asks for a part of the prompt.
_REPEATED = "prompt_to_repeat"
Row = TypeVar("Row", bound=BaseModel)


@dataclass(frozen=True)
class Instruction:
    """One verifiable instruction of a prompt.

    Attributes:
        kind: What is checked.
        arguments: What the instruction says, validated.
    """

    kind: Kind
    arguments: BaseModel

    def follows(self, reply: str) -> bool:
        """Tell whether a reply follows it; a blank one follows nothing."""
        return bool(reply.strip()) and self.kind.follows(reply, **dict(self.arguments))


@dataclass(frozen=True)
class VerifiablePrompt:
    """A prompt and the instructions in it that are checked.

    Attributes:
        key: Names the prompt; unique.
        prompt: The user's message.
        instructions: At least one.
    """

    key: str
    prompt: str
    instructions: tuple[Instruction, ...]

    @property
    def repeatable(self) -> str:
        """The part of the prompt that a reply is asked to repeat; blank if there is none."""
        asked = (getattr(instruction.arguments, _REPEATED, "") for instruction in self.instructions)
        return next(filter(None, asked), "")


# Pydantic's plugin for mypy gives every model's constructor an argument `kwargs` of its own.
class _Row(BaseModel):  # type: ignore[no-redef]
    key: int | str
    prompt: str = Field(pattern=r"\S")
    instruction_id_list: list[str] = Field(min_length=1)
    kwargs: list[dict[str, Any]]


def load_verifiable(settings: VerifiableSettings) -> tuple[VerifiablePrompt, ...]:
    """Return the prompts that the settings name, in the order of the file; none where they are switched off.

    A limit takes them from all kinds of instruction in turn, by each prompt's first.

    Raises:
        DataError: Naming file, line and field: of an unknown kind of instruction, of arguments that are missing,
            wrong or too many, and of a key or prompt that was there before.
        EmptyDataError: If the source has no rows.
    """
    if settings.source == NO_PROMPTS:
        return ()
    report, rows = open_source(SourceSettings(source=settings.source), _embedded(), DataSettings())
    prompts: list[VerifiablePrompt] = []
    seen: dict[tuple[str, str], int] = {}
    for number, content in rows:
        row = _validated(report, number, _Row, content)
        for field, value in (("key", str(row.key)), ("prompt", row.prompt)):
            if (before := seen.setdefault((field, value), number)) != number:
                raise report.error(number, f"{field}: the same as in {report.unit} {before}")
        prompts.append(VerifiablePrompt(str(row.key), row.prompt, _instructions(row, number, report)))
    if not prompts:
        raise EmptyDataError(f"{report.name} has no prompts with verifiable instructions")
    return balanced_sample(prompts, lambda prompt: prompt.instructions[0].kind.name, settings.limit)


def verifiable_digest(settings: VerifiableSettings) -> str:
    """Return a digest of the prompts' source, so that an edited file makes what was measured with it stale."""
    return "" if settings.source == NO_PROMPTS else digest_source(SourceSettings(source=settings.source), _embedded())


def _instructions(row: _Row, number: int, report: RowReport) -> tuple[Instruction, ...]:
    names, arguments = row.instruction_id_list, row.kwargs
    if len(names) != len(arguments):
        raise report.error(number, f"kwargs: {len(arguments)} for {len(names)} instructions")
    return tuple(
        _instruction(name, given, place, number, report)
        for place, (name, given) in enumerate(zip(names, arguments, strict=True))
    )


def _instruction(name: str, given: dict[str, Any], place: int, number: int, report: RowReport) -> Instruction:
    if name not in KINDS:
        reason = f"unknown kind of instruction {name!r}; {_nearest(name, list(KINDS))}"
        raise report.error(number, f"instruction_id_list.{place}: {reason}")
    kind = KINDS[name]
    meant = {key: value for key, value in given.items() if value is not None}
    known = kind.arguments.model_fields
    for key in meant:
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes nothing"
            raise report.error(number, f"kwargs.{place}.{key}: {name} {takes}")
    return Instruction(kind, _validated(report, number, kind.arguments, meant, f"kwargs.{place}"))


def _validated(report: RowReport, number: int, row_type: type[Row], content: dict[str, Any], within: str = "") -> Row:
    row = report.validated(number, row_type, content, within)
    assert row is not None, "broken rows are not skipped here"
    return row


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]!r}?" if found else f"known are {', '.join(known)}"


def _embedded() -> Path:
    return Path(str(resources.files("srlm_pipeline.data.seed").joinpath("verifiable.jsonl")))


@dataclass(frozen=True)
class ReplyCheck:
    """What one reply follows, per instruction of its prompt.

    Attributes:
        strict: Of the reply as it is.
        loose: Of any of its variants; true wherever `strict` is.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def check_reply(prompt: VerifiablePrompt, reply: str) -> ReplyCheck:
    """Check every instruction of a prompt.

    Args:
        prompt: With its instructions.
        reply: To that prompt.
    """
    strict = tuple(instruction.follows(reply) for instruction in prompt.instructions)
    variants = _variants(reply)
    loose = tuple(
        as_it_is or any(instruction.follows(variant) for variant in variants)
        for instruction, as_it_is in zip(prompt.instructions, strict, strict=True)
    )
    return ReplyCheck(strict, loose)


def _variants(reply: str) -> list[str]:
    """Return the other forms that count in the loose figures, each once."""
    lines = reply.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return list(dict.fromkeys(form.replace("*", "") for form in [reply, *shorter]) | dict.fromkeys(shorter))
