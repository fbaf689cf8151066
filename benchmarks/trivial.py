"""What replies that say nothing get for it: checkable instructions and closed tasks that they meet by accident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.common import ROOT
from benchmarks.table import fill_blocks, markdown_table

DOCUMENT = ROOT / "docs" / "evaluation.md"
# SmolLM2's, as its chat template writes it.
SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
REPLIES: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "the prompt, copied": lambda prompt: prompt,
    "one word a hundred times": lambda _: " ".join(["SLOW"] * 100),
    "one polite sentence": lambda _: "Thank you for your question, I would be happy to help you with that today.",
    "the system prompt": lambda _: SYSTEM_PROMPT,
}


@dataclass(frozen=True)
class Trivial:
    """What one trivial reply to everything gets, in 0..1.

    Attributes:
        followed: Share of checkable instructions, as models are measured.
        unguarded: The same if nothing were flagged.
        solved: Share of closed tasks, as models are measured.
    """

    followed: float
    unguarded: float
    solved: float


def measure(name: str) -> Trivial:
    """Return what a trivial reply gets in the sets of the package."""
    from srlm_pipeline.config import VerifiableSettings
    from srlm_pipeline.evaluation.closed_tasks import is_right, load_closed_tasks
    from srlm_pipeline.evaluation.verifiable.prompts import load_verifiable
    from srlm_pipeline.evaluation.verifiable.scoring import shares_followed, verifiable_table
    from srlm_pipeline.evaluation.vital_signs import WRECKS, Exchange, read_signs

    prompts, tasks = load_verifiable(VerifiableSettings()), load_closed_tasks("embedded")
    reply = REPLIES[name]
    replies = [reply(prompt.prompt) for prompt in prompts]
    exchanges = [Exchange(p.prompt, text, repeatable=p.repeatable) for p, text in zip(prompts, replies, strict=True)]
    wrecked = [bool(signs & set(WRECKS)) for signs in read_signs(exchanges, SYSTEM_PROMPT)]
    followed, unguarded = (
        float(shares_followed(verifiable_table(name, prompts, replies, flags)).mean())
        for flags in (wrecked, [False] * len(prompts))
    )
    answers = [Exchange(task.prompt, reply(task.prompt)) for task in tasks]
    right = [
        not signs & set(WRECKS) and is_right(task, answer.reply)
        for task, answer, signs in zip(tasks, answers, read_signs(answers, SYSTEM_PROMPT), strict=True)
    ]
    return Trivial(followed, unguarded, sum(right) / len(right))


def main() -> None:
    from srlm_pipeline.files import replacing_file

    filled = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), {"trivial": table()}, keep=True)
    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def table() -> str:
    """Return what every trivial reply gets, as Markdown."""
    found = {name: measure(name) for name in REPLIES}
    rows = [[name, f"{t.followed:.1%}", f"{t.unguarded:.1%}", f"{t.solved:.1%}"] for name, t in found.items()]
    return markdown_table(
        ["reply to everything", "instructions followed", "were nothing flagged", "tasks solved"], rows
    )


if __name__ == "__main__":
    main()
