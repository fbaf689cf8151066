"""Keys and values of the tokens so far, written in place, and the attention that reads them fast on a CPU.

transformers' own cache is rebuilt with every token: all that is known is copied to make room for one more. Here
the room is there from the start. Keys lie with the tokens innermost, because the product of one query with all keys,
which is what each new token asks for, then runs over consecutive memory: twice as fast as across it.

Whether the installed transformers allows it is asked in `caches`, before this module is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "srlm_decode"
_BLOCK = 64


class InPlaceLayer(CacheLayerMixin):
    """One layer's keys and values in buffers that grow by blocks of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start with empty buffers: keys (rows, heads, size, tokens), values (rows, heads, tokens, size)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(*key_states.shape[:2], key_states.shape[3], 0)
        self.values = value_states.new_zeros(*value_states.shape[:2], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens.

        Returns:
            Keys and values, each (rows, heads, tokens, size). For a single new token whole buffers, because matrix
            products would copy a part of one; `get_mask_sizes` makes the mask cover their free end.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, n_new = self._length, key_states.shape[2]
        self._length += n_new
        missing = self._length - self.keys.shape[-1]
        if missing > 0:
            # Zeros, because a masked weight of nought times whatever memory holds may be no number.
            more = -(-missing // _BLOCK) * _BLOCK
            self.keys = torch.nn.functional.pad(self.keys, (0, more))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, more))
        self.keys[..., start : self._length] = key_states.transpose(2, 3)
        self.values[:, :, start : self._length] = value_states
        if n_new == 1:
            return self.keys.transpose(2, 3), self.values
        # Fused attention over many queries wants the other layout, and reads it once.
        return self.keys[..., : self._length].transpose(2, 3).contiguous(), self.values[:, :, : self._length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens the mask of the next `update` covers, and the first one's place."""
        length = self._length + query_length
        if query_length > 1:
            return length, 0
        held = self.keys.shape[-1] if self.keys is not None else 0
        return max(held, -(-length // _BLOCK) * _BLOCK), 0

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self._length

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        self.keys, self.values = self.keys[indices], self.values[indices]


def attend_in_place(model: PreTrainedModel) -> None:
    """Set a model up for `InPlaceLayer`, if transformers runs it with fused attention and lets it be changed."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(_ATTENTION, _attend)
        AttentionMaskInterface.register(_ATTENTION, _mask)
        model.set_attn_implementation(_ATTENTION)


def attends_in_place(model: PreTrainedModel) -> bool:
    """Whether a model has been set up for `InPlaceLayer`."""
    return bool(model.config._attn_implementation == _ATTENTION)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    rows, heads, n_queries, size = query.shape
    if n_queries > 1 or kwargs.get("position_bias") is not None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    # Query heads that share a key head become rows of one product.
    grouped = query.reshape(rows, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    weights = grouped @ key.transpose(2, 3)
    if attention_mask is not None:
        weights = weights + attention_mask
    mixed = weights.softmax(dim=-1) @ value
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


def _mask(q_length: int, **kwargs: Any) -> torch.Tensor | None:
    """One query: additive, so that no layer has to convert it; many: what fused attention wants."""
    mask: torch.Tensor | None = (eager_mask if q_length == 1 else sdpa_mask)(q_length=q_length, **kwargs)
    return mask
