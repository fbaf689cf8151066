"""Homes in which everything goes wrong, beside one in which nothing does.

    python tests/chaos/chaos.py --moments 60 --seed 1

runs the seed and an iteration on a tiny model once undisturbed, then again and again in other homes: each process is
disturbed at a moment that lies after that of the one before, and the next begins with the same command, until the
moments have been gone through. What has come of it must be what came of the undisturbed run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from disturbed import Order, as_line, filler

HERE = Path(__file__).parent
STORE = Path("srlm/quickstart")
SIGNALS = ("KILL", "TERM", "INT")
# What a person is told, and the exit status.
STOPPED, FAILED = 130, 1
A_DAY = 86400.0
ROOM = "256m"
# A checkpoint after every step.
OFTEN = {trained: {"save_every": 1} for trained in ("sft", "eft", "dpo")}


class Broken(AssertionError):
    """Something is not as it is promised."""


class Starter:
    """Starts processes that have everything loaded already.

    Args:
        configuration: Theirs.
    """

    def __init__(self, configuration: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent.parent),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-u", HERE / "disturbed.py", configuration],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def run(self, order: Order) -> int:
        """Carry out an order; return the exit status, negative for a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write(as_line(order))
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        """End the process that starts the others."""
        # Whoever started the tests may have had SIGTERM ignored, and that is inherited.
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the starter has ended"
        return line


@dataclass
class Outcome:
    """What one disturbed process has come to.

    Attributes:
        act: What was done to it.
        moment: When; None if it had ended before.
        status: Its exit status.
        seconds: It took.
        trouble: What is not as promised; blank if all is.
    """

    act: str
    moment: str | None
    status: int
    seconds: float
    trouble: str = ""


@dataclass
class Chain:
    """A home in which one process after another is disturbed.

    Attributes:
        folder: Of the home, of what processes print, and of notes.
        outcomes: Of its processes.
    """

    folder: Path
    words: Sequence[str]
    starter: Starter
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The Dagster home."""
        return self.folder / "home"

    def run(self, **disturbance: Any) -> tuple[int, list[dict[str, Any]], str]:
        """Run a process; return its exit status, its notes and what it printed."""
        self.home.mkdir(parents=True, exist_ok=True)
        # On another file system than the home, which may be full.
        outside = self.folder.parent / f"{self.folder.name}.out"
        outside.mkdir(exist_ok=True)
        number = len(list(outside.glob("*.txt")))
        output, notes = outside / f"{number:03d}.txt", outside / f"{number:03d}.jsonl"
        order = Order(str(self.home), self.words, str(output), str(notes), **disturbance)
        status = self.starter.run(order)
        found = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
        return status, found, output.read_text(encoding="utf-8", errors="replace")

    def disturb(self, act: str, moments: Sequence[str], after: int, delay: float, clock: float) -> int | None:
        """Disturb a process; return the place of the moment, None if it ended before."""
        began = time.monotonic()
        status, notes, said = self.run(act=act, moments=moments, after=after, delay=delay, clock=clock)
        filler(self.home).unlink(missing_ok=True)
        moment = next((note["disturbed"] for note in notes if "disturbed" in note), None)
        trouble = _trouble(act, moment, status, said)
        self.outcomes.append(Outcome(act, moment, status, time.monotonic() - began, trouble))
        return None if moment is None else moments.index(moment)

    def moments(self) -> list[str]:
        """Run undisturbed; return each moment that the process comes by once, in order."""
        status, notes, said = self.run()
        assert status == 0, said
        return list(dict.fromkeys(note["moment"] for note in notes if "moment" in note))

    def finish(self) -> None:
        """Run to the end, and once more: nothing may be left to do."""
        status, _, said = self.run()
        if status != 0:
            raise Broken(f"{self.home}: the same command did not go on:\n{said[-3000:]}")
        _, notes, again = self.run()
        if "up to date" not in again or any("appended" in note for note in notes):
            raise Broken(f"{self.home}: something was left to do:\n{again[-3000:]}")

    def appended(self) -> Counter[str]:
        """Return how often each reply and judgement was made, by all processes."""
        outside = self.folder.parent / f"{self.folder.name}.out"
        notes = (json.loads(line) for path in outside.glob("*.jsonl") for line in path.read_text().splitlines())
        return Counter(itertools.chain.from_iterable(note.get("appended", ()) for note in notes))


def _trouble(act: str, moment: str | None, status: int, said: str) -> str:
    if moment is None or act == "CLOCK":
        return "" if status == 0 else f"failed with status {status}: {said[-600:]}"
    if act == "KILL":
        return "" if status in (-9, 0) else f"status {status}"
    if act in SIGNALS:
        told = status == 0 or (status == STOPPED and "the same command continues" in said)
        return "" if told else f"status {status}: {said[-600:]}"
    if status == 0:
        return ""
    return "" if status == FAILED and "Traceback" not in said else f"status {status}: {said[-900:]}"


def compare(chain: Chain, undisturbed: Chain) -> dict[str, int]:
    """Compare what has come of a chain with the undisturbed run.

    Returns:
        How much of what is equal.

    Raises:
        Broken: Naming what is not.
    """
    found, expected = chain.home / STORE, undisturbed.home / STORE
    counted = {"tables": 0, "digests": 0, "decisions": 0}
    for kind, pattern in (
        ("tables", "*/**/*.parquet"),
        ("digests", "models/*/srlm.json"),
        ("decisions", "promotions/*"),
    ):
        names = sorted(path.relative_to(expected) for path in expected.glob(pattern))
        if names != sorted(path.relative_to(found) for path in found.glob(pattern)):
            raise Broken(f"{found}: other {kind} than in {expected}")
        for name in names:
            if not _equal(found / name, expected / name):
                raise Broken(f"{found / name} is not {expected / name}")
        counted[kind] = len(names)
    made, once = chain.appended(), undisturbed.appended()
    # What was on disk when a process was ended in just that moment is not among the notes.
    if made - once:
        raise Broken(f"{chain.home}: made again: {made - once}")
    left = [path for path in chain.home.rglob(".*.*") if path.name.endswith((".tmp", ".old"))]
    if left or any(path.is_file() for path in (found / "work").rglob("*")):
        raise Broken(f"left over: {left or found / 'work'}")
    if _recorded(chain.home) != _recorded(undisturbed.home):
        raise Broken(f"MLflow says {_recorded(chain.home)}, not {_recorded(undisturbed.home)}")
    return {**counted, "replies and judgements": made.total()}


def _equal(one: Path, other: Path) -> bool:
    if one.suffix == ".parquet":
        return pd.read_parquet(one).equals(pd.read_parquet(other))
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    if one.name == "srlm.json":
        return [first[key] for key in ("name", "digest", "parent")] == [
            second[key] for key in ("name", "digest", "parent")
        ]
    return bool(first == second)


def _recorded(home: Path) -> dict[str, set[Any]]:
    """Return what MLflow says: models and verdicts, the champion, runs that were never ended."""
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        return {
            "versions": set(
                store.execute(
                    "SELECT d.value, v.value FROM model_version_tags d JOIN model_version_tags v USING (name, version) "
                    "WHERE d.key = 'digest' AND v.key = 'verdict'"
                )
            ),
            "champion": set(
                store.execute(
                    "SELECT value FROM model_version_tags t JOIN registered_model_aliases a USING (name, version) "
                    "WHERE t.key = 'digest' AND a.alias = 'champion'"
                )
            ),
            "never ended": set(store.execute("SELECT name FROM runs WHERE status = 'RUNNING'")),
        }


def choose(moments: Sequence[str], count: int, draw: random.Random) -> list[int]:
    """Return places of moments spread over the run: two of three at files, one of three in databases."""
    files = [place for place, moment in enumerate(moments) if not moment.startswith("commit")]
    commits = [place for place, moment in enumerate(moments) if moment.startswith("commit")]
    n_files = min(round(count * 2 / 3), len(files))
    chosen: set[int] = set()
    for places, n in ((files, n_files), (commits, count - n_files)):
        edges = [round(k * len(places) / n) for k in range(n + 1)]
        chosen |= {places[draw.randrange(low, high)] for low, high in itertools.pairwise(edges) if high > low}
    return sorted(chosen)


@contextmanager
def small_file_system(folder: Path) -> Iterator[bool]:
    """Mount a file system of its own on a folder, where that is allowed; it says whether it was."""
    folder.mkdir(parents=True)
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], capture_output=True).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def go_through(moments: Sequence[str], places: Sequence[int], acts: Sequence[str], chain: Chain, seed: int) -> None:
    """Disturb one process after another, each at a later place; then let one run to its end."""
    draw, reached = random.Random(seed), -1
    for place, act in zip(places, itertools.cycle(acts), strict=False):
        if place <= reached:
            continue
        # Right at the moment, or in what follows from it.
        delay = draw.choice([0.0, draw.uniform(0, 0.05)]) if act in SIGNALS else 0.0
        hit = chain.disturb(act, moments, place, delay, draw.choice([0.0, 2 * A_DAY, -2 * A_DAY]))
        if hit is None:
            break
        reached = hit
    chain.disturb("CLOCK", moments, reached + 1, 0.0, draw.choice([2 * A_DAY, -2 * A_DAY]))
    chain.finish()


def tried(
    folder: Path, undisturbed: Chain, moments: Sequence[str], places: Sequence[int], acts: Sequence[str], seed: int
) -> tuple[list[Outcome], str]:
    """Go through places in a home of its own; return what came of the processes, and of the home, in words."""
    chain = Chain(folder, undisturbed.words, undisturbed.starter)
    with small_file_system(folder) as mounted:
        try:
            go_through(moments, places, [act for act in acts if act != "FILL" or mounted], chain, seed)
            return chain.outcomes, f"equal: {compare(chain, undisturbed)}"
        except Broken as broken:
            return chain.outcomes, str(broken)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes by what was done, as Markdown."""
    lines = ["| what was done | moments | ended as promised |", "|---|---|---|"]
    for act in dict.fromkeys(outcome.act for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.act == act and outcome.moment is not None]
        lines.append(f"| {act} | {len(own)} | {sum(not outcome.trouble for outcome in own)} |")
    return "\n".join(lines)


def main() -> None:
    """Go through many moments, and print the table of docs/reliability.md."""
    parser = argparse.ArgumentParser(description="Disturb `srlm run` at many moments, and compare what comes of it.")
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--homes", type=int, default=3, help="among which they are dealt out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--acts", default="KILL,TERM,KILL,ENOSPC,KILL,INT,KILL,FILL,KILL,EROFS")
    asked = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    from conftest import write_tiny_model
    from processes import write_configuration

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny_model(folder / "tiny")
        configuration = write_configuration(folder, folder / "tiny", **OFTEN)
        starter = Starter(configuration)
        undisturbed = Chain(folder / "undisturbed", ("run", "-n", "1"), starter)
        moments = undisturbed.moments()
        places = choose(moments, asked.moments, random.Random(asked.seed))
        print(f"{len(moments)} different moments in an undisturbed run, {len(places)} of them chosen", flush=True)
        everything: list[Outcome] = []
        for number in range(asked.homes):
            acts = asked.acts.split(",")
            # Every home begins with another act.
            turned = acts[number % len(acts) :] + acts[: number % len(acts)]
            own = places[number :: asked.homes]
            outcomes, said = tried(folder / f"home-{number}", undisturbed, moments, own, turned, asked.seed + number)
            for one in outcomes:
                print(f"{one.act:6} {one.status:4} {one.seconds:5.1f} s  {one.moment}  {one.trouble}", flush=True)
            print(f"home {number}: {said}\n", flush=True)
            everything += outcomes
        print(table(everything))
        starter.close()


if __name__ == "__main__":
    main()
