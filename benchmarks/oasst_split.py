"""Open Assistant's ranked replies and instruction pairs, cut into parts that never meet.

Prompts are put in the order of a hash, as the pipeline itself splits them, so that its held-out prompts are exactly
the first part. A few of the package's graded replies are beside Open Assistant's in what a judge learns from: people
rank by length and manner so often that a small model learns nothing else from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

# Groups of ranked replies: held out for measuring judges, for EFT, for choosing settings; the rest trains the arbiter.
HELD_OUT, EFT, DEVELOPMENT = 150, 200, 100
# The package's graded groups: beside Open Assistant's for EFT and for the arbiter; the rest measures judges.
GRADED_EFT, GRADED_ARBITER = 40, 25
IFT, EVALUATION, MT_BENCH = 512, 250, 80


@dataclass(frozen=True)
class Parts:
    """Files of the parts.

    Attributes:
        ift: Instruction pairs.
        ranked: Groups for EFT, graded ones among them, and, as the share `held_out_fraction`, held-out ones.
        evaluation: Prompts for head-to-head comparison.
        development: Groups for choosing settings.
        arbiter: Groups that only the arbiter learns from, graded ones among them.
        graded: Graded groups that nobody learns from.
        held_out_fraction: Of `ranked`.
    """

    ift: Path
    ranked: Path
    evaluation: Path
    development: Path
    arbiter: Path
    graded: Path
    held_out_fraction: float = HELD_OUT / (HELD_OUT + EFT + GRADED_EFT)


def write_parts(data: Path, folder: Path, smoke: bool = False) -> Parts:
    """Cut the data and write the parts.

    Args:
        data: Folder with ``oasst/`` and ``mt-bench/``.
        folder: Where the parts are written.
        smoke: A tenth of everything.
    """
    share = 10 if smoke else 1
    groups = [_group(row) for row in read_jsonl(data / "oasst" / "eft_groups.jsonl")]
    groups = _by_hash([group for group in groups if len(group["replies"]) > 1])
    groups = groups[: len(groups) // share]
    held_out, eft, development = (n // share for n in (HELD_OUT, EFT, DEVELOPMENT))
    graded_eft, graded_arbiter = GRADED_EFT // share, GRADED_ARBITER // share
    graded = _graded_after(groups[held_out - 1]["prompt"])
    pairs = _by_hash(read_jsonl(data / "oasst" / "ift_pairs.jsonl"))
    ift, evaluation, mt_bench = (n // share for n in (IFT, EVALUATION, MT_BENCH))
    questions = read_jsonl(data / "mt-bench" / "question.jsonl")[:mt_bench]
    unseen = pairs[ift : ift + evaluation - len(questions)]
    prompts = [
        *({"id": f"mt-bench-{q['question_id']}", "kind": "mt-bench", "prompt": q["turns"][0]} for q in questions),
        *({"id": f"oasst-{n:04d}", "kind": "oasst", "prompt": row["prompt"]} for n, row in enumerate(unseen)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return Parts(
        ift=_write(folder / "ift.jsonl", pairs[:ift]),
        ranked=_write(folder / "ranked.jsonl", [*groups[: held_out + eft], *graded[:graded_eft]]),
        evaluation=_write(folder / "evaluation.jsonl", prompts),
        development=_write(folder / "development.jsonl", groups[held_out + eft : held_out + eft + development]),
        arbiter=_write(
            folder / "arbiter.jsonl",
            [*groups[held_out + eft + development :], *graded[graded_eft : graded_eft + graded_arbiter]],
        ),
        graded=_write(folder / "graded.jsonl", graded[graded_eft + graded_arbiter :][::share]),
    )


def _graded_after(last_held_out: str) -> list[dict[str, Any]]:
    """Return the package's graded groups by hash, but first those that the pipeline cannot hold out."""
    from srlm_pipeline.data.loaders import prompt_hash

    rows = read_jsonl(resources.files("srlm_pipeline.data.seed").joinpath("ranked_replies.jsonl"))
    groups = _by_hash([_group(row) for row in rows])
    return sorted(groups, key=lambda group: prompt_hash(group["prompt"]) <= prompt_hash(last_held_out))


def _group(row: dict[str, Any]) -> dict[str, Any]:
    """Keep what the pipeline reads; of replies with the same text the best, and none without a text."""
    texts: dict[str, int] = {}
    for reply in sorted(row["replies"], key=lambda reply: reply["rank"]):
        texts.setdefault(reply["text"].strip(), reply["rank"])
    replies = [{"text": text, "rank": rank} for text, rank in texts.items() if text]
    return {"id": row.get("prompt_id") or row["id"], "prompt": row["prompt"], "replies": replies}


def _by_hash(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in the order of a hash of their prompts, the first of those with the same prompt."""
    from srlm_pipeline.data.loaders import prompt_hash

    found: dict[bytes, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(prompt_hash(row["prompt"]), row)
    return [found[digest] for digest in sorted(found)]


def read_jsonl(path: Traversable) -> list[dict[str, Any]]:
    """Return the objects of a file with one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(path: Path, rows: Any) -> Path:
    from srlm_pipeline.files import replacing_file

    with replacing_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
