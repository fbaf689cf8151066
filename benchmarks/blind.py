"""Sheets for readers who sit elsewhere: pairs of replies to be read blind, and the votes that come back.

`srlm read` shows the same pairs in a terminal. A sheet says nothing of who wrote what; that is drawn again, from
models, seed and reader, when the votes are taken.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gate import VOTES

if TYPE_CHECKING:
    from srlm_pipeline.evaluation.assessment import Assessment
    from srlm_pipeline.evaluation.readers import Pair, Written

_ANSWER = re.compile(r"^\s*(\d+)\s*[:.]\s*(A|B|=|tie)\s*$", re.IGNORECASE | re.MULTILINE)
HEAD = """Each pair has a prompt and two replies, A and B. Say which reply you would rather have got: the one that is
more right and more useful, whatever its length. Answer with one line a pair, e.g. `7: A`, `7: B`, or `7: =` if neither
is better (both equally good, or equally useless)."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="folder with what was measured of models, one folder each")
    parser.add_argument("pairs", nargs="+", help="two models each, e.g. base,loops-20")
    parser.add_argument("--reader", required=True, help="who reads")
    parser.add_argument("--prompts", type=int, default=15, help="of each two models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write the pairs here")
    parser.add_argument("--answers", type=Path, help="read the votes from here")
    args = parser.parse_args(arguments)
    shown = draw(args.measured, args.pairs, args.prompts, args.seed, args.reader)
    if args.sheet:
        args.sheet.write_text(sheet(shown), encoding="utf-8")
        print(f"{len(shown)} pairs written to {args.sheet}")
    if args.answers:
        print(f"{take(shown, args.answers.read_text(encoding='utf-8'), args.reader, VOTES)} votes kept in {VOTES}")


def draw(measured: Path, names: Sequence[str], count: int, seed: int, reader: str) -> list[Pair]:
    """Return the pairs of all models in one order that tells nothing; identical ones are left out."""
    from random import Random

    from srlm_pipeline.evaluation.readers import draw_pairs

    pairs: list[Pair] = []
    for named in names:
        one, other = (read_measured(measured, name) for name in named.split(","))
        drawn = draw_pairs(one, other, count, seed, reader)
        pairs += [pair for pair in drawn if not pair.identical]
    Random(f"{seed} {reader}").shuffle(pairs)  # noqa: S311
    # What comes back has to come later.
    return [pair for pair in pairs if not pair.returned] + [pair for pair in pairs if pair.returned]


def read_measured(measured: Path, name: str) -> Assessment:
    """Return what was measured of a model, whatever its weights: the newest.

    Raises:
        SystemExit: If there is nothing of that name.
    """
    from srlm_pipeline.evaluation.assessment import open_assessment

    folders = [f for f in measured.glob(f"{name}-*") if f.name.rpartition("-")[0] == name]
    if not folders:
        raise SystemExit(f"nothing was measured of {name} in {measured}")
    return open_assessment(max(folders, key=lambda folder: folder.stat().st_mtime))


def sheet(pairs: Sequence[Pair]) -> str:
    """Return the pairs to be read, as Markdown."""
    parts = [HEAD]
    for number, pair in enumerate(pairs, start=1):
        parts.append(
            f"## {number}\n\nPROMPT:\n{pair.prompt}\n\nREPLY A:\n{_written(pair.first)}\n\n"
            f"REPLY B:\n{_written(pair.second)}"
        )
    return "\n\n".join(parts) + "\n"


def take(pairs: Sequence[Pair], answers: str, reader: str, book: Path) -> int:
    """Keep a reader's votes; returns how many there are.

    Raises:
        SystemExit: If a pair has no vote, or had one before.
    """
    from srlm_pipeline.evaluation.readers import Choice, Reading, VoteBook

    said = {int(number): vote.upper() for number, vote in _ANSWER.findall(answers)}
    missing = [number for number in range(1, len(pairs) + 1) if number not in said]
    if missing:
        raise SystemExit(f"no vote for pair {', '.join(map(str, missing))}")
    choices: dict[str, Choice] = {"A": "first", "B": "second"}
    reading = Reading(pairs, VoteBook(book), reader)
    for number in range(1, len(pairs) + 1):
        if reading.current != pairs[number - 1]:
            raise SystemExit(
                f"pair {number} was read before, or is not on the sheet: was it made with the same models?"
            )
        reading.vote(choices.get(said[number], "tie"))
    return len(pairs)


def _written(reply: Written) -> str:
    return (reply.text.strip() or "(nothing)") + (" [...]" if reply.cut_off else "")


if __name__ == "__main__":
    main()
