"""Sharing a common beginning changes the work, not the numbers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.acceleration.caches import pass_through, prepare_attention
from srlm_pipeline.config import ModelSettings
from srlm_pipeline.generation.prefill import (
    PrefixStore,
    alike,
    last_token_logits,
    prefill,
    read_on,
    runs_alike,
    worthwhile_prefix,
)
from srlm_pipeline.models.loading import load_model

PREFIX = list(range(10, 60))
ENDS = [[61], [62, 63, 64], [65] * 40]
UNLIKE = [[61], [65] * 900, [62] * 300, [63, 64]]


@given(st.lists(st.lists(st.integers(0, 1), min_size=15, max_size=20), min_size=1, max_size=4), st.integers(0, 20))
def test_common_prefix_is_common_as_long_as_possible_and_leaves_a_token(ends: list[list[int]], n: int) -> None:
    sequences = [[7] * n + end for end in ends]
    shared = worthwhile_prefix(sequences)
    assert all(s[: len(shared)] == shared and len(s) > len(shared) for s in sequences)
    longer = {tuple(s[: len(shared) + 1]) for s in sequences}
    if shared:
        assert len(longer) > 1 or any(len(s) == len(shared) + 1 for s in sequences)


@given(st.lists(st.integers(1, 900), max_size=12))
def test_every_text_is_in_one_batch_and_a_further_batch_saves_what_it_costs(lengths: list[int]) -> None:
    batches = alike(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    padded = sum(max(lengths[place] for place in batch) * len(batch) for batch in batches)
    assert padded + 512 * (len(batches) - 1) <= max(lengths, default=0) * len(lengths)


def test_texts_of_nearly_the_same_length_stay_together_and_a_much_longer_one_stands_alone() -> None:
    assert alike([100, 120, 90]) == [[1, 0, 2]]
    assert alike([100, 900, 120, 90]) == [[1], [2, 0, 3]]


def test_a_prefix_is_read_once_and_only_what_is_new_of_the_next(tiny_model: Path) -> None:
    model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True)
    store = PrefixStore(model)
    with torch.inference_mode():
        for tokens in (PREFIX, PREFIX, [*PREFIX, 61, 62], [*PREFIX[:40], 5], [9, 9]):
            cache = store.read(tokens)
            fresh = PrefixStore(model).read(tokens)
            read.pop()
            assert cache.get_seq_length() == len(tokens)
            torch.testing.assert_close(cache.layers[1].keys, fresh.layers[1].keys, rtol=1e-4, atol=1e-5)
    assert read == [50, 2, 1, 2]


@pytest.mark.parametrize("ends", [ENDS, ENDS[:1], [[61], [62]], UNLIKE])
def test_logits_are_those_of_each_sequence_alone(tiny_model: Path, ends: list[list[int]]) -> None:
    model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
    sequences = [PREFIX + end for end in ends]
    with torch.inference_mode():
        alone = torch.stack([model(torch.tensor([s])).logits[0, -1] for s in sequences])
        for share in (True, False):
            torch.testing.assert_close(last_token_logits(model, sequences, 0, share), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("for_writing", [False, True])
def test_a_beginning_serves_any_number_of_readings_and_keeps_nothing_of_them(
    tiny_model: Path, for_writing: bool, way: str
) -> None:
    model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
    if for_writing:
        prepare_attention(model)
    with torch.inference_mode():
        beginning = PrefixStore(model).read(PREFIX)
        for ends in (ENDS, ENDS[:1], ENDS):
            sequences = [PREFIX + end for end in ends]
            alone = torch.stack([model(torch.tensor([s])).logits[0, -1] for s in sequences])
            logits = prefill(model, sequences, 0, pass_through(model, beginning, len(ends))).logits
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
            assert beginning.get_seq_length() == len(PREFIX)


def test_gradients_are_the_same_with_and_without_sharing(tiny_model: Path) -> None:
    gradients = []
    for share in (True, False):
        model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
        logits = last_token_logits(model, [PREFIX + end for end in ENDS], 0, share)
        logits.log_softmax(-1)[:, 7].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def tokens_read(sequences: list[list[int]], longest: int) -> int:
    """What reading the runs takes, beside what all sequences begin with."""
    everywhere = len(worthwhile_prefix(sequences))
    return sum(
        run.common - everywhere + sum(len(sequences[place]) - run.common for place in run.places)
        for run in runs_alike(sequences, longest)
    )


@given(
    st.lists(st.tuples(st.integers(2, 40), st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=5)), max_size=5),
    st.integers(1, 6),
)
def test_runs_cover_all_sequences_in_their_order_and_save_half(
    groups: list[tuple[int, list[list[int]]]], longest: int
) -> None:
    sequences = [[n] * n + end for n, ends in groups for end in ends]
    runs = runs_alike(sequences, longest)
    if runs:
        assert [place for run in runs for place in run.places] == list(range(len(sequences)))
        everywhere = len(worthwhile_prefix(sequences))
        assert tokens_read(sequences, longest) <= sum(len(sequence) - everywhere for sequence in sequences) / 2
    for run in runs:
        assert len(run.places) <= longest
        own = [sequences[place] for place in run.places]
        assert len({tuple(sequence[: run.common]) for sequence in own}) == 1
        assert 0 < run.common < min(map(len, own))


def test_questions_about_one_text_are_a_run_and_texts_that_differ_are_none() -> None:
    texts = [[*PREFIX, *[n] * 30] for n in range(3)]
    questions = [text + end for text in texts for end in ([70], [71, 72], [73])]
    assert [(run.places, run.common) for run in runs_alike(questions, 8)] == [
        (range(n, n + 3), len(PREFIX) + 30) for n in (0, 3, 6)
    ]
    assert runs_alike(texts, 8) == []
    assert runs_alike([[1], [1]], 8) == []


def test_what_follows_several_beginnings_is_read_as_each_text_alone(tiny_model: Path) -> None:
    from transformers import DynamicCache

    model = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")).model
    beginnings, rows = [PREFIX, PREFIX[:7]], [1, 0, 1]
    with torch.inference_mode():
        alone = torch.stack(
            [model(torch.tensor([beginnings[n] + end])).logits[0, -1] for n, end in zip(rows, ENDS, strict=True)]
        )
        cache = DynamicCache(config=model.config)
        read = prefill(model, beginnings, 0, cache)
        logits = read_on(model, read, rows, ENDS, 0, cache).logits
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
