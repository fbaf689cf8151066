"""The plain implementations that ours is measured against: libraries used as their documentation shows them.

They read the same prompts, in the same words, and their scores are read by the same parser, so that what differs is
only how the work is done.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import StepClock

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PlainReply:
    """One reply and the tokens drawn for it, its end token included and nothing after it."""

    text: str
    n_tokens: int


class PlainGenerator:
    """``model.generate`` on left-padded batches in the order given.

    Args:
        folder: The model.
        dtype: ``float32`` or ``bfloat16``.
        device: Where it computes.
    """

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def generate(
        self,
        prompts: Sequence[str],
        samples: int,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> list[list[PlainReply]]:
        """Write several replies to each prompt.

        Args:
            prompts: Chat template applied.
            samples: Replies per prompt.
            max_new_tokens: Upper bound on each.
            batch_size: Rows that are written together, samples counted.
            seed: Of the sampling.
            temperature: Of the sampling.
            top_p: Of the sampling.
        """
        import torch

        torch.manual_seed(seed)
        replies: list[list[PlainReply]] = []
        per_batch = max(1, batch_size // samples)
        for start in range(0, len(prompts), per_batch):
            chosen = list(prompts[start : start + per_batch])
            inputs = self.tokenizer(chosen, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                written = self.model.generate(
                    **inputs.to(self.model.device),
                    do_sample=True,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=0,
                    max_new_tokens=max_new_tokens,
                    num_return_sequences=samples,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            rows = [self._reply(row) for row in written[:, inputs["input_ids"].shape[1] :].tolist()]
            replies += [rows[place : place + samples] for place in range(0, len(rows), samples)]
        return replies

    def _reply(self, tokens: list[int]) -> PlainReply:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        n_tokens = next((place for place, token in enumerate(tokens, start=1) if token in ends), len(tokens))
        return PlainReply(self.tokenizer.decode(tokens[:n_tokens], skip_special_tokens=True), n_tokens)


def plain_judgements(
    generator: PlainGenerator,
    items: Sequence[tuple[str, str]],
    samples: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> tuple[list[float | None], list[list[PlainReply]]]:
    """Judge replies by sampled rationales under the full rubric, and average the scores that can be read.

    Args:
        generator: The judging model.
        items: Prompts and replies.
        samples: Judgements per reply.
        max_new_tokens: Of a rationale.
        batch_size: Rows that are written together.
        seed: Of the sampling.
    """
    from srlm_pipeline.data.chat import render_user_turn
    from srlm_pipeline.judging.parser import parse_score
    from srlm_pipeline.judging.rubric import judge_prompt

    rendered = [
        render_user_turn(generator.tokenizer, judge_prompt("additive", prompt, reply, "rationale"))
        for prompt, reply in items
    ]
    written = generator.generate(rendered, samples, max_new_tokens, batch_size, seed)
    scores: list[float | None] = []
    for own in written:
        valid = [s for r in own if (s := parse_score(r.text, _finish(r, max_new_tokens))) is not None]
        scores.append(sum(valid) / len(valid) if valid else None)
    return scores, written


def _finish(reply: PlainReply, max_new_tokens: int) -> Any:
    return "length" if reply.n_tokens >= max_new_tokens else "stop"


def words(text: str) -> list[str]:
    """Return what ROUGE-L compares."""
    return _WORD.findall(text.lower())


def plain_rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return ROUGE-L (F1) of two lists of words, by the textbook table of longest common subsequences."""
    if not first or not second:
        return 0.0
    longest = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first, start=1):
        for j, other in enumerate(second, start=1):
            if word == other:
                longest[i][j] = longest[i - 1][j - 1] + 1
            else:
                longest[i][j] = max(longest[i - 1][j], longest[i][j - 1])
    precision, recall = longest[-1][-1] / len(second), longest[-1][-1] / len(first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_nearest(text: str, known: Sequence[str]) -> float:
    """Return the highest ROUGE-L of a text with any known one."""
    return max((plain_rouge_l(words(text), words(other)) for other in known), default=0.0)


def trl_sft(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    device: str,
    batch_size: int,
    max_length: int,
    rank: int,
    seed: int,
    **more: Any,
) -> StepClock:
    """Fine-tune with TRL's defaults: bfloat16 autocast over float32 weights, gradient checkpointing on.

    Args:
        folder: The model.
        rows: Conversational ``prompt`` and ``completion``.
        device: Where it computes.
        batch_size: Examples per step.
        max_length: In tokens.
        rank: Of adapters on all linear layers.
        seed: Of order and adapter initialisation.
        more: Of `SFTConfig`, where a benchmark needs other than the default.
    """
    from trl import SFTConfig, SFTTrainer

    return _train(SFTTrainer, SFTConfig, folder, rows, device, batch_size, max_length, rank, seed, more)


def trl_dpo(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    device: str,
    batch_size: int,
    max_length: int,
    rank: int,
    seed: int,
    **more: Any,
) -> StepClock:
    """Train on preferences with TRL's defaults; rows have conversational ``prompt``, ``chosen``, ``rejected``.

    See `trl_sft`. The reference is the model without its adapters, computed anew in each step.
    """
    from trl import DPOConfig, DPOTrainer

    return _train(DPOTrainer, DPOConfig, folder, rows, device, batch_size, max_length, rank, seed, more)


def _train(
    trainer_type: Any,
    config_type: Any,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    device: str,
    batch_size: int,
    max_length: int,
    rank: int,
    seed: int,
    more: Mapping[str, Any],
) -> StepClock:
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback, set_seed

    clock = StepClock()

    class Noting(TrainerCallback):
        """Tells the clock of each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.advance()

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as work:
        trainer = trainer_type(
            model=_float32_model(folder),
            args=config_type(
                output_dir=work,
                per_device_train_batch_size=batch_size,
                num_train_epochs=1,
                max_length=max_length,
                use_cpu=device == "cpu",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
                **more,
            ),
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer,
            peft_config=_adapters(rank),
            callbacks=[Noting()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    clock.losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return clock


def _float32_model(folder: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _adapters(rank: int) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
