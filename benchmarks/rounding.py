"""What is left of one DPO once its weights are saved in bfloat16, by full fine-tuning and by adapters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import SMOKE_RESULTS, Bench, Measurement, Series, options, parse
from benchmarks.common import model_folder as base_folder

SMOKE = {"pairs": 4, "epochs": 1.0}
# SmolLM2's own DPO changed all weights at 1e-6; the quickstart trains adapters.
TRAININGS: dict[str, dict[str, Any]] = {
    "all weights, 1e-6": {"method": "full", "learning_rate": 1e-6, "beta": 0.5},
    "all weights, 1e-5": {"method": "full", "learning_rate": 1e-5, "beta": 0.5},
    "adapters, 3e-4": {"method": "lora", "learning_rate": 3e-4, "beta": 0.1},
}


@dataclass(frozen=True)
class Rounded:
    """A training's change of the weights, and what bfloat16 keeps of it.

    Attributes:
        steps: Optimiser steps.
        moved: Share of the weights that changed in float32, 0..1.
        kept: Share that is another number in bfloat16.
        length: Norm of the change in bfloat16 as a share of that in float32.
        direction: Cosine between the two changes.
    """

    steps: int
    moved: float
    kept: float
    length: float
    direction: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--pairs", type=int, default=96, help="of the embedded human rankings, at most")
    parser.add_argument("--epochs", type=float, default=2.0)
    args = parse(parser, arguments, SMOKE)
    bench = Bench("rounding", "Rounding a DPO to bfloat16", args)
    found = {}
    for name, changes in TRAININGS.items():
        found[name] = train_and_round(base_folder(args), changes, args)
        bench.say(f"{name}: {found[name]}")
    bench.finish(
        [
            Measurement(name, "% of the weights are others in bfloat16", [100 * r.kept], note=f"{r.steps} steps")
            for name, r in found.items()
        ],
        [],
        [
            "Each starts from the same weights, rounded to bfloat16. In float32 nearly all trained weights change. "
            "The change that is saved is measured by its length and by its direction beside the one that was trained.",
        ],
        Series(
            ["training", "steps", "changed in float32", "changed in bfloat16", "length kept", "cosine"],
            [
                [name, str(r.steps), f"{r.moved:.1%}", f"{r.kept:.1%}", f"{r.length:.0%}", f"{r.direction:.2f}"]
                for name, r in found.items()
            ],
        ),
    )


def train_and_round(base: Path, changes: dict[str, Any], args: Any) -> Rounded:
    """Train with DPO on human preferences and compare the weights before and after, in both types."""
    import torch

    from srlm_pipeline.commands.terminal import terminal_reporter
    from srlm_pipeline.config import DpoSettings, LoraSettings, load_settings
    from srlm_pipeline.data.loaders import load_ranked_replies
    from srlm_pipeline.models.loading import load_model
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.dpo import train_dpo
    from srlm_pipeline.training.human_pairs import best_worst_pairs

    settings = load_settings("quickstart", {"model": {"device": args.device}})
    folder = SMOKE_RESULTS / "rounding"
    shutil.rmtree(folder, ignore_errors=True)
    start = load_model(base, settings.model.model_copy(update={"device": "cpu"}), dtype="bfloat16")
    start.model.save_pretrained(folder / "start")
    start.tokenizer.save_pretrained(folder / "start")
    dpo = DpoSettings(
        lora=LoraSettings(top_layers=1.0),
        epochs=args.epochs,
        batch_size=8,
        micro_batch_size=2,
        max_length=384,
        **changes,
    )
    pairs = best_worst_pairs(load_ranked_replies(settings.data).table)[: args.pairs]
    job = TrainingJob(folder / "start", settings.model, args.seed, folder / "work", "DPO", terminal_reporter())
    run = train_dpo(job, pairs, dpo)
    after = dict(run.loaded.model.named_parameters())
    moved = kept = total = 0
    trained_square = saved_square = product = 0.0
    with torch.no_grad():
        for name, weight in start.model.named_parameters():
            before, now = weight.float(), after[name].float().cpu()
            trained, saved = now - before, now.to(torch.bfloat16).float() - before
            moved += int((trained != 0).sum())
            kept += int((saved != 0).sum())
            total += before.numel()
            trained_square += float(trained.double().square().sum())
            saved_square += float(saved.double().square().sum())
            product += float((trained.double() * saved.double()).sum())
    shutil.rmtree(folder)
    steps = max(int(entry["step"]) for entry in run.history if "loss" in entry)
    # In a trial nothing may have been learned.
    scale = (trained_square * saved_square) ** 0.5 or 1.0
    length = (saved_square / trained_square) ** 0.5 if trained_square else 0.0
    return Rounded(steps, moved / total, kept / total, length, product / scale)


if __name__ == "__main__":
    main()
