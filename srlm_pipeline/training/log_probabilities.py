"""Token log-probabilities on a CPU without TRL's detour.

TRL 1.16 computes log-probabilities with a kernel made for GPUs. Without Triton it falls back to a sequence of small
torch operations over the whole vocabulary at every position, the prompt's included, which took more than half of a
training step of a small model. On a CPU plain cross-entropy over the completion's positions gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def cheap_log_probabilities(device_type: str) -> Iterator[None]:
    """Let TRL's trainers use `token_log_probabilities` inside the block, where the device is a CPU."""
    if device_type != "cpu":
        yield
        return
    from trl.trainer import utils

    original_function, original_choice = utils._ChunkedLogProbFunction, utils._use_triton
    utils._ChunkedLogProbFunction = PlainLogProbabilities
    # What TRL asks here is whether to leave out positions without a label.
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction, utils._use_triton = original_function, original_choice


class PlainLogProbabilities:
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
    import torch
    from torch.nn import functional

    logits = functional.linear(hidden, weight, bias).float() * (
        logit_scale / temperature if softcap is None else logit_scale
    )
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap / temperature
    log_probabilities = -functional.cross_entropy(logits, targets, reduction="none")
    entropy = squared = mean = top = None
    with torch.no_grad():
        detached = logits.detach()
        if "entropy" in outputs or "log_sum_sq_probs" in outputs:
            shares = detached.softmax(-1)
            log_total = detached.gather(-1, targets[:, None]).squeeze(-1) - log_probabilities.detach()
            if "entropy" in outputs:
                entropy = log_total - torch.linalg.vecdot(shares, detached)
            if "log_sum_sq_probs" in outputs:
                squared = torch.linalg.vecdot(shares, shares).log()
        if "mean_logits" in outputs:
            mean = detached.mean(-1)
        if "is_top1" in outputs:
            top = detached.argmax(-1) == targets
    return log_probabilities, entropy, squared, mean, top
