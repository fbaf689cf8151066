"""SFT and DPO steps with adapters on all layers, against TRL as it is set up by default."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import corpus
from benchmarks.baselines import trl_dpo, trl_sft
from benchmarks.common import (
    Bench,
    Measurement,
    StepClock,
    Verdict,
    in_own_process,
    interleave,
    load,
    model_folder,
    options,
    parse,
    ratios,
)
from benchmarks.work import ModelSize

if TYPE_CHECKING:
    from srlm_pipeline.config import DpoSettings, SftSettings

TARGET = 2.5
RANK = 16
SMOKE = {"sft_steps": 2, "dpo_steps": 2, "warm_up": 0, "tokens": 128, "batch_size": 2}


def add_sizes(parser: argparse.ArgumentParser, steps: int) -> None:
    """Add the options of trainings."""
    parser.add_argument("--sft-steps", type=int, default=steps, help="optimiser steps per repetition")
    parser.add_argument("--dpo-steps", type=int, default=steps, help="optimiser steps per repetition")
    parser.add_argument("--tokens", type=int, default=270, help="of every sequence")
    parser.add_argument("--batch-size", type=int, default=4, help="examples or pairs per step")


def settings_for(args: argparse.Namespace, **more: Any) -> tuple[SftSettings, DpoSettings]:
    """Return our settings: adapters of the same rank on all linear layers, the same batch, one epoch."""
    from srlm_pipeline.config import DpoSettings, LoraSettings, SftSettings

    common = {
        "lora": LoraSettings(rank=RANK, alpha=2 * RANK, top_layers=1.0),
        "epochs": 1,
        "batch_size": args.batch_size,
        "micro_batch_size": args.batch_size,
        "max_length": args.tokens,
        "save_every": 10**6,
        **more,
    }
    return SftSettings(**common), DpoSettings(**common)


class Data:
    """Examples of a fixed length, in the form that each side takes them.

    Real prompts with replies so long that cutting at the maximum length leaves every sequence equally long.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from srlm_pipeline.training.dpo import PreferenceExample
        from srlm_pipeline.training.sft import SftExample

        n_sft, n_dpo = args.sft_steps * args.batch_size, args.dpo_steps * args.batch_size
        self.exchanges = corpus.exchanges(args.data, max(n_sft, n_dpo), args.tokens, args.seed)
        others = corpus.exchanges(args.data, n_dpo, args.tokens, args.seed + 1)
        pairs = list(zip(self.exchanges, others, strict=False))
        self.sft = [SftExample(e.prompt, e.reply) for e in self.exchanges[:n_sft]]
        self.dpo = [PreferenceExample(e.prompt, e.reply, other.reply) for e, other in pairs]
        self.sft_rows = [{"prompt": user(e.prompt), "completion": assistant(e.response)} for e in self.sft]
        self.dpo_rows = [
            {"prompt": user(e.prompt), "chosen": assistant(e.chosen), "rejected": assistant(e.rejected)}
            for e in self.dpo
        ]


def user(text: str) -> list[dict[str, str]]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    """Return a conversation of one reply."""
    return [{"role": "assistant", "content": text}]


def our_sft(folder: Path, data: Data, args: argparse.Namespace, seed: int, **more: Any) -> StepClock:
    """Train with the pipeline's SFT."""
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.sft import train_sft

    settings, _ = settings_for(args, **more)
    model = ModelSettings(device=args.device)
    with tempfile.TemporaryDirectory() as work:
        clock = StepClock()
        run = train_sft(TrainingJob(folder, model, seed, Path(work) / "sft", "SFT", clock), data.sft, settings)
    clock.losses = [float(entry["loss"]) for entry in run.history if "loss" in entry]
    return clock


def our_dpo(folder: Path, data: Data, args: argparse.Namespace, seed: int, **more: Any) -> StepClock:
    """Train with the pipeline's DPO."""
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.dpo import train_dpo

    _, settings = settings_for(args, **more)
    model = ModelSettings(device=args.device)
    with tempfile.TemporaryDirectory() as work:
        clock = StepClock()
        run = train_dpo(TrainingJob(folder, model, seed, Path(work) / "dpo", "DPO", clock), data.dpo, settings)
    clock.losses = [float(entry["loss"]) for entry in run.history if "loss" in entry]
    return clock


def import_libraries() -> None:
    """Import what a training needs, and keep it quiet."""
    from srlm_pipeline.cli import quiet_libraries

    quiet_libraries()
    # Brings torch, datasets, PEFT and TRL's trainers.
    import srlm_pipeline.training.trainers  # noqa: F401


alone = partial(in_own_process, import_libraries)
"""Run one training in a process of its own, imports not counted."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    add_sizes(parser, steps=10)
    parser.add_argument("--warm-up", type=int, default=2, help="first steps, not counted")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("training", "Training: steps per second", args)
    folder = model_folder(args)
    data = Data(args)
    common = (args.device, args.batch_size, args.tokens, RANK)
    # A seed of its own for each repetition: TRL keeps a reference's log-probabilities on disk while data and adapters
    # are the same, and the second repetition would find them there.
    runs = interleave(
        bench,
        {
            "SFT, ours": lambda n: alone(our_sft, folder, data, args, args.seed + n, learning_rate=2e-5),
            "SFT, TRL": lambda n: alone(trl_sft, folder, data.sft_rows, *common, args.seed + n),
            "DPO, ours": lambda n: alone(our_dpo, folder, data, args, args.seed + n, learning_rate=1e-6),
            "DPO, TRL": lambda n: alone(trl_dpo, folder, data.dpo_rows, *common, args.seed + n),
        },
        args.repetitions,
    )
    steady = {name: [clock.step_seconds(args.warm_up) for clock in own] for name, own in runs.items()}
    whole = {name: [clock.whole_seconds / len(clock.ends) for clock in own] for name, own in runs.items()}
    least = {stage: bench.limits.seconds(flops) for stage, flops in step_flops(folder, data, args).items()}
    bench.finish(
        [
            Measurement(
                name,
                "steps/s",
                [1 / seconds for seconds in steady[name]],
                least[name[:3]] / statistics.median((whole if name.startswith("DPO") else steady)[name]),
                f"{1 / statistics.median(whole[name]):.2f} with all that comes before the first step",
            )
            for name in runs
        ],
        [
            Verdict("SFT step against TRL", ratios(steady["SFT, TRL"], steady["SFT, ours"]), TARGET),
            Verdict("DPO against TRL, reference included", ratios(whole["DPO, TRL"], whole["DPO, ours"]), TARGET),
            Verdict("DPO step alone against TRL", ratios(steady["DPO, TRL"], steady["DPO, ours"]), TARGET),
        ],
        [
            f"LoRA of rank {RANK} on all linear layers, {args.batch_size} sequences (SFT) or pairs (DPO) of "
            f"{args.tokens} tokens per step; medians over the steps after the first {args.warm_up}.",
            "Each training runs in a process of its own, so that no contender profits from another's settings.",
            "DPO with its reference: from the call to the last step, divided by the steps of one epoch. Loading the "
            "model and, for ours, computing the reference's log-probabilities belong to it; TRL computes them anew in "
            "each step, so that with more epochs ours gains.",
            "The share of the limit that DPO reaches counts the reference's passes as work, and the time of all that "
            "comes before the first step.",
        ],
    )


def step_flops(folder: Path, data: Data, args: argparse.Namespace) -> dict[str, float]:
    """Return the operations of one step of each stage."""
    from srlm_pipeline.data.chat import render_user_turn

    loaded = load(folder, args)
    size = ModelSize.of(loaded.model)
    prompts = [
        len(loaded.tokenizer(render_user_turn(loaded.tokenizer, e.prompt), add_special_tokens=False).input_ids)
        for e in data.exchanges
    ]
    read = args.batch_size * args.tokens
    predicted = round(read - args.batch_size * sum(prompts) / len(prompts))
    training, reading = size.training_flops(read, predicted, RANK), size.forward_flops(read, predicted)
    return {"SFT": training, "DPO": 2 * (training + reading)}


if __name__ == "__main__":
    main()
