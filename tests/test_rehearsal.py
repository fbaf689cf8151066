"""Human pairs that are mixed with a model's own."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.training.human_pairs import best_worst_pairs, rehearsed_pairs

RANKED = pd.DataFrame(
    [(f"g{n}", f"question {n}", rank, f"reply {rank} to {n}") for n in range(40) for rank in (1, 0, 2)],
    columns=["group_id", "prompt", "rank", "text"],
)


@given(st.integers(0, 80), st.floats(0, 0.99), st.integers(0, 5))
def test_the_share_of_human_pairs_is_as_asked_or_all_there_are(n_own: int, share: float, seed: int) -> None:
    drawn = rehearsed_pairs(RANKED, n_own, share, seed)
    known = best_worst_pairs(RANKED)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(known)
    if len(drawn) < len(known):
        # Rounded to whole pairs.
        assert len(drawn) == pytest.approx(share * (n_own + len(drawn)), abs=0.51)
    else:
        assert n_own * share / (1 - share) >= len(known) - 0.51


def test_the_seed_decides_which_are_drawn() -> None:
    first, again, other = (rehearsed_pairs(RANKED, 10, 0.5, seed) for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)
    assert len(first) == len(other) == 10
