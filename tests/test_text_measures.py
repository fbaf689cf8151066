import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.evaluation.text_measures import (
    count_near_duplicates,
    describe_replies,
    distinct_ngrams,
    relative_distinct,
    repeated_ngrams,
)

WORDS = st.lists(st.sampled_from(["a", "B", "c", "dd"]), max_size=12)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four", 0.0),
        ("a a a a a", 1 / 2),
        ("a a a a a a a", 3 / 4),
        ("x y x y x y", 1 / 3),
        ("go on and on go on and on", 1 / 5),
        ("Go on and on\n\tgo ON and on", 1 / 5),
    ],
)
def test_share_of_repeated_word_4grams_worked_by_hand(text: str, share: float) -> None:
    assert repeated_ngrams(text) == pytest.approx(share)


def test_length_of_the_ngrams_can_be_chosen() -> None:
    assert repeated_ngrams("a b a b", n=1) == pytest.approx(1 / 2)
    assert repeated_ngrams("a b a b", n=2) == pytest.approx(1 / 3)
    assert repeated_ngrams("a b a b", n=3) == 0.0


@given(WORDS, st.integers(1, 5))
@settings(max_examples=80)
def test_share_counts_the_places_whose_ngram_occurred_before(words: list[str], n: int) -> None:
    lower = [w.lower() for w in words]
    places = range(len(lower) - n + 1)
    again = [any(lower[i : i + n] == lower[j : j + n] for j in range(i)) for i in places]
    assert repeated_ngrams(" ".join(words), n) == pytest.approx(sum(again) / len(again) if again else 0.0)


def test_replies_are_described_by_their_means() -> None:
    described = describe_replies(["a a a a a", "four", " \n", ""], [5, 1, 2, 0])
    assert described == pytest.approx(
        {
            "length_mean": 15 / 4,
            "tokens_mean": 2.0,
            "repeated_4grams": 1 / 8,
            "distinct_2grams": 1 / 4,
            "empty_share": 1 / 2,
        }
    )


def test_distinct_pairs_worked_by_hand() -> None:
    # a b, b a | a b, b c: three different ones of four.
    assert distinct_ngrams(["a b A", "a b c", "c", ""]) == pytest.approx(3 / 4)
    assert distinct_ngrams(["a b a", "a b c"], n=1) == pytest.approx(3 / 6)
    assert distinct_ngrams(["a", ""]) is None


def test_variety_is_compared_at_equal_length() -> None:
    rng = random.Random(0)
    short = [" ".join(rng.choices("abcdefghij", k=20)) for _ in range(50)]
    long = [f"{reply} {' '.join(rng.choices('abcdefghij', k=200))}" for reply in short]
    longer, shorter = distinct_ngrams(long), distinct_ngrams(short)
    assert longer is not None
    assert shorter is not None
    assert longer < 0.5 * shorter
    # The longer replies begin with the shorter ones.
    assert relative_distinct(long, short) == relative_distinct(short, long) == 1


def test_relative_variety_worked_by_hand() -> None:
    # Cut to 3 and 2 words: {a b, b c} and {d e} against {x x, x x} and {x x}.
    assert relative_distinct(["x x x", "x x y z"], ["a b c d", "d e"]) == pytest.approx((1 / 3) / (3 / 3))
    assert relative_distinct(["one", ""], ["a b c", "d e f"]) is None


REPLIES = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=6)


@given(REPLIES)
@settings(max_examples=80)
def test_relative_variety_is_turned_over_with_the_models(replies: list[tuple[str, str]]) -> None:
    mine, theirs = [a for a, _ in replies], [b for _, b in replies]
    there, back = relative_distinct(mine, theirs), relative_distinct(theirs, mine)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert there * back == pytest.approx(1)


def test_near_duplicates_worked_by_hand() -> None:
    replies = [
        "one two three four five six",
        "One two three four  five seven",
        "one two three eight nine ten",
        "something else entirely",
        "",
        " ",
    ]
    # The first two share 5 of 6 words; the last two are empty.
    assert count_near_duplicates(replies, [f"prompt {n}" for n in range(6)]) == 4
    # Only the beginnings count.
    opening = " ".join(f"word{n}" for n in range(128))
    assert count_near_duplicates([opening, f"{opening} {opening[::-1]}"], ["p", "q"]) == 2
    # To one prompt put twice, the same reply is no sign of anything.
    assert count_near_duplicates(replies[:3], ["the same", "the  same", "another"]) == 0
    assert count_near_duplicates(["alone"], ["p"]) == 0
    assert count_near_duplicates([], []) == 0


def test_near_duplicates_of_many_long_replies_are_found_in_no_time() -> None:
    rng = random.Random(1)
    words = [f"w{n}" for n in range(2000)]
    replies = [" ".join(rng.choices(words, k=400)) for _ in range(250)]
    replies[100] = f"{replies[7]} and some more"
    started = time.process_time()
    assert count_near_duplicates(replies, [f"prompt {n}" for n in range(250)]) == 2
    assert time.process_time() - started < 1
