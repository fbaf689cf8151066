"""Token log-probabilities on a CPU without TRL's detour: two private names of TRL are replaced while it trains.

Checked with TRL 1.16.0, which computes log-probabilities with a kernel made for GPUs. Without Triton it falls back to a
sequence of small torch operations over the whole vocabulary at every position, the prompt's included, which takes more
than half of a training step of a small model. On a CPU plain operations over the completion's positions give the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional

from srlm_pipeline.acceleration.switch import Acceleration

LOG_PROBABILITIES = Acceleration(
    "log-probabilities of completions alone",
    "trl",
    {
        "trl.trainer.utils:_ChunkedLogProbFunction.forward": (
            "ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs"
        ),
        "trl.trainer.utils:_use_triton": "device",
    },
)
CHUNK_LOGITS = 1 << 22
"""Logits held at once while the output layer is frozen: 16 MiB in float32."""

Statistics = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


@contextmanager
def cheap_log_probabilities(device_type: str) -> Iterator[None]:
    """Let TRL's trainers use `token_log_probabilities` inside the block, where models run on a CPU."""
    if not LOG_PROBABILITIES.in_use(device_type):
        yield
        return
    from trl.trainer import utils

    original_function, original_choice = utils._ChunkedLogProbFunction, utils._use_triton
    utils._ChunkedLogProbFunction = LogProbabilityStandIn
    # What TRL asks here is whether to leave out positions without a label.
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction, utils._use_triton = original_function, original_choice


class LogProbabilityStandIn:
    """Stands where TRL expects its autograd function."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[torch.Tensor | None, ...]:
        """See `token_log_probabilities`; `chunk_size` has no meaning here."""
        return token_log_probabilities(hidden, weight, bias, targets, temperature, softcap, logit_scale, outputs)


def token_log_probabilities(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    outputs: tuple[str, ...],
) -> tuple[torch.Tensor | None, ...]:
    """Return log p(target) per position, and statistics for logging.

    Where the output layer is frozen, as it is under adapters, the logits of few positions are held at a time: what the
    backward pass needs of them is one vector of the hidden width per position.

    Args:
        hidden: Shape (positions, width).
        weight: Output embedding, shape (vocabulary, width).
        bias: Shape (vocabulary,), or None.
        targets: Token ids, shape (positions,).
        temperature: Divides the logits.
        softcap: Bound of the logits, in models that have one.
        logit_scale: Factor of the logits, in models that have one.
        outputs: Which of entropy, log_sum_sq_probs, mean_logits, is_top1 are wanted.

    Returns:
        Log-probabilities, entropy, log of the summed squared probabilities, mean logit, whether the target is the
        most probable token; each of shape (positions,), those not wanted None. Only the first carries gradients.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if softcap is None and not trained:
        made: tuple[torch.Tensor | None, ...] = _FrozenHead.apply(
            hidden, weight, bias, targets, logit_scale / temperature, outputs
        )
        return made
    logits = functional.linear(hidden, weight, bias).float() * logit_scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits / temperature
    log_total = logits.logsumexp(-1, keepdim=True)
    every = logits - log_total
    own = targets[:, None]
    statistics = _statistics(every.detach(), every.detach().exp(), log_total, own, outputs)
    return every.gather(-1, own).squeeze(-1), *statistics


class _FrozenHead(Function):
    """Log-probabilities under an output layer that is not trained, a chunk of positions at a time.

    The gradient of log p(target) by the hidden state is the target's embedding less the mean embedding under the
    model's distribution; it is computed while the logits are there, and scaled in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        factor: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = max(1, CHUNK_LOGITS // len(weight))
        made = []
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = functional.linear(hidden[rows], weight, bias).float()
            if factor != 1:
                logits *= factor
            own = targets[rows, None]
            log_total = logits.logsumexp(-1, keepdim=True)
            every = logits.sub_(log_total)
            shares = every.exp()
            made.append((every.gather(-1, own).squeeze(-1), *_statistics(every, shares, log_total, own, outputs)))
            if slopes is not None:
                shares.scatter_add_(-1, own, shares.new_full(own.shape, -1))
                torch.mm(shares.to(weight.dtype), weight, out=slopes[rows]).mul_(-factor)
        ctx.save_for_backward(slopes)
        results = tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*made, strict=True))
        ctx.mark_non_differentiable(*(part for part in results[1:] if part is not None))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None, None, None


@torch.no_grad()
def _statistics(
    every: torch.Tensor, shares: torch.Tensor, log_total: torch.Tensor, own: torch.Tensor, outputs: tuple[str, ...]
) -> Statistics:
    """Return what `token_log_probabilities` returns beside the targets' log-probabilities.

    Args:
        every: Log-probabilities, shape (positions, vocabulary).
        shares: The same as probabilities.
        log_total: The logits less `every`, shape (positions, 1).
        own: Targets, shape (positions, 1).
        outputs: Which are wanted.
    """
    return (
        -torch.linalg.vecdot(shares, every) if "entropy" in outputs else None,
        torch.linalg.vecdot(shares, shares).log() if "log_sum_sq_probs" in outputs else None,
        every.mean(-1) + log_total.squeeze(-1) if "mean_logits" in outputs else None,
        every.argmax(-1) == own.squeeze(-1) if "is_top1" in outputs else None,
    )
