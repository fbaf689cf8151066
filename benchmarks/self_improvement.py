"""Does the loop improve a real model? Whole runs on Open Assistant data, settled by an arbiter that they never meet.

Every arm is a run of the command line in a Dagster home of its own, continued where it was interrupted. Then all its
models answer the evaluation prompts and judge the held-out human rankings, and meet each other before two judges: the
loop's own (M1), and an arbiter trained on human rankings that no arm has seen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, ROOT, SMOKE_RESULTS, model_folder, options, parse, write_record
from benchmarks.oasst_split import Parts, write_parts
from benchmarks.outside import outside_rankings, read_ranked

if TYPE_CHECKING:
    import pandas as pd

    from srlm_pipeline.config import Settings
    from srlm_pipeline.evaluation.arbiters import Arbiter
    from srlm_pipeline.evaluation.assessment import Assessment
    from srlm_pipeline.judging.judges import Judge
    from srlm_pipeline.judging.rubric import Rubric
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.store import ProjectStore

CONFIG = Path(__file__).with_suffix(".yaml")
SMOKE = {"iterations": 1}
# What a trial changes so that it takes seconds; a tiny model's replies are noise anyway.
SMOKE_SETTINGS = (
    "prompt_generation={count: 3, max_new_tokens: 24, min_words: 1, temperature: 1.0, max_attempts_factor: 100}",
    "candidates={per_prompt: 2, max_new_tokens: 8, temperature: 1.0}",
    "evaluation.max_new_tokens=8",
    "judge.max_new_tokens=8",
    "sft.max_length=128",
    "dpo={max_length: 128, epochs: 1}",
    "pairs={min_margin: 0, length_control: 0}",
)
JUDGE_MODES: dict[str, dict[str, Any]] = {
    "distribution": {"mode": "distribution"},
    "hybrid": {"mode": "hybrid"},
    "sampled, K = 3": {"mode": "sampled", "samples": 3},
}


# Training sequences are longer by as many tokens as the rubric is, so that as much of the replies is read.
FULL_RUBRIC = ("judge.rubric=additive", "eft.max_length=621")
# What is measured of the first seed's M1 beside the loop.
BESIDES = ("judge_modes", "full_rubric", "own_judgements")
# Rationales take long: so many held-out prompts for the ways of judging, and training prompts for the paper's EFT.
JUDGE_MODE_PROMPTS, OWN_JUDGEMENT_PROMPTS = 50, 40


@dataclass(frozen=True)
class Arm:
    """A run of the loop.

    Attributes:
        name: For people and folders.
        seed: Of everything that is drawn.
        iterations: How many.
        changes: Settings that differ, as `srlm run --set` takes them.
        continues: Arm of the same seed that it begins as a copy of: what depends on no changed setting is the same
            to the last bit, and is not computed again.
    """

    name: str
    seed: int
    iterations: int
    changes: tuple[str, ...] = ()
    continues: str | None = None


def arms(seed: int, iterations: int) -> list[Arm]:
    """Return the runs: the whole loop with two seeds, then one iteration of each ablation."""
    return [
        Arm("loop", seed, iterations),
        Arm("loop-other-seed", seed + 1, iterations),
        Arm("no-eft", seed, 1, ("eft.enabled=false",), "loop"),
        Arm("positive-only", seed, 1, ("pairs.strategy=positive_only", "pairs.min_score=3.8"), "loop"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--iterations", type=int, default=2, help="of the whole loops; the last model is one more")
    parser.add_argument("--only", nargs="+", help="names of the arms to run")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "dagster_home" / "self-improvement", help="models, tables, journals"
    )
    args = parse(parser, arguments, SMOKE)
    from srlm_pipeline.cli import quiet_libraries

    quiet_libraries()
    parts = write_parts(args.data, args.work / "data", args.smoke)
    record = Record(args)
    base = model_folder(args)
    arbiter = train_arbiter(parts, base, args)
    for arm in arms(args.seed, args.iterations):
        if not args.only or arm.name in args.only:
            overrides = run_arm(arm, parts, base, args)
            measure_arm(arm, overrides, arbiter, parts, record, args)


class Record:
    """The results so far, on disk after every step, so that what is measured stays measured.

    Args:
        args: What `parse` returned.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = (SMOKE_RESULTS if args.smoke else RESULTS) / "learning" / "self_improvement.json"
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.arms: dict[str, Any] = known.get("arms", {})
        self.arbiter: dict[str, Any] = known.get("arbiter", {})

    def save(self) -> None:
        """Write everything, atomically."""
        settings = CONFIG.read_text(encoding="utf-8")
        write_record(self.path, {"settings": settings, "arbiter": self.arbiter, "arms": self.arms})
        print(f"[self_improvement] written to {self.path}", flush=True)


def run_arm(arm: Arm, parts: Parts, base: Path, args: argparse.Namespace) -> list[str]:
    """Run an arm as a user would, or what is missing of it.

    Returns:
        Its settings beside the configuration file, as `--set` takes them.
    """
    home = args.work / "homes" / arm.name
    if arm.continues and not home.exists():
        begin_as_copy(args.work / "homes" / arm.continues, home)
    sets = [
        *(SMOKE_SETTINGS if args.smoke else ()),
        f"base_model={base.resolve()}",
        f"model.device={args.device}",
        f"seed={arm.seed}",
        f"data.ift={parts.ift.resolve()}",
        f"data.ranked_replies={parts.ranked.resolve()}",
        f"data.evaluation_prompts={parts.evaluation.resolve()}",
        f"data.held_out_fraction={parts.held_out_fraction}",
        *arm.changes,
    ]
    # Models and tables lie in it as well. Their place is no setting here: a copied home's would be another one.
    os.environ["DAGSTER_HOME"] = str(home.resolve())
    command = [sys.executable, "-m", "srlm_pipeline.cli", "run", "--config", str(CONFIG), "-n", str(arm.iterations)]
    for item in sets:
        command += ["--set", item]
    print(f"[self_improvement] arm {arm.name}", flush=True)
    subprocess.run(command, check=True, cwd=ROOT)
    return sets


def begin_as_copy(finished: Path, home: Path) -> None:
    """Give an arm the Dagster home of another, with what was computed there.

    MLflow's records stay behind, for they hold absolute addresses; nothing is read from them.
    """
    from srlm_pipeline.files import replacing_folder

    if finished.is_dir():
        with replacing_folder(home, "dagster.yaml") as temporary:
            shutil.copytree(finished, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("ml*"))


def train_arbiter(parts: Parts, base: Path, args: argparse.Namespace) -> Checkpoint:
    """Return the arbiter: trained, by the ranking objective, on human rankings that no arm has seen."""
    from srlm_pipeline.config import load_settings
    from srlm_pipeline.judging.eft import eft_from_ranks
    from srlm_pipeline.judging.negatives import with_negatives

    settings = load_settings(CONFIG, {"seed": args.seed, "model": {"device": args.device}})
    human = eft_from_ranks(read_ranked(parts.arbiter))
    judging_data = with_negatives(human, settings.eft.mismatched_negatives, settings.eft.corrupted_negatives, args.seed)
    return teach_to_judge(base, judging_data.table, settings, args.work / "arbiter")


@dataclass(frozen=True)
class Taught:
    """A model that was taught to judge by other settings than its arm's, and those."""

    settings: Settings
    model: Checkpoint


def teach_full_rubric(store: ProjectStore, overrides: Sequence[str], args: argparse.Namespace) -> Taught:
    """Return what M1 would be with the paper's full rubric: the same SFT baseline and judging data, another text."""
    from srlm_pipeline.config import load_settings, merge_overrides
    from srlm_pipeline.tables import EFT, read_table

    settings = load_settings(CONFIG, merge_overrides([*overrides, *FULL_RUBRIC]))
    table = read_table(EFT, store.table_path("eft_dataset"))
    baseline = store.checkpoint("sft_baseline").path
    return Taught(settings, teach_to_judge(baseline, table, settings, args.work / "full-rubric"))


def teach_to_judge(start: Path, judging_data: pd.DataFrame, settings: Settings, folder: Path) -> Checkpoint:
    """Return a model taught by the ranking objective, trained unless the folder has it.

    Args:
        start: Folder of the model to start from.
        judging_data: Table `EFT`.
        settings: Of EFT, rubric and model.
        folder: Where it is kept; its name becomes the model's.
    """
    from srlm_pipeline.commands.terminal import terminal_reporter
    from srlm_pipeline.models.checkpoint import is_checkpoint, read_checkpoint, save_checkpoint
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.ranking import train_ranking
    from srlm_pipeline.training.seed import ranked_examples

    if is_checkpoint(folder):
        return read_checkpoint(folder)
    work = folder.with_name(f"{folder.name}-training")
    job = TrainingJob(start, settings.model, settings.seed, work, f"training {folder.name}", terminal_reporter())
    trained = train_ranking(job, ranked_examples(judging_data), settings.eft, settings.judge.taught_rubric)
    saved = save_checkpoint(trained.loaded, folder, folder.name, None, {}, "float32")
    shutil.rmtree(work, ignore_errors=True)
    return saved


def some_groups(ranked: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return the replies to so many prompts, drawn at random; to all if there are fewer."""
    groups = ranked["group_id"].drop_duplicates()
    return ranked[ranked["group_id"].isin(groups.sample(min(count, len(groups)), random_state=seed))]


def measure_arm(
    arm: Arm, overrides: list[str], arbiter: Checkpoint, parts: Parts, record: Record, args: argparse.Namespace
) -> None:
    """Measure all models of a finished arm and add them to the record."""
    from srlm_pipeline.config import load_settings, merge_overrides
    from srlm_pipeline.evaluation.assessment import read_assessment
    from srlm_pipeline.store import open_store
    from srlm_pipeline.tables import JUDGED_SCORES, RANKED_REPLIES, read_table

    settings = load_settings(CONFIG, merge_overrides(overrides))
    store = open_store(settings)
    names = ["sft_baseline", *(f"M{number}" for number in range(1, arm.iterations + 2))]
    models = [store.checkpoint(name) for name in names]
    ranked = read_table(RANKED_REPLIES, store.table_path("ranked_replies"))
    held_out = ranked[ranked["split"] == "held_out"]
    measured = Measuring(settings, args)
    if "judge" not in record.arbiter:
        record.arbiter["judge"] = measured.accuracy(arbiter, held_out)
        record.save()
    outside = outside_rankings(args.data, parts.graded, 10 if args.smoke else 1)
    if "outside" not in record.arbiter:
        record.arbiter["outside"] = {name: measured.accuracy(arbiter, table) for name, table in outside.items()}
        record.save()
    result: dict[str, Any] = {"seed": arm.seed, "changes": list(arm.changes), "models": {}, "iterations": {}}
    for checkpoint in [store.base_checkpoint(settings), *models]:
        result["models"][checkpoint.name] = measured.judging(checkpoint, held_out, outside)
    assessed = {m.name: read_assessment(store, m) for m in [store.base_checkpoint(settings), *models]}
    replies = {name: assessment.evaluation_replies() for name, assessment in assessed.items()}
    for name, table in replies.items():
        result["models"][name] |= measured.description(table)
        result["models"][name]["vital_signs"] = measured.vital_signs(assessed[name])
        result["models"][name]["verifiable"] = measured.verifiable(assessed[name], assessed[names[0]])
    for number in range(1, arm.iterations + 1):
        scored = read_table(JUDGED_SCORES, store.table_path("judged_scores", number))
        result["iterations"][str(number)] = measured.pairs(scored)
    # Each by the rubric that it was trained with.
    judges = {
        "arbiter": measured.score_arbiter(arbiter, load_settings(CONFIG).judge.rubric),
        "self": measured.score_arbiter(store.checkpoint("M1"), settings.judge.rubric),
    }
    result["matches"] = [
        {
            "model": later,
            "opponent": earlier,
            **{label: measured.match(replies[later], replies[earlier], judge) for label, judge in judges.items()},
        }
        for earlier, later in itertools.combinations(assessed, 2)
    ]
    kept = record.arms.get(arm.name, {})
    record.arms[arm.name] = {**result, **{key: kept[key] for key in BESIDES if key in kept}}
    record.save()
    if arm.name == "loop":
        measure_besides(record.arms[arm.name], overrides, ranked, outside, measured, store, record, args)


def measure_besides(
    found: dict[str, Any],
    overrides: Sequence[str],
    ranked: pd.DataFrame,
    outside: Mapping[str, pd.DataFrame],
    measured: Measuring,
    store: ProjectStore,
    record: Record,
    args: argparse.Namespace,
) -> None:
    """Measure, of the first seed, ways of judging, the full rubric, and what the paper's EFT would keep."""
    held_out, train = ranked[ranked["split"] == "held_out"], ranked[ranked["split"] == "train"]
    baseline, m1 = store.checkpoint("sft_baseline"), store.checkpoint("M1")
    modes = found.setdefault("judge_modes", {})
    for mode, changes in JUDGE_MODES.items():
        if mode not in modes:
            modes[mode] = measured.judge_mode(m1, some_groups(held_out, JUDGE_MODE_PROMPTS, args.seed), changes)
            record.save()
    if "full_rubric" not in found:
        taught = teach_full_rubric(store, overrides, args)
        by_it = Measuring(taught.settings, args)
        found["full_rubric"] = {
            name: by_it.judging(checkpoint, held_out, outside)
            for name, checkpoint in (("sft_baseline", baseline), ("M1", taught.model))
        }
        record.save()
    if "own_judgements" not in found:
        found["own_judgements"] = measured.own_judgements(
            baseline, some_groups(train, OWN_JUDGEMENT_PROMPTS, args.seed)
        )
        record.save()


class Measuring:
    """What is asked of models, with the settings of an arm.

    Args:
        settings: The arm's.
        args: What `parse` returned.
    """

    def __init__(self, settings: Settings, args: argparse.Namespace) -> None:
        from srlm_pipeline.commands.terminal import terminal_reporter
        from srlm_pipeline.store import open_store

        self._settings, self._args = settings, args
        self._store = open_store(settings)
        self._progress = terminal_reporter()

    def _open(self, checkpoint: Checkpoint, batch_size: int) -> Any:
        from srlm_pipeline.generation.opening import open_engine

        return open_engine(checkpoint, self._settings, batch_size)

    def accuracy(self, checkpoint: Checkpoint, held_out: pd.DataFrame) -> dict[str, float]:
        """Return how well a model judges held-out replies."""
        from srlm_pipeline.evaluation.judge_accuracy import measure_judge
        from srlm_pipeline.evaluation.measuring import judge_ranked_replies

        table = judge_ranked_replies(checkpoint, held_out, self._settings, self._store, self._open, self._progress)
        return measure_judge(table).metrics()

    def judging(
        self, checkpoint: Checkpoint, held_out: pd.DataFrame, outside: Mapping[str, pd.DataFrame]
    ) -> dict[str, Any]:
        """Return how well a model judges held-out replies, and rankings from elsewhere."""
        return {
            "judge": self.accuracy(checkpoint, held_out),
            "outside": {name: self.accuracy(checkpoint, table) for name, table in outside.items()},
        }

    def description(self, replies: pd.DataFrame) -> dict[str, float]:
        """Return lengths and repetition of replies."""
        from srlm_pipeline.checks.text_measures import describe_replies

        described = describe_replies(replies["reply"].tolist(), replies["n_tokens"].tolist())
        return {**described, "cut_off_share": float((replies["finish_reason"] == "length").mean())}

    def vital_signs(self, assessed: Assessment) -> dict[str, float | None]:
        """Return every measure that no judge takes part in."""
        from srlm_pipeline.evaluation.measures import MEASURES, figure

        return {m.name: figure(assessed, m, self._settings.evaluation.bootstrap_samples).value for m in MEASURES}

    def verifiable(self, assessed: Assessment, baseline: Assessment) -> dict[str, float]:
        """Return how many instructions a model follows that a program checks, and by how much more than a baseline."""
        from srlm_pipeline.evaluation.measures import change, measure_named
        from srlm_pipeline.evaluation.verifiable_accuracy import measure_verifiable

        found = measure_verifiable(assessed.verifiable).metrics()
        ahead = change(assessed, baseline, measure_named("verifiable"), confidence=0.975)
        if ahead is not None and assessed.model != baseline.model:
            found |= {"ahead": ahead.gain, "ahead_low": ahead.least, "ahead_high": ahead.most}
        return found

    def pairs(self, scored: pd.DataFrame) -> dict[str, float]:
        """Return what became of an iteration's prompts."""
        from srlm_pipeline.preference.pairs import select

        chosen = select(scored, self._settings.pairs)
        lengths = chosen.pairs[["chosen", "rejected"]].map(len, na_action="ignore").mean()
        return {
            "prompts": chosen.n_prompts,
            "pairs": len(chosen.pairs),
            "ties": chosen.n_ties,
            "too_few": chosen.n_too_few_valid + chosen.n_too_low,
            "score_mean": float(scored["score"].mean()),
            "score_std": float(scored["score"].std()),
            "length_mean": float(scored["completion"].str.len().mean()),
            "chosen_length": float(lengths["chosen"]) if len(chosen.pairs) else 0.0,
            "rejected_length": float(lengths["rejected"]) if chosen.pairs["rejected"].notna().any() else 0.0,
        }

    def score_arbiter(self, checkpoint: Checkpoint, rubric: Rubric) -> Arbiter:
        """Return a model that settles matches by its expected scores."""
        from srlm_pipeline.evaluation.arbiters import ScoreArbiter
        from srlm_pipeline.evaluation.opening import judgement_journal
        from srlm_pipeline.judging.judges import DistributionJudge

        engine = self._open(checkpoint, self._settings.judge.batch_size)
        return ScoreArbiter(DistributionJudge(engine, rubric), judgement_journal(self._store, checkpoint))

    def match(self, mine: pd.DataFrame, theirs: pd.DataFrame, arbiter: Arbiter) -> dict[str, float]:
        """Return the result of a match."""
        from srlm_pipeline.evaluation.measuring import match

        _, outcome = match(mine, theirs, "opponent", arbiter, self._settings, self._progress)
        return outcome.metrics()

    def judge_mode(
        self, checkpoint: Checkpoint, held_out: pd.DataFrame, changes: Mapping[str, Any]
    ) -> dict[str, float]:
        """Return accuracy and cost of a way of judging; nothing is taken from a journal, because it is timed."""
        from srlm_pipeline.evaluation.judge_accuracy import measure_judge
        from srlm_pipeline.evaluation.measuring import accuracy_table
        from srlm_pipeline.judging.choosing import make_judge
        from srlm_pipeline.judging.judges import JudgeItem

        settings = self._settings.judge.model_copy(update=dict(changes))
        judge: Judge = make_judge(self._open(checkpoint, settings.batch_size), settings, self._settings.seed, "modes")
        items = [JudgeItem(str(place), row.prompt, row.text) for place, row in enumerate(held_out.itertuples())]
        started = time.perf_counter()
        judged = judge.judge(items, self._progress)
        seconds = time.perf_counter() - started
        table = accuracy_table(checkpoint.name, held_out, judged)
        valid, invalid = sum(j.n_valid for j in judged), sum(j.n_invalid for j in judged)
        return {
            **measure_judge(table).metrics(),
            "seconds": seconds,
            "judgements_per_second": len(items) / seconds,
            "valid_share": valid / max(valid + invalid, 1),
        }

    def own_judgements(self, baseline: Checkpoint, train: pd.DataFrame) -> dict[str, float]:
        """Return how many prompts the paper's EFT keeps: those that the SFT baseline judges as people did."""
        from srlm_pipeline.judging.eft import eft_from_judgements
        from srlm_pipeline.judging.judges import JudgeItem, SampledJudge

        settings = self._settings.judge
        judge = SampledJudge(self._open(baseline, 64), settings, self._settings.seed, "eft")
        items = [JudgeItem(str(place), row.prompt, row.text) for place, row in enumerate(train.itertuples())]
        built = eft_from_judgements(train, judge.judge(items, self._progress))
        return {"prompts": built.n_groups, "kept": built.n_kept, **built.dropped}


if __name__ == "__main__":
    main()
