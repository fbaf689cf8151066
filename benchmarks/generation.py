"""Candidates: 64 prompts x 4 replies of up to 128 tokens, against `model.generate` of transformers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import corpus
from benchmarks.baselines import PlainGenerator
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

TARGET = 5.0
SMOKE = {"prompts": 4, "baseline_prompts": 2, "max_new_tokens": 8, "batch_size": 16}


@dataclass(frozen=True)
class Written:
    """What one run wrote.

    Attributes:
        rows: Tokens read and tokens drawn of each reply.
        prompt_tokens: Of the different prompts.
        seconds: From the first prompt to the last reply.
    """

    rows: list[tuple[int, int]]
    prompt_tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens drawn per second."""
        return sum(new for _, new in self.rows) / self.seconds

    @property
    def mean_tokens(self) -> float:
        """Tokens drawn per reply."""
        return sum(new for _, new in self.rows) / len(self.rows)

    def limit_share(self, size: ModelSize, batch_size: int, limits: Limits) -> float:
        """Return how much of the machine's limit was reached."""
        return size.writing_seconds(self.rows, self.prompt_tokens, batch_size, limits) / self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--baseline-prompts", type=int, default=16, help="share that `model.generate` does")
    parser.add_argument("--per-prompt", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="rows written together, by all contenders")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("generation", "Candidates: tokens per second", args)

    from srlm_pipeline.data.chat import render_user_turn
    from srlm_pipeline.generation.engine import GenerationRequest, Sampling, derive_seed

    folder = model_folder(args)
    loaded = load(folder, args)
    plain = {dtype: PlainGenerator(folder, dtype, args.device) for dtype in ("float32", "bfloat16")}
    size = ModelSize.of(plain["float32"].model)
    texts = corpus.prompts(args.data, args.prompts, args.seed, max_words=60)
    # Every so-many-th prompt by length: the share is as long as the whole.
    by_length = sorted(texts, key=len)
    share = by_length[:: max(1, len(texts) // args.baseline_prompts)][: args.baseline_prompts]

    def ours(repetition: int) -> Written:
        writer = fresh_engine(loaded, args.batch_size)
        requests = [
            GenerationRequest(f"{p}#{k}", writer.render(text), derive_seed(args.seed + repetition, "bench", p, k))
            for p, text in enumerate(texts)
            for k in range(args.per_prompt)
        ]
        sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=args.max_new_tokens)
        completions, seconds = timed(lambda: writer.generate(requests, sampling), args.device)
        lengths = [len(loaded.tokenizer(r.prompt, add_special_tokens=False).input_ids) for r in requests]
        return Written(
            [(length, c.n_tokens) for length, c in zip(lengths, completions, strict=True)],
            sum(lengths[:: args.per_prompt]),
            seconds,
        )

    def theirs(dtype: str, repetition: int) -> Written:
        rendered = [render_user_turn(loaded.tokenizer, text) for text in share]
        replies, seconds = timed(
            lambda: plain[dtype].generate(
                rendered, args.per_prompt, args.max_new_tokens, args.batch_size, args.seed + repetition
            ),
            args.device,
        )
        lengths = [len(loaded.tokenizer(text, add_special_tokens=False).input_ids) for text in rendered]
        rows = [(length, r.n_tokens) for length, own in zip(lengths, replies, strict=True) for r in own]
        return Written(rows, sum(lengths), seconds)

    runs = interleave(
        bench,
        {
            "ours": ours,
            "generate, float32": lambda repetition: theirs("float32", repetition),
            "generate, bfloat16": lambda repetition: theirs("bfloat16", repetition),
        },
        args.repetitions,
    )
    rates = {name: [run.rate for run in own] for name, own in runs.items()}
    bench.finish(
        [
            Measurement(
                name,
                "tokens/s",
                rates[name],
                statistics.median(run.limit_share(size, args.batch_size, bench.limits) for run in own),
                f"{len(own[0].rows)} replies, {own[0].mean_tokens:.0f} tokens on average",
            )
            for name, own in runs.items()
        ],
        [Verdict("ours against `generate` in float32", ratios(rates["ours"], rates["generate, float32"]), TARGET)],
        [
            "Only tokens that belong to a reply are counted: a row stops counting after its end token.",
            f"`generate` did {len(share)} of the {len(texts)} prompts, spread evenly over their lengths.",
            "ours against `generate` in bfloat16: "
            f"{min(ratios(rates['ours'], rates['generate, bfloat16'])):.1f}x at least.",
        ],
    )


if __name__ == "__main__":
    main()
