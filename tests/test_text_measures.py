import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.text_measures import describe_replies, distinct_ngrams, repeated_ngrams

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


def test_longer_replies_have_a_smaller_share_of_distinct_pairs_for_that_alone() -> None:
    short = ["a b c d", "d c b a"]
    longer, shorter = distinct_ngrams([f"{reply} {reply}" for reply in short]), distinct_ngrams(short)
    assert longer is not None
    assert shorter == 1
    assert longer < 0.6
