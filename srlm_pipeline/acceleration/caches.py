"""Caches of keys and values, to write with and to read with: quick ones, or transformers' own.

Checked with transformers 5.23.0. Quick are a cache in place with an attention of its own, on a CPU, and a beginning
that many rows share without a copy, on any device. Without the first, every token that is written copies all that the
cache holds; without the second, judging holds twice the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from srlm_pipeline.acceleration.switch import Acceleration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the layers of both are built on.
_LAYER: dict[str, str | None] = {
    "transformers.cache_utils:CacheLayerMixin": (
        "get_mask_sizes, get_max_length, get_seq_length, lazy_initialization, update"
    ),
    "transformers.cache_utils:CacheLayerMixin.update": "self, key_states, value_states, args, kwargs",
    "transformers.cache_utils:CacheLayerMixin.get_mask_sizes": "self, query_length",
    "transformers.cache_utils:CacheLayerMixin.get_seq_length": "self",
}
IN_PLACE = Acceleration(
    "keys and values in place",
    "transformers",
    {
        **_LAYER,
        "transformers:PreTrainedModel._can_set_attn_implementation": "",
        "transformers:PreTrainedConfig._attn_implementation": None,
        "transformers.integrations.sdpa_attention:sdpa_attention_forward": (
            "module, query, key, value, attention_mask, dropout, scaling, ..."
        ),
        "transformers.masking_utils:eager_mask": "batch_size, q_length, kv_length, ...",
        "transformers.masking_utils:sdpa_mask": "batch_size, q_length, kv_length, ...",
    },
)
SHARED_BEGINNING = Acceleration(
    "common beginnings read without a copy for each row", "transformers", _LAYER, unsuited=lambda device_type: None
)


def prepare_attention(model: PreTrainedModel) -> None:
    """Let a model on a CPU attend with plain matrix products when it writes token by token.

    Models that transformers runs with another implementation than its default, for softcapping or attention sinks,
    stay as they are.
    """
    if IN_PLACE.in_use(model.device.type):
        from srlm_pipeline.acceleration.in_place import attend_in_place

        attend_in_place(model)


def make_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache: in place where `prepare_attention` set the model up for it."""
    cache = DynamicCache(config=model.config)
    if IN_PLACE.in_use(model.device.type):
        from srlm_pipeline.acceleration.in_place import InPlaceLayer, attends_in_place

        if attends_in_place(model):
            # Sliding windows and recurrent states keep layers of their own.
            cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def start_with(cache: DynamicCache, beginning: DynamicCache, rows: int) -> None:
    """Fill an empty cache with what each of its rows begins with.

    Args:
        cache: Empty.
        beginning: Of one row.
        rows: How many will follow.
    """
    for number, layer in enumerate(beginning.layers):
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)


def pass_through(model: PreTrainedModel, beginning: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache for one forward pass after this beginning, which is left as it is.

    Args:
        model: That will read.
        beginning: Of one row; all its layers keep all tokens.
        rows: How many will be read.
    """
    cache = DynamicCache(config=model.config)
    if SHARED_BEGINNING.in_use(model.device.type):
        from srlm_pipeline.acceleration.shared_beginning import PassingLayer

        cache.layers = [PassingLayer(layer) for layer in beginning.layers]
    else:
        start_with(cache, beginning, rows)
    return cache


def holds_every_token(model: PreTrainedModel) -> bool:
    """Whether a beginning can be shared: all layers keep all tokens, so that their states can be cut and repeated."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
