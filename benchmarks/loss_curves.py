"""Losses of ours and of TRL's defaults, step by step, on the same data in the same order from the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.baselines import trl_dpo, trl_sft
from benchmarks.common import (
    ROOT,
    SMOKE_RESULTS,
    Bench,
    Measurement,
    Series,
    Verdict,
    interleave,
    model_folder,
    options,
    parse,
)
from benchmarks.training import RANK, SMOKE, Data, add_sizes, our_dpo, our_sft

LEARNING_RATES = {"SFT": 2e-4, "DPO": 2e-5}
FINAL_RATIO, WARM_UP = 0.2, 0.05
STAGES = ("SFT", "DPO")
CONTENDERS = ("ours", "TRL", "TRL, other start", "TRL, other seed")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    add_sizes(parser, steps=30)
    args = parse(parser, arguments, {key: value for key, value in SMOKE.items() if key != "warm_up"})
    bench = Bench("loss_curves", "Losses: ours and TRL", args)
    folder = model_folder(args)
    data = Data(args)
    rows = {"SFT": data.sft_rows, "DPO": data.dpo_rows}
    ours = {"SFT": our_sft, "DPO": our_dpo}
    trl = {"SFT": trl_sft, "DPO": trl_dpo}
    schedule: dict[str, Any] = {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": FINAL_RATIO},
        "warmup_steps": WARM_UP,
        "logging_steps": 1,
    }

    def run_ours(stage: str, _: int) -> list[float]:
        return ours[stage](
            folder,
            data,
            args,
            args.seed,
            learning_rate=LEARNING_RATES[stage],
            final_learning_rate_ratio=FINAL_RATIO,
            warmup_ratio=WARM_UP,
        ).losses

    def run_trl(stage: str, seed: int, order: int, _: int) -> list[float]:
        common = (args.device, args.batch_size, args.tokens, RANK, seed)
        rate = LEARNING_RATES[stage]
        return trl[stage](folder, rows[stage], *common, learning_rate=rate, data_seed=order, **schedule).losses

    curves: dict[str, list[float]] = {}
    for stage in STAGES:
        found = interleave(
            bench,
            {
                f"{stage}, ours": partial(run_ours, stage),
                f"{stage}, TRL": partial(run_trl, stage, args.seed, args.seed),
                f"{stage}, TRL, other start": partial(run_trl, stage, args.seed + 1, args.seed),
                f"{stage}, TRL, other seed": partial(run_trl, stage, args.seed + 1, args.seed + 1),
            },
            repetitions=1,
        )
        curves.update({name: losses for name, (losses,) in found.items()})
    picture = (SMOKE_RESULTS if args.smoke else ROOT / "docs" / "images") / "loss-curves.png"
    plot(curves, picture)
    measurements, verdicts = [], []
    for stage in STAGES:
        mine, plain, start, other = (curves[f"{stage}, {name}"] for name in CONTENDERS)
        between, narrow, noise = (
            mean_difference(mine, plain),
            mean_difference(plain, start),
            mean_difference(plain, other),
        )
        measurements += [
            Measurement(f"{stage}: ours against TRL, same seed", "mean absolute difference", [between]),
            Measurement(f"{stage}: TRL against TRL, adapters start otherwise", "mean absolute difference", [narrow]),
            Measurement(f"{stage}: TRL against TRL, other seed altogether", "mean absolute difference", [noise]),
        ]
        verdicts.append(Verdict(f"{stage}: ours against TRL, held against the noise", [between], noise, "", False))
    longest = max(map(len, curves.values()))
    bench.finish(
        measurements,
        verdicts,
        [
            f"Learning rates {LEARNING_RATES['SFT']:g} (SFT) and {LEARNING_RATES['DPO']:g} (DPO), cosine, for all; "
            "all else as in `benchmarks.training`. Noise is what another seed changes in TRL alone, the order of "
            "the data included, so that steps of other examples are compared; the stricter yardstick beside it changes "
            "only how adapters start. Ours rounds otherwise: its frozen weights are in bfloat16.",
            f"![Losses of ours and of TRL by step](images/{picture.name})",
        ],
        Series(
            ["step", *curves],
            [
                [str(step + 1), *(f"{c[step]:.4f}" if step < len(c) else "" for c in curves.values())]
                for step in range(longest)
            ],
        ),
    )


def mean_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the mean absolute difference of two curves."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def plot(curves: dict[str, list[float]], target: Path) -> None:
    """Draw the curves of both stages side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    styles = dict(zip(CONTENDERS, ("-", "--", ":", "-."), strict=True))
    for axes, stage in zip(figure.subplots(1, 2), STAGES, strict=True):
        for name, style in styles.items():
            losses = curves[f"{stage}, {name}"]
            axes.plot(range(1, len(losses) + 1), losses, style, label=name)
        axes.set(title=stage, xlabel="step", ylabel="loss")
        axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
