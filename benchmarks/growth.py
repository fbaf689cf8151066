"""Candidates, judging and pairs for 64 to 512 prompts: time per prompt and peak memory as the work grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import corpus
from benchmarks.common import (
    Bench,
    Measurement,
    PeakMemory,
    Series,
    Verdict,
    fresh_engine,
    interleave,
    load,
    model_folder,
    number,
    options,
    parse,
    timed,
)
from benchmarks.core import score

TARGET = 10.0
SIZES = (64, 128, 256, 512)
SMOKE = {"sizes": [2, 4], "max_new_tokens": 4}


@dataclass(frozen=True)
class Grown:
    """What one size took.

    Attributes:
        seconds: Per prompt.
        peak: Resident size in bytes.
        n_tokens: Drawn, per prompt.
    """

    seconds: float
    peak: int
    n_tokens: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="prompts, ascending")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parse(parser, arguments, SMOKE)
    bench = Bench("growth", "Growth: time per prompt and memory", args)

    from srlm_pipeline.config import load_settings
    from srlm_pipeline.generation.candidates import write_candidates
    from srlm_pipeline.preference.pairs import select_best_worst
    from srlm_pipeline.progress import NullProgress

    settings = load_settings(
        "quickstart",
        {
            "seed": args.seed,
            "candidates": {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size},
            "judge": {"mode": "distribution", "batch_size": args.batch_size},
        },
    )
    loaded = load(model_folder(args), args)
    largest = max(args.sizes)
    # Every size takes prompts from the whole range of lengths, so that only their number differs.
    texts = sorted(corpus.prompts(args.data, largest, args.seed, max_words=60), key=len)

    def run(size: int, _: int = 0) -> Grown:
        step = largest / size
        prompts = [(f"p{place:05d}", texts[int(place * step)]) for place in range(size)]

        def work() -> int:
            engine = fresh_engine(loaded, args.batch_size)
            candidates = write_candidates(engine, prompts, settings.candidates, settings.seed, "growth", NullProgress())
            select_best_worst(score(engine, candidates, settings, "growth"))
            return int(candidates["n_tokens"].sum())

        with PeakMemory() as memory:
            n_tokens, seconds = timed(work, args.device)
        return Grown(seconds / size, memory.peak, n_tokens / size)

    # The first run after loading pays for what is allocated once.
    run(min(args.sizes))
    runs = interleave(bench, {str(size): partial(run, size) for size in args.sizes}, args.repetitions)
    # The best of the repetitions: what else the machine does can only add.
    per_token = {size: min(r.seconds / r.n_tokens for r in own) for size, own in runs.items()}
    peaks = [runs[str(size)][0].peak for size in args.sizes]
    smallest = str(args.sizes[0])
    bench.finish(
        [
            Measurement(
                f"{size} prompts",
                "s per prompt",
                [r.seconds for r in own],
                note=f"{own[0].n_tokens:.0f} tokens per prompt",
            )
            for size, own in runs.items()
        ],
        [
            Verdict(
                "time per drawn token, largest deviation from the smallest size",
                [100 * max(abs(value / per_token[smallest] - 1) for value in per_token.values())],
                TARGET,
                "%",
                at_least=False,
            ),
            Verdict(
                "peak memory, growth from smallest to largest", [100 * (peaks[-1] / peaks[0] - 1)], TARGET, "%", False
            ),
        ],
        [
            "Time is held against tokens drawn, because other prompts get longer or shorter replies. Peaks are of the "
            "first repetition, sizes ascending: memory that an allocator keeps counts against the larger one.",
        ],
        Series(
            ["prompts", "seconds per prompt", "ms per drawn token", "peak memory, GiB"],
            [
                [
                    size,
                    number(min(r.seconds for r in own)),
                    number(1000 * per_token[size]),
                    f"{own[0].peak / 2**30:.2f}",
                ]
                for size, own in runs.items()
            ],
        ),
    )


if __name__ == "__main__":
    main()
