import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from srlm_pipeline.generation.sampling import draw_tokens

# Sizes on both sides of any plausible limit on how many tokens are sorted.
VOCABULARIES = (1, 2, 50, 127, 128, 129, 500, 3000)


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    kept = int((np.cumsum(ordered) - ordered < top_p).sum())
    return order[:kept], ordered[:kept] / ordered[:kept].sum()


def naive_draw(logits: np.ndarray, uniform: float, temperature: float, top_p: float) -> int:
    tokens, shares = nucleus(logits, temperature, top_p)
    return int(tokens[min(np.searchsorted(np.cumsum(shares), uniform, side="right"), len(tokens) - 1)])


def acceptable(logits: np.ndarray, uniform: float, temperature: float, top_p: float) -> set[int]:
    """Tokens that differ from the exact answer by no more than float32 rounding at a border."""
    nearby = np.linspace(-1e-4, 1e-4, 9)
    return {
        naive_draw(logits, min(max(uniform + du, 0.0), 1.0), temperature, min(max(top_p + dp, 1e-9), 1.0 + 1e-9))
        for du in nearby
        for dp in (-1e-4, 0.0, 1e-4)
    }


def random_logits(seed: int, rows: int, vocabulary: int, spread: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * spread).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.sampled_from(VOCABULARIES),
    spread=st.sampled_from([0.01, 0.5, 2.0, 8.0]),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
)
@settings(max_examples=60)
def test_draws_equal_a_naive_full_sort(
    seed: int, vocabulary: int, spread: float, temperature: float, top_p: float
) -> None:
    logits = random_logits(seed, 4, vocabulary, spread)
    uniforms = np.random.default_rng(seed + 1).random(4).astype(np.float32)
    drawn = draw_tokens(torch.from_numpy(logits), torch.from_numpy(uniforms), temperature, top_p)
    exact = 0
    for row in range(4):
        token = int(drawn[row])
        expected = naive_draw(logits[row], float(uniforms[row]), temperature, top_p)
        exact += token == expected
        if token != expected:
            # Flat rows have tokens so close to each other that rounding may choose the neighbour.
            assert token in acceptable(logits[row], float(uniforms[row]), temperature, top_p)
    if spread >= 2.0 and vocabulary <= 500:
        assert exact >= 3


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("vocabulary", [500, 3000])
def test_nearly_flat_logits_reach_every_part_of_the_nucleus(vocabulary: int, top_p: float) -> None:
    logits = random_logits(5, 1, vocabulary, 0.01)
    rows = 2000
    uniforms = torch.linspace(0, 0.99999, rows)
    drawn = draw_tokens(torch.from_numpy(logits).expand(rows, -1), uniforms, 1.0, top_p).numpy()
    tokens, _ = nucleus(logits[0], 1.0, top_p)
    assert len(tokens) > 200
    place = {int(token): n for n, token in enumerate(tokens)}
    places = np.array([place.get(int(token), len(tokens)) for token in drawn])
    # One token more or less at the end is float32 rounding.
    assert places.max() <= len(tokens)
    assert (np.diff(places) >= 0).all()
    assert places[0] == 0
    assert places[-1] >= len(tokens) - 2
    assert len(set(places)) >= min(len(tokens), rows) * 0.9


@pytest.mark.parametrize(("vocabulary", "spread"), [(20, 1.0), (400, 0.05)])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_frequencies_agree_with_the_nucleus(vocabulary: int, spread: float, temperature: float, top_p: float) -> None:
    rows = 20_000
    logits = random_logits(11, 1, vocabulary, spread)
    uniforms = torch.from_numpy(np.random.default_rng(12).random(rows).astype(np.float32))
    drawn = draw_tokens(torch.from_numpy(logits).expand(rows, -1), uniforms, temperature, top_p).numpy()
    tokens, shares = nucleus(logits[0], temperature, top_p)
    counts = np.bincount(drawn, minlength=vocabulary)[tokens]
    assert counts.sum() == rows
    assert chisquare(counts, shares * rows).pvalue > 1e-4


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.from_numpy(random_logits(3, 50, 700, 1.0))
    drawn = draw_tokens(logits, torch.rand(50, generator=torch.Generator().manual_seed(0)), 0, 0.9)
    assert torch.equal(drawn, logits.argmax(dim=-1))


@pytest.mark.parametrize("vocabulary", [10, 3000])
def test_tiny_top_p_takes_the_most_probable_token(vocabulary: int) -> None:
    logits = torch.from_numpy(random_logits(4, 20, vocabulary, 1.0))
    for uniform in (0.0, 0.5, 0.9999999):
        assert torch.equal(draw_tokens(logits, torch.full((20,), uniform), 1.0, 1e-6), logits.argmax(dim=-1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("top_p", [0.3, 1.0])
def test_extreme_uniforms_stay_inside_the_nucleus(vocabulary: int, top_p: float) -> None:
    logits = random_logits(6, 1, vocabulary, 3.0)
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    drawn = draw_tokens(torch.from_numpy(logits).expand(2, -1), torch.tensor([0.0, largest]), 1.0, top_p)
    tokens, _ = nucleus(logits[0], 1.0, min(top_p + 1e-4, 1.0))
    assert int(drawn[0]) == int(tokens[0])
    assert int(drawn[1]) in set(tokens.tolist())


@pytest.mark.parametrize("vocabulary", [100, 1000])
def test_impossible_tokens_are_never_drawn(vocabulary: int) -> None:
    logits = torch.from_numpy(random_logits(7, 1, vocabulary, 0.01))
    logits[:, ::2] = float("-inf")
    drawn = draw_tokens(logits.expand(1000, -1), torch.linspace(0, 0.9999999, 1000), 1.0, 1.0)
    assert (drawn % 2 == 1).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    peaked, flat = random_logits(8, 8, 1000, 5.0), random_logits(9, 8, 1000, 0.01)
    logits = torch.from_numpy(np.concatenate([peaked, flat]))
    uniforms = torch.from_numpy(np.random.default_rng(10).random(16).astype(np.float32))
    together = draw_tokens(logits, uniforms, 0.7, 0.9)
    alone = torch.cat([draw_tokens(logits[i : i + 1], uniforms[i : i + 1], 0.7, 0.9) for i in range(16)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together, alone)
    assert torch.equal(draw_tokens(logits[order], uniforms[order], 0.7, 0.9), together[order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_logits_are_drawn_like_float32(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(random_logits(13, 6, 400, 3.0)).to(torch.bfloat16)
    uniforms = torch.linspace(0.05, 0.95, 6)
    assert torch.equal(
        draw_tokens(logits.to(dtype), uniforms, 0.7, 0.9), draw_tokens(logits.float(), uniforms, 0.7, 0.9)
    )


def test_logits_are_not_changed() -> None:
    logits = torch.from_numpy(random_logits(14, 3, 300, 1.0))
    before = logits.clone()
    draw_tokens(logits, torch.rand(3), 0.7, 0.9)
    assert torch.equal(logits, before)


def test_constant_shift_of_the_logits_changes_nothing() -> None:
    logits = torch.from_numpy(random_logits(15, 20, 200, 2.0)).round(decimals=2)
    uniforms = torch.linspace(0.01, 0.98, 20)
    assert torch.equal(draw_tokens(logits + 64, uniforms, 1.0, 0.9), draw_tokens(logits, uniforms, 1.0, 0.9))
