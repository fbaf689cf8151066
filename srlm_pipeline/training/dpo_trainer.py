"""The trainer behind `dpo`; a module of its own because its base class makes importing it expensive."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOTrainer


class TokenizedDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Given texts, TRL ends every reply with the end token, cut-off ones too, and lets the tokenizer put a second
    beginning-of-text token before the one of the chat template.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset
