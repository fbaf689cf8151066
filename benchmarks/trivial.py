"""What replies that say nothing get for it: verifiable instructions and closed tasks that they meet by accident."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.table import fill_blocks, markdown_table

DOCUMENT = ROOT / "docs" / "evaluation.md"
GROUPS = Path("oasst", "eft_groups.jsonl")
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
        followed: Share of verifiable instructions, as models are measured.
        unguarded: The same if nothing were flagged.
        solved: Share of closed tasks, as models are measured.
    """

    followed: float
    unguarded: float
    solved: float


def measure(name: str) -> Trivial:
    """Return what a trivial reply gets in the sets of the package."""
    from srlm_pipeline.checks.closed_tasks import is_right, load_closed_tasks
    from srlm_pipeline.checks.verifiable import load_verifiable
    from srlm_pipeline.checks.vital_signs import WRECKS, Exchange, read_signs
    from srlm_pipeline.config import VerifiableSettings
    from srlm_pipeline.evaluation.verifiable_accuracy import shares_followed, verifiable_table

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

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with human replies")
    args = parser.parse_args()
    blocks = {"trivial": table()}
    if (args.data / GROUPS).is_file():
        blocks["people"] = people(args.data)
    filled = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), blocks, keep=True)
    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def table() -> str:
    """Return what every trivial reply gets, as Markdown."""
    found = {name: measure(name) for name in REPLIES}
    rows = [[name, f"{t.followed:.1%}", f"{t.unguarded:.1%}", f"{t.solved:.1%}"] for name, t in found.items()]
    return markdown_table(
        ["reply to everything", "instructions followed", "were nothing flagged", "tasks solved"], rows
    )


def people(data: Path) -> str:
    """Return, as Markdown, which signs replies show that people wrote: a scale to read models' figures by.

    Args:
        data: Folder with Open Assistant's ranked replies.
    """
    from srlm_pipeline.checks.vital_signs import SIGNS, Exchange, read_signs
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_evaluation_prompts

    lines = (data / GROUPS).read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line) for line in lines if line.strip()]
    ordered = [(g["prompt"], sorted(g["replies"], key=lambda reply: reply["rank"])) for g in groups]
    written = load_evaluation_prompts(DataSettings()).table
    sides = {
        f"Open Assistant, the best of each of {len(groups)} prompts": [(p, r[0]["text"]) for p, r in ordered],
        "Open Assistant, the worst": [(p, r[-1]["text"]) for p, r in ordered],
        f"the package's {len(written)} reference replies": list(
            zip(written["prompt"], written["reference"], strict=True)
        ),
    }
    rows = []
    for name, pairs in sides.items():
        found = read_signs([Exchange(prompt, reply) for prompt, reply in pairs], SYSTEM_PROMPT)
        rows.append([name, *(f"{sum(sign in signs for signs in found) / len(found):.1%}" for sign in SIGNS)])
    return markdown_table(["replies", *(sign.replace("_", " ") for sign in SIGNS)], rows)


if __name__ == "__main__":
    main()
