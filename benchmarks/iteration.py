"""One whole iteration with 64 prompts, against a plain loop: one prompt at a time, text judge, TRL's default DPO."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.baselines import PlainGenerator, plain_judgements, plain_nearest, trl_dpo
from benchmarks.common import (
    Bench,
    Measurement,
    Series,
    Verdict,
    interleave,
    model_folder,
    options,
    parse,
    ratios,
    timed,
)
from benchmarks.core import Iteration, run_iteration
from benchmarks.training import RANK, alone, assistant, user
from benchmarks.work import ModelSize

TARGET = 10.0
BATCH = 4
SMOKE = {"prompts": 2, "baseline_prompts": 1, "baseline_dpo_steps": 2, "max_new_tokens": 8, "judge_tokens": 8}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--baseline-prompts", type=int, default=4, help="share that the plain loop does")
    parser.add_argument("--baseline-dpo-steps", type=int, default=4, help="share of the steps that the plain loop does")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of a candidate")
    parser.add_argument("--judge-tokens", type=int, default=100, help="of a rationale in the plain loop")
    parser.add_argument("--samples", type=int, default=3, help="rationales per reply in the plain loop (K)")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("iteration", "One iteration: seconds", args)

    from srlm_pipeline.config import load_settings
    from srlm_pipeline.models.checkpoint import Checkpoint

    folder = model_folder(args)
    settings = load_settings(
        "quickstart",
        {
            "seed": args.seed,
            "model": {"device": args.device},
            "engine": {"kind": "transformers"},
            "prompt_generation": {"count": args.prompts},
            "candidates": {"temperature": 0.7, "max_new_tokens": args.max_new_tokens},
            "judge": {"mode": "distribution", "rubric": "additive", "batch_size": 64},
            "pairs": {"min_margin": 0.0},
            "dpo": {
                "lora": {"rank": RANK, "alpha": 2 * RANK, "top_layers": 1.0},
                "epochs": 1,
                "batch_size": BATCH,
                "micro_batch_size": BATCH,
            },
        },
    )
    checkpoint = Checkpoint(folder, "base", "benchmark", None)

    def ours(repetition: int) -> Iteration:
        # Another seed each time: nothing that an earlier repetition left behind is found again.
        own = settings.model_copy(update={"seed": args.seed + repetition})
        with tempfile.TemporaryDirectory() as work:
            return run_iteration(own, checkpoint, checkpoint, Path(work))

    plain = PlainLoop(folder, args.device, args.samples, args.judge_tokens)
    done: list[Iteration] = []

    def ours_kept(repetition: int) -> Iteration:
        done.append(ours(repetition))
        return done[-1]

    def theirs(repetition: int) -> dict[str, float]:
        """Return seconds by part, scaled to the work that ours has just done."""
        mine = done[repetition]
        chosen = settings.prompt_generation
        seed = args.seed + repetition
        _, invented = timed(
            lambda: plain.invent(args.baseline_prompts, chosen.max_new_tokens, chosen.temperature, seed), args.device
        )
        prompts = list(mine.pairs["prompt"])[: args.baseline_prompts]
        replies, answered = timed(
            lambda: plain.answer(prompts, settings.candidates.per_prompt, args.max_new_tokens, seed), args.device
        )
        items = [(prompt, text) for prompt, own in zip(prompts, replies, strict=True) for text in own]
        _, judged = timed(lambda: plain.judge(items, seed), args.device)
        rows = [
            {"prompt": user(r.prompt), "chosen": assistant(r.chosen), "rejected": assistant(r.rejected)}
            for r in mine.pairs.itertuples()
        ]
        share = rows[: args.baseline_dpo_steps * BATCH]
        clock = alone(trl_dpo, folder, share, args.device, BATCH, settings.dpo.max_length, RANK, seed)
        steps = len(clock.ends)
        return {
            "prompts": invented / args.baseline_prompts * mine.attempts,
            "candidates": answered / len(prompts) * args.prompts,
            "judging": judged / len(items) * args.prompts * settings.candidates.per_prompt,
            "pairs": 0.0,
            "DPO": clock.step_seconds(0) * mine.steps if steps > 1 else clock.whole_seconds * mine.steps,
        }

    runs = interleave(bench, {"ours": ours_kept, "plain loop": theirs}, args.repetitions)
    mine = [sum(run.seconds.values()) for run in runs["ours"]]
    loop = [sum(parts.values()) for parts in runs["plain loop"]]
    first = runs["ours"][0]
    size = ModelSize.of(plain.generator.model)
    # Only what each token must cost at least: what prompts hold beside it is left out.
    least = bench.limits.seconds(size.forward_flops(first.n_tokens, first.n_tokens))
    bench.finish(
        [
            Measurement("ours", "s", mine, note=f"{args.prompts} prompts, {len(first.pairs)} pairs"),
            Measurement("plain loop", "s", loop, note="measured on a share and scaled, part by part"),
            Measurement(
                "ours, candidates alone",
                "s",
                [run.seconds["candidates"] for run in runs["ours"]],
                least / first.seconds["candidates"],
                "limit of the drawn tokens' arithmetic",
            ),
        ],
        [Verdict("ours against the plain loop", ratios(loop, mine), TARGET)],
        [
            f"Of the plain loop were measured, per repetition: {args.baseline_prompts} attempts at a prompt, "
            f"{args.baseline_prompts} prompts answered, their replies judged (K = {args.samples}, "
            f"{args.judge_tokens} tokens), up to {args.baseline_dpo_steps} DPO steps. Each part is scaled to what ours "
            "did in the same repetition: as many attempts, prompts, replies and steps.",
            "Ours includes loading models; the plain loop holds its model in memory, and loading is not counted.",
            "Both use the full rubric and adapters on all layers. Ours judges by distribution, the plain loop by "
            "written rationales: part of the ratio is another method, not another implementation.",
        ],
        Series(
            ["part", "ours, s", "plain loop, s", "ratio"],
            [_part(name, runs["ours"], runs["plain loop"]) for name in runs["plain loop"][0]],
        ),
    )


def _part(name: str, ours: Sequence[Iteration], plain: Sequence[dict[str, float]]) -> list[float | str]:
    own, other = (statistics.median(values) for values in ([r.seconds[name] for r in ours], [p[name] for p in plain]))
    return [name, f"{own:.1f}", f"{other:.1f}", f"{other / own:.1f}x" if other else ""]


class PlainLoop:
    """The loop as public implementations write it: for every prompt, one call after the other, in float32.

    Args:
        folder: The model, which invents, answers and judges.
        device: Where it computes.
        samples: Judgements per reply.
        judge_tokens: Of a judgement.
    """

    def __init__(self, folder: Path, device: str, samples: int, judge_tokens: int) -> None:
        from benchmarks.corpus import embedded_prompts

        self.generator = PlainGenerator(folder, "float32", device)
        self._samples, self._judge_tokens = samples, judge_tokens
        self._known = [text for _, text in embedded_prompts()]

    def invent(self, attempts: int, max_new_tokens: int, temperature: float, seed: int) -> list[str]:
        """Ask for new prompts one by one, each compared with all known ones."""
        import random

        from srlm_pipeline.prompting.few_shot import few_shot_exchange
        from srlm_pipeline.prompting.filters import clean_prompt

        draw = random.Random(seed)  # noqa: S311 - nothing secret
        accepted = []
        for attempt in range(attempts):
            examples = draw.sample(self._known, 8)
            request, reply_start = few_shot_exchange(examples)
            message = self._render(request) + reply_start
            ((reply,),) = self.generator.generate([message], 1, max_new_tokens, 1, seed + attempt, temperature)
            text = clean_prompt(reply.text)
            if plain_nearest(text, self._known) < 0.7:
                accepted.append(text)
        return accepted

    def answer(self, prompts: Sequence[str], samples: int, max_new_tokens: int, seed: int) -> list[list[str]]:
        """Write the replies to each prompt in one call."""
        written = [
            self.generator.generate([self._render(prompt)], samples, max_new_tokens, samples, seed + place)[0]
            for place, prompt in enumerate(prompts)
        ]
        return [[reply.text for reply in own] for own in written]

    def judge(self, items: Sequence[tuple[str, str]], seed: int) -> list[float | None]:
        """Judge one reply after the other, its K rationales in one call."""
        scores: list[float | None] = []
        for place, item in enumerate(items):
            own, _ = plain_judgements(
                self.generator, [item], self._samples, self._judge_tokens, self._samples, seed + place
            )
            scores += own
        return scores

    def _render(self, text: str) -> str:
        from srlm_pipeline.data.chat import render_user_turn

        return render_user_turn(self.generator.tokenizer, text)


if __name__ == "__main__":
    main()
