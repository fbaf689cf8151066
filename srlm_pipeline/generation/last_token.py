"""Logits after the last token of many texts, what they begin with in common being computed once.

Judging prompts begin alike: the rubric always, and for replies to one prompt the question too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# A shorter common beginning is not worth a forward pass of its own.
_WORTHWHILE = 16


def last_token_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, share_prefix: bool = True
) -> torch.Tensor:
    """Return the logits that follow each sequence. Gradients flow, where they are enabled.

    Args:
        model: Causal LM.
        sequences: Token ids; none empty.
        pad_token_id: For left padding.
        share_prefix: Whether to compute a common beginning once; gradient checkpointing, which recomputes without a
            cache, does not allow it.

    Returns:
        Shape (len(sequences), vocabulary), in the model's type.
    """
    import torch
    from transformers import DynamicCache

    n, device = len(sequences), model.device
    shared = common_prefix_length(sequences) if share_prefix and n > 1 else 0
    cache = None
    if shared >= _WORTHWHILE:
        cache = DynamicCache(config=model.config)
        prefix = torch.tensor([list(sequences[0][:shared])], device=device)
        model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=last_position_only(device))
        cache.batch_repeat_interleave(n)
    else:
        shared = 0
    rest = [list(sequence[shared:]) for sequence in sequences]
    ids, mask, positions = left_pad(rest, pad_token_id, device)
    logits: torch.Tensor = model(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(n, shared), mask], dim=-1),
        position_ids=positions + shared,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=last_position_only(device),
    ).logits[:, -1]
    return logits


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with, at least one of each being left over."""
    shared = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in shared), min(map(len, sequences)) - 1)


def left_pad(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, attention mask and position ids, each of shape (rows, longest)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def last_position_only(device: torch.device) -> torch.Tensor:
    """Return a `logits_to_keep` for the last position alone.

    As an integer, transformers takes a strided slice, and the output projection then copies its whole weight
    matrix once per row; an index makes the slice contiguous.
    """
    import torch

    return torch.tensor([-1], device=device)
