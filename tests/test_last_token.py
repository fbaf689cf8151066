"""Sharing a common beginning changes the work, not the numbers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import ModelSettings
from srlm_pipeline.generation.last_token import common_prefix_length, last_token_logits
from srlm_pipeline.models.loading import load_model

PREFIX = list(range(10, 60))
ENDS = [[61], [62, 63, 64], [65] * 40]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4))
def test_common_prefix_is_common_as_long_as_possible_and_leaves_a_token(sequences: list[list[int]]) -> None:
    shared = common_prefix_length(sequences)
    assert len({tuple(s[:shared]) for s in sequences}) == 1
    assert all(len(s) > shared for s in sequences)
    if all(len(s) > shared + 1 for s in sequences):
        assert len({s[shared] for s in sequences}) > 1


@pytest.mark.parametrize("ends", [ENDS, ENDS[:1], [[61], [62]]])
def test_logits_are_those_of_each_sequence_alone(tiny_model: Path, ends: list[list[int]]) -> None:
    model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
    sequences = [PREFIX + end for end in ends]
    with torch.inference_mode():
        alone = torch.stack([model(torch.tensor([s])).logits[0, -1] for s in sequences])
        for share in (True, False):
            torch.testing.assert_close(last_token_logits(model, sequences, 0, share), alone, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_with_and_without_sharing(tiny_model: Path) -> None:
    gradients = []
    for share in (True, False):
        model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
        logits = last_token_logits(model, [PREFIX + end for end in ENDS], 0, share)
        logits.log_softmax(-1)[:, 7].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)
