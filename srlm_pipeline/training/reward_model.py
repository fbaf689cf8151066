"""The reward model of classic RLHF: a scalar head on the SFT baseline, trained on human pairs, then frozen.

The loss is Bradley-Terry, -log sigmoid(r(chosen) - r(rejected)), as in Ouyang et al. 2022 (arXiv 2203.02155),
equation 1. Every reply gets an end token, in training as in use, and the reward is read there, or at the token before
it where the tokenizer pads with that very token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_pipeline.config import ModelSettings, RewardModelSettings
from srlm_pipeline.data.chat import end_token, tokenize_exchange
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.opening import release_engines
from srlm_pipeline.judging.rubric import MAX_SCORE
from srlm_pipeline.models.integrity import verify
from srlm_pipeline.models.loading import (
    LoadedModel,
    choose_attention,
    choose_device,
    choose_dtype,
    load_tokenizer,
    readable,
)
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.training.common import (
    TrainingJob,
    TrainingRun,
    adapter_config,
    launchable,
    require_rows,
    run_trainer,
    trainer_arguments,
    training_attention,
)
from srlm_pipeline.training.dpo import PreferenceExample
from srlm_pipeline.training.fitting import MOST_ON_CPU, fits_memory, require_libraries
from srlm_pipeline.training.ranks import is_first

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

# Rewards have no natural zero; drawing them towards it keeps those of different runs comparable (Eisenstein et al.
# 2023, arXiv 2312.09244, equation 2).
_CENTERING = 0.01


class RewardModel:
    """Says how good replies are, in the units of its training: a difference of 1 is odds of e to 1.

    Args:
        loaded: A model with one output, and its tokenizer.
        max_length: Tokens of prompt and reply; longer replies are cut.
        batch_size: Replies per forward pass.
    """

    def __init__(self, loaded: LoadedModel, max_length: int, batch_size: int) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._max_length, self._batch_size = max_length, batch_size
        # In half precision the replies to one prompt would often have the very same reward.
        self._model.score.float()
        self._model.score.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        self._model.eval().requires_grad_(False)

    def rewards(self, prompts: Sequence[str], replies: Sequence[str], progress: ProgressReporter) -> list[float]:
        """Return the reward of each reply.

        Args:
            prompts: User messages.
            replies: One to each, all taken to have come to their end.
            progress: Where progress is shown.
        """
        exchanges = [
            tokenize_exchange(self._tokenizer, prompt, reply, ended=False)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        with progress.task("the reward model reads replies", len(exchanges), "replies") as task:
            rewards: list[float] = []
            for start in range(0, len(exchanges), self._batch_size):
                rewards += self.of_tokens(exchanges[start : start + self._batch_size])
                task.advance(len(rewards) - start)
        return rewards

    def of_tokens(self, exchanges: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Return the reward of each pair of prompt tokens and reply tokens, the latter without the end token."""
        import torch

        rows = [torch.tensor(complete(prompt, reply, self._end, self._max_length)) for prompt, reply in exchanges]
        rewards: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(rows), self._batch_size):
                ids, mask = _padded(rows[start : start + self._batch_size], int(self._tokenizer.pad_token_id))
                device = self._model.device
                outputs = self._model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
                rewards += outputs.logits[:, 0].float().tolist()
        return rewards

    @property
    def _end(self) -> int:
        return end_token(self._tokenizer)


def open_reward_model(source: Path, settings: RewardModelSettings, model: ModelSettings) -> RewardModel:
    """Load a trained reward model; nothing of it will change any more.

    Args:
        source: Its folder.
        settings: `max_length` and `micro_batch_size` are read.
        model: How models are loaded.

    Raises:
        ModelError: If the folder does not hold a model with one output.
    """
    loaded = _load(source, model, None)
    return RewardModel(loaded, settings.max_length, 2 * settings.micro_batches(MOST_ON_CPU)[0])


def _load_trained(folder: Path, job: TrainingJob) -> LoadedModel:
    return _load(folder, job.model.model_copy(update={"device": "cpu"}), "float32")


@launchable(_load_trained)
@fits_memory
def train_reward_model(
    job: TrainingJob, examples: Sequence[PreferenceExample], settings: RewardModelSettings
) -> TrainingRun:
    """Train a reward model with TRL's RewardTrainer.

    Args:
        job: Its source is the SFT baseline; the output layer makes room for one number.
        examples: Pairs that people ordered.
        settings: Method, learning rate, ...

    Returns:
        The trained reward model; it cannot chat.

    Raises:
        EmptyDataError: If there are no pairs, or all prompts are too long.
    """
    require_rows(examples, "human-ranked pairs", "check data.ranked_replies: no prompt has replies of different rank")
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig

    from srlm_pipeline.training.trainers import DividedRewardTrainer

    require_libraries(settings, choose_device(job.model.device))
    release_engines()
    set_seed(job.seed)
    dtype, attention = None if settings.keeps_weights else "float32", training_attention(job.model)
    loaded = _load(job.source, job.model, dtype, attention, new_head=True)
    rows = [row for example in examples if (row := _encode(loaded, example, settings.max_length)) is not None]
    require_rows(rows, "human-ranked pairs", "all prompts are longer than baselines.reward_model.max_length")
    adapters = adapter_config(settings, loaded.model)
    if adapters is not None:
        adapters.task_type, adapters.modules_to_save = "SEQ_CLS", ["score"]
        # Trained whole, in a type in which small steps are not lost.
        loaded.model.score.float()
    trainer = DividedRewardTrainer(
        model=loaded.model,
        args=RewardConfig(
            **trainer_arguments(job, settings, loaded),
            max_length=settings.max_length,
            center_rewards_coefficient=_CENTERING,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        peft_config=adapters,
    )
    history = run_trainer(job, trainer)
    trained = _trained(job, settings, trainer, loaded.tokenizer)
    return TrainingRun(trained, history, len(rows), len(examples) - len(rows))


def complete(prompt: list[int], reply: list[int], end: int, max_length: int) -> list[int]:
    """Return the tokens behind which a reward is read: prompt, as much of the reply as fits, end token."""
    return [*prompt, *reply[: max(0, max_length - len(prompt) - 1)], end]


def reward_scores(rewards: Sequence[float]) -> list[float]:
    """Map rewards to a judge's scale of 0 to 5 in the same order, so that both are measured alike."""
    import numpy as np

    return (MAX_SCORE / (1 + np.exp(-np.asarray(rewards, dtype=float)))).tolist()


def _encode(loaded: LoadedModel, example: PreferenceExample, max_length: int) -> dict[str, list[int]] | None:
    """Return the token ids of both exchanges; None where the prompt leaves no room for a reply."""
    tokenizer = loaded.tokenizer
    row = {}
    for side, reply in (("chosen_ids", example.chosen), ("rejected_ids", example.rejected)):
        prompt, tokens = tokenize_exchange(tokenizer, example.prompt, reply, ended=False)
        if len(prompt) + 2 > max_length:
            return None
        row[side] = complete(prompt, tokens, end_token(tokenizer), max_length)
    return row


def _load(
    source: str | Path,
    settings: ModelSettings,
    dtype: str | None,
    attention: str | None = None,
    new_head: bool = False,
) -> LoadedModel:
    """Load a model with one output; `new_head` makes one of a chat model."""
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    verify(Path(source))
    device = choose_device(settings.device)
    tokenizer = load_tokenizer(source, settings)
    with readable(source), suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=1,
            dtype=choose_dtype(dtype or settings.dtype, device),
            attn_implementation=attention or choose_attention(settings, device),
            trust_remote_code=settings.trust_remote_code,
        )
    if not new_head and "ForSequenceClassification" not in str(model.config.architectures):
        raise ModelError(source, "is no reward model: materialize reward_model again")
    # The reward is read at the last token that is not padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model.to(device).eval(), tokenizer)


def _trained(job: TrainingJob, settings: RewardModelSettings, trainer: Trainer, tokenizer: Any) -> LoadedModel:
    """Return the trained reward model on the CPU in float32, adapters merged (see `common.trained_model`)."""
    if not is_first():
        return LoadedModel(trainer.model, tokenizer)
    if settings.method == "full":
        return LoadedModel(trainer.accelerator.unwrap_model(trainer.model).to("cpu"), tokenizer)
    from peft import PeftModel

    adapter = job.work / "adapter"
    trainer.model.save_pretrained(str(adapter))
    base = _load(job.source, job.model.model_copy(update={"device": "cpu"}), "float32", new_head=True)
    return LoadedModel(PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload(), tokenizer)


def _padded(rows: Sequence[torch.Tensor], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad_token_id)
    mask = pad_sequence([row.new_ones(len(row)) for row in rows], batch_first=True)
    return ids, mask
