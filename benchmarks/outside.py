"""Rankings that have nothing to do with Open Assistant: has the judge learned its surface, or to judge?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.oasst_split import read_jsonl

if TYPE_CHECKING:
    import pandas as pd

# Shorter answers ("Yes", a label) are right for other tasks as well.
MIN_CHARACTERS = 20


def outside_rankings(data: Path, graded: Path, share: int = 1) -> dict[str, pd.DataFrame]:
    """Return the rankings by what they ask of a judge, as tables `RANKED_REPLIES`.

    Args:
        data: Folder with ``self-instruct/``.
        graded: Groups of the package's own graded replies that no judge has learned from: 14 kinds of tasks, four
            replies each, written to be told apart by quality.
        share: One in how many of the other groups is kept.
    """
    return {
        "four graded replies": read_ranked(graded),
        "own answer or another task's": ranked_table(answers_and_mismatches(data)[::share]),
    }


def answers_and_mismatches(data: Path) -> list[dict[str, Any]]:
    """Return Self-Instruct's seed tasks, each with its own answer and a mismatched one: the answer to another task.

    The mismatched one is the next longer answer and the next shorter one in turn, so that length says nothing.
    """
    tasks = read_jsonl(data / "self-instruct" / "seed_tasks.jsonl")
    tasks = [task for task in tasks if len(_answer(task)) >= MIN_CHARACTERS]
    tasks.sort(key=lambda task: (len(_answer(task)), task["id"]))
    groups = []
    for place, task in enumerate(tasks):
        mismatched = tasks[place + (1 if place % 2 == 0 and place + 1 < len(tasks) else -1)]
        groups.append(
            {
                "id": task["id"],
                "prompt": "\n\n".join(part for part in (task["instruction"], task["instances"][0]["input"]) if part),
                "replies": [{"rank": 0, "text": _answer(task)}, {"rank": 1, "text": _answer(mismatched)}],
            }
        )
    return groups


def read_ranked(path: Path) -> pd.DataFrame:
    """Return all groups of a file as table `RANKED_REPLIES`."""
    return ranked_table(read_jsonl(path))


def ranked_table(groups: list[dict[str, Any]]) -> pd.DataFrame:
    """Return groups of ranked replies as table `RANKED_REPLIES`; none is held out.

    Args:
        groups: With ``id``, ``prompt`` and ``replies`` (``rank``, ``text``).
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "group_id": group["id"],
            "split": "train",
            "kind": "",
            "prompt": group["prompt"],
            "rank": reply["rank"],
            "text": reply["text"],
            "score": None,
            "rationale": None,
        }
        for group in groups
        for reply in group["replies"]
    )


def _answer(task: dict[str, Any]) -> str:
    return str(task["instances"][0]["output"]).strip()
