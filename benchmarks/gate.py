"""Is the gate in front of the champion worth anything? No damaged model may pass it, and sound ones must.

The quickstart's seed model and first iteration are made as a user makes them; from them come damaged and sound models
(`benchmarks.zoo`). All are measured as the pipeline measures, and stand trial: each damaged one against the model that
it was made from, and as a champion whom the sound one is to replace. What people who read blind said of some of them
(`benchmarks.blind`) is laid beside it. Everything is continued where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, ROOT, SMOKE_RESULTS, model_folder, options, parse, write_record
from benchmarks.self_improvement import SMOKE_SETTINGS
from benchmarks.table import fill_blocks, markdown_table
from benchmarks.zoo import ANIMALS, Animal, Sources, make_animal

if TYPE_CHECKING:
    from srlm_pipeline.config import Settings
    from srlm_pipeline.evaluation.assessment import Assessment
    from srlm_pipeline.evaluation.opponents import Role
    from srlm_pipeline.evaluation.promotion import Decision
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.store import ProjectStore

DOCUMENT = ROOT / "docs" / "evaluation.md"
VOTES = RESULTS / "gate_votes.jsonl"
SMOKE = {"seeds": [20], "only": ["noise_strong", "one_sentence", "polished"], "measured_with": []}
# Enough pairs for the over-trained models.
PAIRS = "prompt_generation.count=96"


@dataclass(frozen=True)
class Trial:
    """A model before the gate.

    Attributes:
        model: Who wants to be champion.
        champion: Who is.
        kind: Of the animal that takes part, on whichever side.
        damaged: Whether the gate must refuse.
    """

    model: str
    champion: str
    kind: str
    damaged: bool


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21], help="of the animals")
    parser.add_argument("--only", nargs="+", help="kinds of animals")
    parser.add_argument(
        "--measured-with",
        nargs="*",
        metavar="SETTING=VALUE",
        default=["evaluation.verifiable.limit=null"],
        help="beside the quickstart's settings; the default asks all prompts, as the other presets do",
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "dagster_home" / "gate", help="models and what was measured of them"
    )
    args = parse(parser, arguments, SMOKE)
    from srlm_pipeline.cli import quiet_libraries

    quiet_libraries()
    zoo = Zoo(args)
    chosen = [animal for animal in ANIMALS if not args.only or animal.kind in args.only]
    for animal in chosen:
        for seed in args.seeds:
            zoo.add(animal, seed)
    record = Record(args)
    for trial in trials(chosen, args.seeds):
        record.add(trial, zoo)
    record.readers = readings(zoo)
    record.models = {name: zoo.figures(name) for name in zoo.assessed}
    record.save()
    if not args.smoke:
        write_document(json.loads(record.path.read_text(encoding="utf-8")))


def trials(animals: Sequence[Animal], seeds: Sequence[int]) -> list[Trial]:
    """Return who stands trial: every animal against its source, and every damaged one as the source's champion."""
    found = []
    for animal in animals:
        for seed in seeds:
            name, source = f"{animal.kind}-{seed}", animal.source
            found.append(Trial(name, source, animal.kind, animal.damaged))
            if animal.damaged:
                found.append(Trial(source, name, animal.kind, False))
    return found


class Zoo:
    """The models, and what was measured of each.

    Args:
        args: What `parse` returned.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from srlm_pipeline.assets.measured import ASSESSED, assessed_contents
        from srlm_pipeline.commands.terminal import terminal_reporter
        from srlm_pipeline.config import load_settings, merge_overrides
        from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
        from srlm_pipeline.generation.journal import fingerprint
        from srlm_pipeline.store import ProjectStore, open_store
        from srlm_pipeline.tables import PREFERENCE_PAIRS, read_table

        self._args, self._progress = args, terminal_reporter()
        overrides = run_quickstart(args)
        self.settings: Settings = load_settings("quickstart", merge_overrides([*overrides, *args.measured_with]))
        home = open_store(self.settings)
        self.home: ProjectStore = home
        self._prompts = load_evaluation_prompts(self.settings.data).table
        self._ranked = load_ranked_replies(self.settings.data).table
        asked = fingerprint(
            self.settings.fingerprint(*ASSESSED),
            assessed_contents(self.settings),
            [*self._prompts["prompt"], *self._ranked["text"][self._ranked["split"] == "held_out"]],
        )
        # With other questions nothing is taken over.
        self._store = ProjectStore(args.work / "measured" / asked, home.shared)
        base, m1 = home.base_checkpoint(self.settings), home.checkpoint("M1")
        pairs = read_table(PREFERENCE_PAIRS, home.table_path("preference_pairs", 1))
        self._sources = Sources(base, m1, pairs, load_instructions(self.settings.data).table, self.settings)
        self.assessed: dict[str, Assessment] = {}
        for checkpoint in (base, home.checkpoint("sft_baseline"), m1):
            self._measure(checkpoint)

    def add(self, animal: Animal, seed: int) -> None:
        """Make an animal and measure it."""
        print(f"[gate] {animal.kind}, seed {seed}", flush=True)
        self._measure(make_animal(animal, seed, self._sources, self._args.work / "models", self._progress))

    def try_model(self, trial: Trial) -> tuple[Decision, float]:
        """Return what the gate decides, and the loop's own arbiter's win rate."""
        from srlm_pipeline.evaluation.evidence import compare_all, length_growth, opinion
        from srlm_pipeline.evaluation.independence import dependences
        from srlm_pipeline.evaluation.measuring import match
        from srlm_pipeline.evaluation.opening import open_arbiter
        from srlm_pipeline.evaluation.promotion import Decision, Evidence, decide_promotion

        new, champion = self.assessed[trial.model], self.assessed[trial.champion]
        mine, theirs = new.evaluation_replies(), champion.evaluation_replies()
        arbiter = open_arbiter(self.settings, self.home, self._open)
        _, met = match(mine, theirs, trial.champion, arbiter, self.settings, self._progress)
        promotion = self.settings.promotion
        said = opinion((met.wins, met.ties, met.losses), promotion, met.length_controlled)
        assert said is not None, "there are evaluation prompts"
        others: dict[Role, Assessment] = {
            "champion": champion,
            "baseline": self.assessed["sft_baseline"],
            "base": self.assessed["base"],
        }
        rules = decide_promotion(
            Evidence(
                champion=trial.champion,
                opinion=said,
                dependences=dependences(self.settings),
                compared=compare_all(new, others, promotion, self.settings.evaluation.bootstrap_samples),
                # What people say of them is what the gate is compared with.
                people=None,
                length_growth=length_growth(new, others),
            ),
            promotion,
        )
        passed = all(rule.passed is not False for rule in rules)
        return Decision(trial.model, new.digest, trial.champion, passed, rules), met.win_rate

    def figures(self, name: str) -> dict[str, float | None]:
        """Return a model's measures."""
        from srlm_pipeline.evaluation.measures import MEASURES, figure

        return {m.name: figure(self.assessed[name], m).value for m in MEASURES}

    def _measure(self, checkpoint: Checkpoint) -> None:
        from srlm_pipeline.errors import TableError
        from srlm_pipeline.evaluation.assessing import assess_and_keep
        from srlm_pipeline.evaluation.assessment import read_assessment

        try:
            found = read_assessment(self._store, checkpoint)
        except TableError:
            found = assess_and_keep(
                checkpoint, self._prompts, self._ranked, self.settings, self._store, self._open, self._progress
            )
        self.assessed[checkpoint.name] = found

    def _open(self, checkpoint: Checkpoint, batch_size: int) -> Any:
        from srlm_pipeline.generation.opening import open_engine

        return open_engine(checkpoint, self.settings, batch_size)


def run_quickstart(args: argparse.Namespace) -> list[str]:
    """Make seed model and preference pairs as a user would, where they are missing.

    Returns:
        The settings beside the preset's, as `--set` takes them.
    """
    sets = [PAIRS, f"model.device={args.device}"]
    if args.smoke:
        sets += [*SMOKE_SETTINGS, "evaluation.verifiable.limit=4", "evaluation.closed_tasks.limit=4"]
    if args.smoke or args.model:
        sets.append(f"base_model={model_folder(args).resolve()}")
    home = args.work / "home"
    os.environ["DAGSTER_HOME"] = str(home.resolve())
    made = home / "srlm" / "quickstart"
    if (
        not (made / "models" / "M1").is_dir()
        or not (made / "tables" / "preference_pairs" / "iter_001.parquet").is_file()
    ):
        command = [sys.executable, "-m", "srlm_pipeline.cli", "run", "-n", "1"]
        for item in sets:
            command += ["--set", item]
        subprocess.run(command, check=True, cwd=ROOT)
    return sets


class Record:
    """The results so far, on disk after every trial.

    Args:
        args: What `parse` returned.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = (SMOKE_RESULTS if args.smoke else RESULTS) / "gate.json"
        self.rows: list[dict[str, Any]] = []
        self.readers: dict[str, Any] = {}
        self.models: dict[str, dict[str, float | None]] = {}

    def add(self, trial: Trial, zoo: Zoo) -> None:
        """Hold a trial."""
        decision, win_rate = zoo.try_model(trial)
        print(
            f"[gate] {trial.model} against {trial.champion}: {'promoted' if decision.promoted else 'refused'}"
            f"{'' if decision.promoted != trial.damaged else '  <-- WRONG'}",
            flush=True,
        )
        self.rows.append(
            {
                "model": trial.model,
                "champion": trial.champion,
                "kind": trial.kind,
                "damaged": trial.damaged,
                "promoted": decision.promoted,
                "own_win_rate": win_rate,
                "failed": [rule.name for rule in decision.failures],
                "rules": {rule.name: rule.explanation for rule in decision.rules},
            }
        )
        self.save()

    def save(self) -> None:
        """Write everything, atomically."""
        content = {
            "damaged": self._count(damaged=True),
            "controls": self._count(damaged=False),
            "readers": self.readers,
            "models": self.models,
            "rows": self.rows,
        }
        write_record(self.path, content)

    def _count(self, damaged: bool) -> dict[str, int]:
        tried = [row for row in self.rows if row["damaged"] == damaged]
        return {"trials": len(tried), "promoted": sum(row["promoted"] for row in tried)}


def readings(zoo: Zoo) -> dict[str, Any]:
    """Return how often the gate, and each measure, agrees with people who read blind.

    A measure agrees with a decided vote if it puts the preferred model before the other. ``decided`` and ``agreed`` are
    of the gate: votes on two models one of which it would promote over the other, and not the other way round.
    """
    from srlm_pipeline.evaluation.measures import MEASURES, change
    from srlm_pipeline.evaluation.readers import VoteBook, tally

    votes = VoteBook(VOTES).all()
    by_digest = {assessment.digest: name for name, assessment in zoo.assessed.items()}
    met = {tuple(sorted((v.first.digest, v.second.digest))) for v in votes}
    measures: dict[str, list[int]] = {m.name: [0, 0] for m in MEASURES} | {"the loop's own arbiter": [0, 0]}
    gate, pairs, returned = [0, 0], [], [0, 0]
    for digests in sorted(met):
        if not all(digest in by_digest for digest in digests):
            continue
        a, b = (by_digest[digest] for digest in digests)
        said = tally(votes, zoo.assessed[a], zoo.assessed[b])
        forward, own = zoo.try_model(Trial(a, b, "", False))
        backward, _ = zoo.try_model(Trial(b, a, "", False))
        returned = [returned[0] + said.consistent.n, returned[1] + said.consistent.of]
        preferred = {name: _better(change(zoo.assessed[a], zoo.assessed[b], m)) for m in MEASURES for name in [m.name]}
        preferred["the loop's own arbiter"] = (own > 0.5) - (own < 0.5)
        for name, sign in preferred.items():
            if sign:
                measures[name][0] += said.wins + said.losses
                measures[name][1] += said.wins if sign > 0 else said.losses
        verdict = int(forward.promoted) - int(backward.promoted)
        if verdict:
            gate[0] += said.wins + said.losses
            gate[1] += said.wins if verdict > 0 else said.losses
        pairs.append(
            {
                "model": a,
                "opponent": b,
                "wins": said.wins,
                "ties": said.ties,
                "losses": said.losses,
                "gate_prefers": {1: a, -1: b, 0: None}[verdict],
            }
        )
    return {
        "decided": gate[0],
        "agreed": gate[1],
        "returned": returned[1],
        "returned_alike": returned[0],
        "measures": {name: {"decided": n, "agreed": k} for name, (n, k) in measures.items() if n},
        "pairs": pairs,
    }


def _better(found: Any) -> int:
    return 0 if found is None else int(found.gain > 0) - int(found.gain < 0)


def write_document(record: Mapping[str, Any]) -> None:
    """Write the tables into the document, between their ``begin`` and ``end`` comments."""
    from srlm_pipeline.files import replacing_file

    filled = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), {"gate": gate_tables(record)}, keep=True)
    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def gate_tables(record: Mapping[str, Any]) -> str:
    """Return trials, figures of the models, and agreement with readers as Markdown."""
    damaged, controls, readers = record["damaged"], record["controls"], record["readers"]
    parts = [
        f"Measured on {record['date'][:10]} at {record['commit']}: of {damaged['trials']} trials of damaged models "
        f"{damaged['promoted']} ended in a promotion; of {controls['trials']} of sound ones {controls['promoted']} "
        f"({controls['promoted'] / max(controls['trials'], 1):.0%}) did.",
        _trials_table(record["rows"]),
        _models_table(record["models"]),
    ]
    if readers.get("measures"):
        parts.append(_readers_tables(readers))
    return "\n\n".join(parts)


def _trials_table(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = dict.fromkeys(row["kind"] for row in rows)
    lines = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind and row["model"].startswith(f"{kind}-")]
        turned = [row for row in rows if row["kind"] == kind and row["champion"].startswith(f"{kind}-")]
        reasons = dict.fromkeys(name.removeprefix("no harm: ") for row in own for name in row["failed"])
        lines.append(
            [
                kind.replace("_", " "),
                own[0]["champion"] if own else "",
                ", ".join(f"{row['own_win_rate']:.0%}" for row in own),
                f"{sum(row['promoted'] for row in own)} of {len(own)}",
                f"{sum(row['promoted'] for row in turned)} of {len(turned)}" if turned else "",
                ", ".join(reasons) or "nothing",
            ]
        )
    heads = ["animal", "made from", "own arbiter's win rate", "promoted", "its source, over it", "what it fails"]
    return markdown_table(heads, lines)


def _models_table(models: Mapping[str, Mapping[str, float | None]]) -> str:
    names = list(next(iter(models.values()))) if models else []
    lines = [
        [model.replace("_", " "), *("" if (v := figures[name]) is None else f"{v:.3f}" for name in names)]
        for model, figures in models.items()
    ]
    return markdown_table(["model", *(name.replace("_", " ") for name in names)], lines)


def _readers_tables(readers: Mapping[str, Any]) -> str:
    met = [
        [p["model"], p["opponent"], f"{p['wins']} : {p['losses']}", str(p["ties"]), p["gate_prefers"] or "neither"]
        for p in readers["pairs"]
    ]
    measures = sorted(readers["measures"].items(), key=lambda item: -item[1]["agreed"] / item[1]["decided"])
    agreement = [[name.replace("_", " "), f"{m['agreed']} of {m['decided']}", f"{m['agreed'] / m['decided']:.0%}"]
                 for name, m in measures]  # fmt: skip
    return "\n\n".join(
        [
            markdown_table(["model", "opponent", "readers", "ties", "the gate prefers"], met),
            f"The gate agrees with {readers['agreed']} of {readers['decided']} decided votes on models between which "
            f"it has a preference; {readers['returned_alike']} of {readers['returned']} pairs that came back were "
            "judged alike.",
            markdown_table(["measure", "decided votes for the model it puts first", "share"], agreement),
        ]
    )


if __name__ == "__main__":
    main()
