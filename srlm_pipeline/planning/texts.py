"""The texts of a project, and how long they are in tokens: the data's share in how much work a run is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.checks.verifiable import load_verifiable
from srlm_pipeline.config import JudgeSettings, Settings
from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.generation.prefill import common_length
from srlm_pipeline.judging.eft import eft_from_dataset, eft_from_ranks
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.kinds import kind_place
from srlm_pipeline.judging.negatives import with_negatives
from srlm_pipeline.judging.rubric import (
    comparison_prompt,
    dimension_prompt,
    judge_prompt,
    kind_rubric_prompt,
    questions_exchange,
    yes_no_prompt,
)
from srlm_pipeline.models.chat_format import chat_format
from srlm_pipeline.prompting.few_shot import few_shot_exchange
from srlm_pipeline.prompting.rewriting import rewriting_exchange
from srlm_pipeline.training.ranking_items import RankedExample
from srlm_pipeline.training.seed import judgement_examples, ranked_examples
from srlm_pipeline.training.sft import SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextMeasure:
    """How texts become tokens; what is known of a model by its size alone is four characters a token.

    Attributes:
        per_character: Tokens of a character.
        template: Tokens that a chat template puts around a prompt and its reply.
        thinks: Whether a reply begins with a thought.
    """

    per_character: float = 0.25
    template: float = 8.0
    thinks: bool = False

    def tokens(self, *texts: str) -> float:
        """Return the tokens of one text in several parts."""
        return self.per_character * sum(map(len, texts))

    def conversation(self, *texts: str) -> float:
        """Return the tokens of one text in several parts, and of the chat template."""
        return self.tokens(*texts) + self.template


def measure_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TextMeasure:
    """Return how a model's tokenizer and chat template make tokens of texts like the first hundred of these."""
    joined = "\n".join(texts[:100])
    whole, around = (
        len(tokenizer(text, add_special_tokens=False).input_ids)
        for text in (joined, render_user_turn(tokenizer, "", ""))
    )
    return TextMeasure(whole / max(len(joined), 1), around + 1.0, chat_format(tokenizer).thinks)


@dataclass(frozen=True)
class Lengths:
    """Tokens of each of some texts, or of as many texts like those in the sample."""

    count: int
    sample: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean length in tokens; 0 without texts."""
        return float(np.mean(self.sample)) if self.sample else 0.0

    @property
    def longest(self) -> float:
        """The longest of the sample, in tokens."""
        return max(self.sample, default=0.0)

    @property
    def total(self) -> float:
        """Tokens of all texts."""
        return self.count * self.mean

    def of(self, count: int) -> Lengths:
        """Return the lengths of so many texts like these."""
        return replace(self, count=count)

    def times(self, factor: float) -> Lengths:
        """Return the lengths of texts so many times as long."""
        return replace(self, sample=tuple(factor * length for length in self.sample))

    def cut(self, limit: float) -> Lengths:
        """Return the lengths when longer texts are cut."""
        return replace(self, sample=tuple(min(length, limit) for length in self.sample))

    def __add__(self, more: Lengths | float) -> Lengths:
        """Return the lengths when each text is followed by so many tokens, or by one of the other texts."""
        added = np.resize(more.sample, len(self.sample)) if isinstance(more, Lengths) else more
        return replace(self, sample=tuple((np.array(self.sample) + added).tolist()))


TextKind = Literal[
    "instruction", "prompt", "response", "judgement", "explained", "group", "held_out", "held_out_pair", "best",
    "evaluation", "verifiable", "closed", "few_shot", "rewriting", "template", "judge", "comparison", "kind",
    "held_out_kind", "checklist", "thought",
]  # fmt: skip
Facts = Mapping[TextKind, Lengths]
"""What the work depends on; `measure_data` says what each kind of text is."""


@dataclass(frozen=True)
class ProjectData:
    """What the stages are given: instructions, the ranked replies of both splits, what the seed model learns."""

    ift: pd.DataFrame
    train: pd.DataFrame
    held_out: pd.DataFrame
    judgements: list[SftExample]
    groups: list[RankedExample]


def load_data(settings: Settings) -> ProjectData:
    """Load the data that the settings name, as the stages make it; no model's judgements are among it.

    Raises:
        SrlmError: If a data file is missing or wrong.
    """
    eft, ranked = settings.eft, load_ranked_replies(settings.data).table
    train, held_out = (ranked[ranked["split"] == split] for split in ("train", "held_out"))
    built = eft_from_dataset(train) if eft.targets == "dataset" else eft_from_ranks(train)
    judgements = []
    if eft.enabled:
        built = with_negatives(built, eft.mismatched_negatives, eft.corrupted_negatives, settings.seed)
        judgements = judgement_examples(
            built.table, settings.judge.taught_rubric, eft.rationales_per_prompt, settings.seed
        )
    ift = load_instructions(settings.data).table
    return ProjectData(ift, train, held_out, judgements, ranked_examples(built.table))


def measure_data(settings: Settings, data: ProjectData, measure: TextMeasure) -> Facts:
    """Measure the data; what an engine reads without what all texts of the kind begin with, which it reads once.

    Raises:
        SrlmError: If a file of evaluation prompts, verifiable prompts or closed tasks is missing or wrong.
    """
    judge, invented, tested = settings.judge, settings.prompt_generation, settings.evaluation
    rubric, thinking = judge.taught_rubric, settings.model.thinking
    prompts, held_out = data.ift["prompt"].tolist(), data.held_out
    shown = invented.seed_examples + invented.generated_examples
    by_rank = [group for _, group in held_out.sort_values("rank", kind="stable").groupby("group_id")]
    pairs = [
        comparison_prompt(better.prompt, better.text, worse.text)
        for group in by_rank
        for better, worse in combinations(group.itertuples(), 2)
        if better.rank < worse.rank
    ]
    closed = load_closed_tasks(tested.closed_tasks.source, tested.closed_tasks.limit)

    def lengths(tokens: Iterable[float]) -> Lengths:
        sample = tuple(tokens)
        return Lengths(len(sample), sample)

    def plain(texts: Iterable[str]) -> Lengths:
        return lengths(map(measure.tokens, texts))

    return {
        # IFT: prompt and response together, as they are trained on, and each alone.
        "instruction": lengths(map(measure.conversation, prompts, data.ift["response"])),
        "prompt": plain(prompts),
        "response": plain(data.ift["response"]),
        # Judgement texts of the data with what they answer, and the same questions about all training replies.
        "judgement": lengths(measure.conversation(text.prompt, text.response) for text in data.judgements),
        "explained": lengths(
            measure.conversation(judge_prompt(rubric, r.prompt, r.text, "rationale")) for r in data.train.itertuples()
        ),
        # All judging prompts of a training prompt's replies together, those made up for the judge included.
        "group": lengths(group_tokens(group, settings, measure) for group in data.groups),
        # What is read to judge held-out replies, and each two of different rank; the best replies with their prompts.
        "held_out": plain(unshared([read_to_judge(judge, r.prompt, r.text, r.kind) for r in held_out.itertuples()])),
        "held_out_pair": plain(unshared(pairs)),
        "best": lengths(measure.conversation(group["prompt"].iloc[0], group["text"].iloc[0]) for group in by_rank),
        # What models are asked when they are measured.
        "evaluation": plain(load_evaluation_prompts(settings.data).table["prompt"]),
        "verifiable": plain(prompt.prompt for prompt in load_verifiable(tested.verifiable)),
        "closed": plain(task.prompt for task in closed),
        # Examples after which a model invents a prompt, and prompts of which it makes another.
        "few_shot": plain(few_shot_exchange(prompts[i : i + shown])[1] for i in range(0, len(prompts), shown)),
        "rewriting": plain(unshared([rewriting_exchange("deepen", prompt)[1] for prompt in prompts])),
        # What stands around a prompt and its reply, around these if they are to be judged, and around two replies.
        "template": lengths([measure.template]),
        "judge": plain(unshared([read_to_judge(judge, *texts) for texts in (("", ""), ("a", "b"))])),
        "comparison": plain(unshared([comparison_prompt("", "", ""), comparison_prompt("a", "b", "c")])),
        # Of which kind a prompt is, held-out ones where the data does not tell it; what its replies are checked for.
        "kind": plain(unshared([kind_place(prompt).message for prompt in prompts])),
        "held_out_kind": plain(
            kind_place(group["prompt"].iloc[0]).message
            for group in by_rank
            if group["kind"].iloc[0] not in kind_rubrics().by_kind
        ),
        "checklist": plain(unshared([questions_exchange(prompt)[1] for prompt in prompts])),
        # The longest that a thought may be, if there is one.
        "thought": lengths([thinking.max_new_tokens] if measure.thinks or thinking.enabled else []),
    }


def read_to_judge(judge: JudgeSettings, prompt: str, reply: str, kind: str | None = None) -> str:
    """Return all that is read of a reply to judge it, once: of several questions about it the later ones' ends follow.

    The questions of the kind stand for those of a checklist, which nobody has written yet.

    Args:
        judge: Rubric and mode.
        prompt: The user's instruction.
        reply: To be judged.
        kind: Of the prompt, where it is known.
    """
    if judge.rubric == "additive" or judge.rubric == "short":
        return judge_prompt(judge.rubric, prompt, reply, "direct")
    rubric = kind_rubrics().of(kind)
    if judge.mode != "distribution":
        return kind_rubric_prompt(rubric, prompt, reply)
    ask = dimension_prompt if judge.rubric == "by_kind" else yes_no_prompt
    texts = [ask(dimension.question, prompt, reply) for dimension in rubric.dimensions]
    return "".join([texts[0], *unshared(texts)[1:]])


def group_tokens(group: RankedExample, settings: Settings, measure: TextMeasure) -> float:
    """Return how many tokens the ranking objective is computed on for the replies to one prompt."""
    asked = [judge_prompt(settings.judge.taught_rubric, group.prompt, reply, "direct") for reply in group.replies]
    return sum(min(measure.conversation(message), settings.eft.max_length) for message in asked)


def unshared(texts: Sequence[str]) -> list[str]:
    """Return the texts without what all of them begin with."""
    beginning = common_length(texts) if len(texts) > 1 else 0
    return [text[beginning:] for text in texts]
