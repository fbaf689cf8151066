"""Drawing tokens from logits, one private random number per row.

Nucleus sampling needs the largest probabilities in order. Sorting the whole vocabulary takes longer than the
forward pass of a small model on a CPU, so only the top few are sorted; rows whose nucleus reaches further
(checked exactly: the sorted part's mass is below top_p) fall back to the full sort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PREFILTER = 128
# A few rows at a time stay in the processor's cache; all at once, each pass over the vocabulary waits for memory.
_ROWS = 8


def draw_tokens(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one token per row.

    Args:
        logits: Shape (rows, vocabulary).
        uniforms: Shape (rows,), each in [0, 1): the row's own random number for this step.
        temperature: 0 takes the most probable token.
        top_p: Smallest set of tokens whose probability reaches this much is kept (Holtzman et al. 2020).

    Returns:
        Token ids, shape (rows,).
    """
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    drawn = [
        _draw_rows(logits[start : start + _ROWS], uniforms[start : start + _ROWS], temperature, top_p)
        for start in range(0, len(logits), _ROWS)
    ]
    return torch.cat(drawn)


def _draw_rows(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    scaled = logits.float() / temperature
    probabilities = scaled.softmax(dim=-1)
    tokens = scaled.topk(min(_PREFILTER, scaled.shape[-1]), dim=-1).indices
    likeliest = probabilities.gather(-1, tokens)
    drawn = _draw_sorted(likeliest, tokens, uniforms, top_p)
    uncovered = (likeliest.sum(dim=-1) < top_p).nonzero().squeeze(-1)
    if len(uncovered) and scaled.shape[-1] > _PREFILTER:
        tokens = scaled[uncovered].argsort(dim=-1, descending=True)
        drawn[uncovered] = _draw_sorted(probabilities[uncovered].gather(-1, tokens), tokens, uniforms[uncovered], top_p)
    return drawn


def _draw_sorted(
    probabilities: torch.Tensor, tokens: torch.Tensor, uniforms: torch.Tensor, top_p: float
) -> torch.Tensor:
    import torch

    cumulative = probabilities.cumsum(dim=-1)
    # A token belongs to the nucleus if the mass before it is still below top_p: the first always does.
    kept = torch.where(cumulative - probabilities < top_p, probabilities, 0.0)
    kept_cumulative = kept.cumsum(dim=-1)
    total = kept_cumulative[:, -1:]
    place = torch.searchsorted(kept_cumulative, uniforms[:, None].to(kept_cumulative.dtype) * total, right=True)
    # u * total may round up to total itself, one past the nucleus.
    place = torch.minimum(place, (kept > 0).sum(dim=-1, keepdim=True) - 1)
    return tokens.gather(-1, place).squeeze(-1)
