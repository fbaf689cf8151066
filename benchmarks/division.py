"""The same trainings by one process and by several: how far apart their weights and losses end up.

Prints a table for docs/scaling.md. Nothing is timed: on one machine several processes share what one has.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.common import SMOKE_RESULTS, options, parse
from benchmarks.common import model_folder as base_folder

if TYPE_CHECKING:
    from srlm_pipeline.training.common import TrainingJob, TrainingRun

SMOKE = {"examples": 3}
# Learning rates of full fine-tuning and of adapters; in float32 small differences are not amplified much by these.
RATES = {"full": 1e-5, "lora": 2e-4}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--examples", type=int, default=10, help="of each stage")
    parser.add_argument("--batch", type=int, default=8, help="examples per step, in micro-batches of two")
    parser.add_argument("--stages", nargs="*", default=["sft", "ranking", "dpo"])
    parser.add_argument("--methods", nargs="*", default=list(RATES))
    args = parse(parser, arguments, SMOKE)
    head = [
        "stage",
        "method",
        "steps",
        "weights apart",
        "weights changed",
        "losses of one",
        "of several",
        "losses apart",
    ]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    for stage in args.stages:
        for method in args.methods:
            print(compared(stage, method, args), flush=True)


def compared(stage: str, method: str, args: Any) -> str:
    """Train a stage both ways, and return what came of it as a row of a table."""
    import torch

    from srlm_pipeline.config import LauncherSettings, load_settings
    from srlm_pipeline.models.loading import load_model
    from srlm_pipeline.progress import NullProgress
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.devices import divide
    from srlm_pipeline.training.launching import Launcher

    # Each process has one thread, whoever trains.
    torch.set_num_threads(1)
    settings = load_settings("quickstart", {"model": {"device": args.device, "dtype": "float32"}})
    base, folder = base_folder(args), SMOKE_RESULTS / f"division-{stage}-{method}"
    shutil.rmtree(folder, ignore_errors=True)
    job = TrainingJob(base, settings.model, args.seed, folder / "one", stage, NullProgress())
    train = training(stage, method, settings, args)
    alone = train(job)
    launch = Launcher(divide(LauncherSettings(processes=args.processes), settings.model))
    together = train(replace(job, work=folder / "several", launch=launch))
    shutil.rmtree(folder)
    before, one, several = (
        {name: weight.detach().float().cpu() for name, weight in model.named_parameters()}
        for model in (load_model(base, settings.model, "float32").model, alone.loaded.model, together.loaded.model)
    )

    def apart(mine: dict[str, Any], theirs: dict[str, Any]) -> float:
        return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)

    losses = [[entry["loss"] for entry in run.history if "loss" in entry] for run in (alone, together)]
    furthest = max(abs(mine - theirs) for mine, theirs in zip(*losses, strict=True))
    shown = (", ".join(f"{loss:.4f}" for loss in run) for run in losses)
    return (
        f"| {stage} | {method} | {len(losses[0])} | {apart(one, several):.1e} | {apart(before, one):.1e} | "
        f"{' | '.join(shown)} | {furthest:.0e} |"
    )


def training(stage: str, method: str, settings: Any, args: Any) -> Callable[[TrainingJob], TrainingRun]:
    """Return what trains a stage on the embedded data."""
    from srlm_pipeline.config import DpoSettings, EftSettings, SftSettings
    from srlm_pipeline.data.loaders import load_instructions, load_ranked_replies
    from srlm_pipeline.training.dpo import train_dpo
    from srlm_pipeline.training.human_pairs import best_worst_pairs
    from srlm_pipeline.training.ranking import train_ranking
    from srlm_pipeline.training.ranking_items import RankedExample
    from srlm_pipeline.training.sft import SftExample, train_sft

    common: dict[str, Any] = {
        "method": method,
        "learning_rate": RATES[method],
        "batch_size": args.batch,
        "micro_batch_size": 2,
        "max_length": 96,
        "epochs": 1,
        "warmup_ratio": 0.0,
    }
    if stage == "sft":
        table = load_instructions(settings.data).table.head(args.examples)
        texts = [SftExample(row.prompt, row.response) for row in table.itertuples()]
        return lambda job: train_sft(job, texts, SftSettings(**common))
    ranked = load_ranked_replies(settings.data).table
    if stage == "dpo":
        pairs = best_worst_pairs(ranked)[: args.examples]
        return lambda job: train_dpo(job, pairs, DpoSettings(**common))
    groups = [
        RankedExample(str(group["prompt"].iloc[0]), tuple(group["text"]), tuple(map(int, group["rank"])), scores)
        for _, group in ranked.groupby("group_id", sort=True)
        if (scores := (None,) * len(group))
    ][: args.examples]
    return lambda job: train_ranking(job, groups, EftSettings(ranking=True, **common), "short")


if __name__ == "__main__":
    main()
