"""LLM-as-a-Judge on 256 replies under the full rubric, against K sampled rationales of `model.generate`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import corpus
from benchmarks.baselines import PlainGenerator, plain_judgements
from benchmarks.common import (
    Bench,
    Measurement,
    Verdict,
    fresh_engine,
    interleave,
    load,
    model_folder,
    options,
    parse,
    ratios,
    timed,
)
from benchmarks.work import Limits, ModelSize

DISTRIBUTION_TARGET, SAMPLED_TARGET = 15.0, 4.0
SMOKE = {"items": 6, "baseline_items": 1, "max_new_tokens": 8}


@dataclass(frozen=True)
class Judged:
    """What one run judged.

    Attributes:
        n_items: Replies.
        n_valid: Of them with a score.
        seconds: For all.
        least: What the machine needs at least for this work, in seconds.
    """

    n_items: int
    n_valid: int
    seconds: float
    least: Callable[[Limits], float]

    @property
    def rate(self) -> float:
        """Replies judged per second."""
        return self.n_items / self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--items", type=int, default=256, help="replies to be judged")
    parser.add_argument("--baseline-items", type=int, default=21, help="share that `model.generate` judges")
    parser.add_argument("--samples", type=int, default=3, help="rationales per reply (K)")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="of a rationale")
    parser.add_argument("--batch-size", type=int, default=64, help="rows together, of all contenders")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("judging", "Judging: replies per second", args)

    from srlm_pipeline.config import JudgeSettings
    from srlm_pipeline.judging.choosing import make_judge
    from srlm_pipeline.judging.judges import JudgeItem
    from srlm_pipeline.judging.rubric import SCORE_START, judge_prompt
    from srlm_pipeline.progress import NullProgress

    folder = model_folder(args)
    loaded = load(folder, args)
    plain = PlainGenerator(folder, "float32", args.device)
    size = ModelSize.of(plain.model)
    replies = corpus.judged_replies(args.items)
    share = sorted(replies, key=lambda pair: len("".join(pair)))[:: max(1, len(replies) // args.baseline_items)]
    share = share[: args.baseline_items]

    def prompt_tokens(pairs: Sequence[tuple[str, str]], form: Any, start: str = "") -> list[list[int]]:
        writer = fresh_engine(loaded, 1)
        texts = [writer.render(judge_prompt("additive", *pair, form), start) for pair in pairs]
        return [list(loaded.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]

    def ours(settings: JudgeSettings, repetition: int) -> Judged:
        engine = fresh_engine(loaded, args.batch_size)
        items = [JudgeItem(f"{place:05d}", *pair) for place, pair in enumerate(replies)]
        judge = make_judge(engine, settings, args.seed + repetition, "bench")
        judgements, seconds = timed(lambda: judge.judge(items, NullProgress()), args.device)
        valid = sum(j.score is not None for j in judgements)
        if settings.mode == "distribution":
            read = needed(prompt_tokens(replies, "direct", SCORE_START))
            return Judged(
                len(items), valid, seconds, lambda limits: limits.seconds(size.forward_flops(read, len(items)))
            )
        tokens = prompt_tokens(replies, "rationale")
        rows = [
            (len(ids), len(loaded.tokenizer(text, add_special_tokens=False).input_ids))
            for ids, judgement in zip(tokens, judgements, strict=True)
            for text in json.loads(judgement.raw)
        ]
        return Judged(len(items), valid, seconds, partial(size.writing_seconds, rows, needed(tokens), args.batch_size))

    def theirs(repetition: int) -> Judged:
        (scores, written), seconds = timed(
            lambda: plain_judgements(
                plain, share, args.samples, args.max_new_tokens, args.batch_size, args.seed + repetition
            ),
            args.device,
        )
        tokens = prompt_tokens(share, "rationale")
        rows = [(len(ids), reply.n_tokens) for ids, own in zip(tokens, written, strict=True) for reply in own]
        lengths.extend(reply.n_tokens for own in written for reply in own)
        least = partial(size.writing_seconds, rows, needed(tokens), args.batch_size)
        return Judged(len(share), sum(score is not None for score in scores), seconds, least)

    lengths: list[int] = []
    sampled = JudgeSettings(mode="sampled", rubric="additive", samples=args.samples, max_new_tokens=args.max_new_tokens)
    distribution = JudgeSettings(mode="distribution", rubric="additive")
    baseline = f"generate, float32, K = {args.samples}"
    runs = interleave(
        bench,
        {
            "ours, distribution": lambda repetition: ours(distribution, repetition),
            f"ours, sampled, K = {args.samples}": lambda repetition: ours(sampled, repetition),
            baseline: theirs,
        },
        args.repetitions,
    )
    rates = {name: [run.rate for run in own] for name, own in runs.items()}
    first, second = (rates[name] for name in runs if name != baseline)
    bench.finish(
        [
            Measurement(
                name,
                "replies/s",
                rates[name],
                statistics.median(run.least(bench.limits) / run.seconds for run in own),
                f"{own[0].n_valid} of {own[0].n_items} with a score",
            )
            for name, own in runs.items()
        ],
        [
            Verdict("distribution against sampled `generate`", ratios(first, rates[baseline]), DISTRIBUTION_TARGET),
            Verdict("sampled against sampled `generate`", ratios(second, rates[baseline]), SAMPLED_TARGET),
        ],
        [
            f"`generate` judged {len(share)} of the {len(replies)} replies, spread evenly over their lengths; its "
            f"rationales have {sum(lengths) / len(lengths):.0f} tokens on average.",
            "The distribution judge answers the same question with one forward pass and no rationale: a ratio of "
            "methods, not of implementations. The sampled judge does the same work as `generate`, except that it "
            "stops at a final score line.",
            "The limit counts what the prompts have in common once.",
        ],
    )


def needed(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens have to be read where what all sequences begin with is read once."""
    common = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        common += 1
    return common + sum(len(sequence) - common for sequence in sequences)


if __name__ == "__main__":
    main()
