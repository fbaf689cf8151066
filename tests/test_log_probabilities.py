"""The log-probabilities that stand in for TRL's on a CPU give TRL's numbers and gradients."""

import pytest
import torch
from trl.trainer import utils

from srlm_pipeline.acceleration import log_probabilities
from srlm_pipeline.acceleration.log_probabilities import LogProbabilityStandIn, cheap_log_probabilities

OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.mark.parametrize(("temperature", "softcap", "scale"), [(1.0, None, 1.0), (0.7, None, 1.5), (0.7, 5.0, 1.0)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("head_is_trained", [False, True])
def test_values_and_gradients_are_those_of_trl(
    temperature: float,
    softcap: float | None,
    scale: float,
    with_bias: bool,
    head_is_trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_probabilities, "CHUNK_LOGITS", 3 * 50)
    torch.manual_seed(1)
    results = []
    hidden, weight, bias = torch.randn(7, 16), torch.randn(50, 16), torch.randn(50)
    targets = torch.randint(0, 50, (7,))
    for function in (utils._ChunkedLogProbFunction, LogProbabilityStandIn):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(head_is_trained)]
        made = function.apply(
            inputs[0], inputs[1], bias if with_bias else None, targets, temperature, 3, softcap, scale, OUTPUTS
        )
        # Unequal weights, as DPO gives them.
        (made[0] * torch.arange(1, 8)).sum().backward()
        results.append((made, [tensor.grad for tensor in inputs if tensor.requires_grad]))
    (theirs, their_gradients), (ours, our_gradients) = results
    for their, our in zip(theirs, ours, strict=True):
        torch.testing.assert_close(our.to(their.dtype), their, rtol=1e-4, atol=1e-5)
    for their, our in zip(their_gradients, our_gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def test_a_pass_without_gradients_gives_the_same_numbers() -> None:
    hidden, weight, targets = torch.randn(7, 16), torch.randn(50, 16), torch.randint(0, 50, (7,))
    expected = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(7), targets]
    with torch.no_grad():
        made = LogProbabilityStandIn.apply(hidden, weight, None, targets, 1.0, 3)
    torch.testing.assert_close(made[0], expected, rtol=1e-4, atol=1e-5)
    assert made[1:] == (None, None, None, None)


def test_trl_is_left_as_it_was_found(way: str) -> None:
    before = utils._ChunkedLogProbFunction, utils._use_triton
    with pytest.raises(RuntimeError), cheap_log_probabilities("cpu"):
        assert (utils._ChunkedLogProbFunction is LogProbabilityStandIn) == (way == "accelerated")
        raise RuntimeError
    assert (utils._ChunkedLogProbFunction, utils._use_triton) == before


def test_a_gpu_keeps_trl_s_own_kernel() -> None:
    before = utils._ChunkedLogProbFunction
    with cheap_log_probabilities("cuda"):
        assert utils._ChunkedLogProbFunction is before
