"""The novelty filter on 20,000 prompts, against ROUGE-L of every pair in a Python loop."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from benchmarks import corpus
from benchmarks.baselines import plain_rouge_l, words
from benchmarks.common import (
    Bench,
    Measurement,
    Series,
    Verdict,
    interleave,
    options,
    parse,
    ratios,
    timed,
)

TARGET = 50.0
THRESHOLD = 0.7
SMOKE = {"prompts": 1500, "pairs": 300}
BLOCK = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=5_000, help="share of the pairs that the loop compares")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("novelty", "Novelty filter: pairs per second", args)
    texts = corpus.prompts(args.data, args.prompts, args.seed)
    random.Random(args.seed).shuffle(texts)  # noqa: S311 - nothing secret
    n_real = len(corpus.real_prompts(args.data))
    tokenised = [words(text) for text in texts]

    def ours(_: int) -> tuple[list[float], int, int]:
        """Return seconds per block, accepted prompts, pairs compared."""
        from srlm_pipeline.prompting.filters import NoveltyIndex

        index, seconds, accepted, pairs = NoveltyIndex(), [], 0, 0
        started = time.perf_counter()
        for place, text in enumerate(texts, start=1):
            pairs += accepted
            if index.nearest(text) < THRESHOLD:
                index.add(text)
                accepted += 1
            if place % BLOCK == 0 or place == len(texts):
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
        return seconds, accepted, pairs

    def theirs(repetition: int) -> float:
        """Return pairs per second."""
        draw = random.Random(args.seed + repetition)  # noqa: S311 - nothing secret
        chosen = [draw.sample(range(len(texts)), 2) for _ in range(args.pairs)]
        _, seconds = timed(lambda: [plain_rouge_l(tokenised[a], tokenised[b]) for a, b in chosen])
        return args.pairs / seconds

    runs = interleave(bench, {"ours": ours, "Python loop": theirs}, args.repetitions)
    blocks, accepted, pairs = runs["ours"][0]
    mine = [pairs / sum(seconds) for seconds, _, _ in runs["ours"]]
    loop = runs["Python loop"]
    whole = statistics.median(sum(seconds) for seconds, _, _ in runs["ours"])
    bench.finish(
        [
            Measurement("ours", "pairs/s", mine, note=f"{len(texts):,} prompts in {whole:.1f} s"),
            Measurement(
                "Python loop",
                "pairs/s",
                loop,
                note=f"all {pairs:,} pairs would take {pairs / loop[0] / 3600:.1f} hours",
            ),
        ],
        [Verdict("ours against the Python loop", ratios(mine, loop), TARGET)],
        [
            f"{min(n_real, len(texts)):,} prompts are real, the rest recombined from their words at real lengths; "
            f"{statistics.mean(map(len, tokenised)):.0f} words on average, {accepted:,} accepted at {THRESHOLD}.",
            f"The loop compared {args.pairs:,} random pairs per repetition, already split into words.",
            "The machine's limits above say nothing about this work, which is done in integer registers.",
        ],
        Series(
            ["prompts known before", "seconds for the next 1,000"],
            [
                [f"{place * BLOCK:,}", f"{statistics.median(run[0][place] for run in runs['ours']):.2f}"]
                for place in range(len(blocks))
            ],
        ),
    )


if __name__ == "__main__":
    main()
