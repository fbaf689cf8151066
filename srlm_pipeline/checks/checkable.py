"""What a program can check of the replies to one invented prompt: its instructions, or the answer to its task.

Written into tables as JSON, so that a prompt's checks stay with it:
``{"instructions": [{"kind": ..., "arguments": {...}, "wording": ...}]}`` or ``{"kind": ..., "answers": [...],
"wrong": [...]}``, each with the ``level`` of difficulty at which it was drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from srlm_pipeline.checks.closed_tasks import ClosedTask, is_right
from srlm_pipeline.checks.instructions import KINDS
from srlm_pipeline.checks.verifiable import Instruction
from srlm_pipeline.checks.vital_signs import WRECKS, Exchange, read_signs

# Right answers to short questions are much alike, and have words of the question.
_WRECKED_ANSWERS = frozenset({"loops", "empty"})


@dataclass(frozen=True)
class Checked:
    """One thing that a reply is checked for.

    Attributes:
        kind: Of the instruction or task.
        level: Of difficulty at which it was drawn, from 1.
        passed: Whether the reply passes.
    """

    kind: str
    level: int
    passed: bool


@dataclass(frozen=True)
class DrawnInstruction:
    """A verifiable instruction at a level of difficulty.

    Attributes:
        instruction: What is checked.
        level: From 1.
        wording: The sentence of the prompt that asks for it; empty where it is not known.
    """

    instruction: Instruction
    level: int
    wording: str = ""


@dataclass(frozen=True)
class DrawnTask:
    """A closed task at a level of difficulty.

    Attributes:
        task: Question and answers.
        level: From 1.
    """

    task: ClosedTask
    level: int


Checks = tuple[DrawnInstruction, ...] | DrawnTask


def check(checks: Checks, prompt: str, reply: str) -> list[Checked]:
    """Check a reply for everything that its prompt asks for; one that loops, copies its prompt or is empty fails all.

    Args:
        checks: Of the prompt.
        prompt: The user's message.
        reply: To it.
    """
    (signs,) = read_signs([Exchange(prompt, reply)])
    if isinstance(checks, DrawnTask):
        right = not signs & _WRECKED_ANSWERS and is_right(checks.task, reply)
        return [Checked(checks.task.kind, checks.level, right)]
    fit = not signs & frozenset(WRECKS)
    return [Checked(d.instruction.kind.name, d.level, fit and d.instruction.follows(reply)) for d in checks]


def write_checks(checks: Checks) -> str:
    """Return checks as a table holds them."""
    if isinstance(checks, DrawnTask):
        task = checks.task
        content: dict[str, Any] = {
            "kind": task.kind,
            "answers": list(task.answers),
            "wrong": list(task.wrong),
            "level": checks.level,
        }
    else:
        content = {
            "instructions": [
                {
                    "kind": drawn.instruction.kind.name,
                    "arguments": drawn.instruction.arguments.model_dump(mode="json"),
                    "level": drawn.level,
                    "wording": drawn.wording,
                }
                for drawn in checks
            ]
        }
    return json.dumps(content, ensure_ascii=False)


def read_checks(text: str, prompt: str) -> Checks | None:
    """Return the checks that a table holds of a prompt; None for a blank text, which says that there are none.

    Args:
        text: As `write_checks` wrote it.
        prompt: The user's message.

    Raises:
        KeyError: If a kind of instruction is not known any more.
        ValueError: If the text is something else.
    """
    if not text:
        return None
    content = json.loads(text)
    if "instructions" not in content:
        task = ClosedTask("", content["kind"], prompt, tuple(content["answers"]), tuple(content["wrong"]))
        return DrawnTask(task, content["level"])
    return tuple(
        DrawnInstruction(draw_instruction(one["kind"], one["arguments"]), one["level"], one.get("wording", ""))
        for one in content["instructions"]
    )


def checks_of(prompts: pd.DataFrame) -> Mapping[str, Checks]:
    """Return the checks of a table's prompts, by their text; prompts without any are left out.

    Args:
        prompts: Table `GENERATED_PROMPTS`.
    """
    read = {row.prompt: read_checks(row.checks, row.prompt) for row in prompts.itertuples()}
    return {prompt: checks for prompt, checks in read.items() if checks is not None}


def draw_instruction(kind: str, arguments: dict[str, Any]) -> Instruction:
    """Return an instruction of a known kind.

    Raises:
        KeyError: If the kind is not known.
        ValueError: If the arguments are not what the kind takes.
    """
    known = KINDS[kind]
    return Instruction(known, known.arguments.model_validate(arguments))
