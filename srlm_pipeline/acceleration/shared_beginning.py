"""A beginning that many rows share in one forward pass, without a copy for each row that stays.

Whether the installed transformers allows it is asked in `caches`, before this module is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin


class PassingLayer(CacheLayerMixin):
    """One layer's keys and values of a common beginning; what follows is passed on and not kept.

    Enough for a single forward pass, after which nothing is continued, and it spares one copy per row of every layer.

    Args:
        beginning: The layer of one row that has read what all texts begin with.
    """

    def __init__(self, beginning: CacheLayerMixin) -> None:
        super().__init__()
        self.keys, self.values = beginning.keys, beginning.values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: a beginning is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the beginning and these tokens after it, for every row: each (rows, heads, tokens, size)."""
        rows = key_states.shape[0]
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens the mask of the next `update` covers, and the first one's place."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1
