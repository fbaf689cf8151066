import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from srlm_pipeline.judging.parser import FINAL_LINE, parse_score, parse_verdict, rationale_before_score, read_score

HOSTILE_PIECES = st.sampled_from(
    [
        "Score",
        "score:",
        "SCORE :",
        " ",
        "\n",
        "**",
        "[",
        "(",
        "<",
        "`",
        "-",
        "–",
        "/",
        "out of",
        "5",
        "10",
        "4.5",
        ".",
        ",",
        "99",
        "0",
        "００",
        "٣",
        "\x00",
        "\u2028",
        "é",
        "<total points>",
        "Score: 5",
        "nan",
        "inf",
        "1e9",
        "\ud800",
    ]
)
HOSTILE = st.lists(HOSTILE_PIECES, max_size=30).map("".join)
# Ends the line before it without continuing the number there, and holds no score itself.
NEUTRAL = st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=40).map(lambda text: f"\nso {text}\n")


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("Score: 4", 4),
        ("score:0", 0),
        ("SCORE : 5", 5),
        ("Clear and right.\nScore: 3\n", 3),
        ("Score: 3.", 3),
        ("Score: 3, because it is short", 3),
        ("Score: 3.5", 3.5),
        ("Score: 4/5", 4),
        ("Score: 4 / 5", 4),
        ("Score: 4 out of 5", 4),
        ("**Score:** 4", 4),
        ("Score: **4**", 4),
        ("Score: **4/5**", 4),
        ("Score: [4]", 4),
        ("Score: (2)", 2),
        ("Score: <2>", 2),
        ("Score: `2`", 2),
        ("Score:\n2", 2),
        ("Score: 05", 5),
        ("Score: 3 points", 3),
        ("Score: 3 points out of 5", 3),
        ("Score: 3 of 5", 3),
        ("Score: 4点", 4),
        ("\u200fScore: 4", 4),
        ("**Score**: 4", 4),
        ("**Score: 4**", 4),
        ("Score\uff1a4", 4),
        ('Score: "4"', 4),
        ("Score: \\boxed{4}", 4),
        ("Score: $4$", 4),
        ("Score: $\\boxed{4}$", 4),
        ('{"score": 4}', 4),
        ('{"reason": "short", "score": 3}', 3),
        ("Score = 4", 4),
        ("The score is 4.", 4),
        ("My score is 2", 2),
        ("1. Score: 3", 3),
        ("Score (out of 5): 4", 4),
        ("**Final Score:** 3/5", 3),
        ("Overall score: 3.5", 3.5),
        ("### Score\n4", 4),
        ("**Score:**\n\n**4**", 4),
        ("Total points: 4", 4),
        ("Total score: 4/5 points", 4),
        ("Score: four (4)", 4),
        ("Score: 1+1+1+1=4", 4),
        ("Score: 5 minus 1 = 4", 4),
        ("Score: 1 + 1 + 1 = **3**", 3),
        ("## Final Score\n\n**4/5**", 4),
        ('```json\n{\n  "reason": "fair",\n  "score": "4"\n}\n```', 4),
        ("> **Score:** 4", 4),
        ("Score: [[4]]", 4),
        ("Score: \\(4\\)", 4),
        ("Score: 4/5 (80%)", 4),
        ("Score: 4 (four)", 4),
        ("Score: 4 \u2b50", 4),
        ("Therefore, the total score is 4.", 4),
    ],
)
def test_usual_forms_are_read(judgement: str, score: float) -> None:
    assert parse_score(judgement) == score


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("There are 5 reasons why this is a score of 4.", None),
        ("I cannot evaluate this.", None),
        ("Clarity: 85\nScore: 85", None),
        ("Score: [[90]]", None),
        ('{"score": 4, "reason": "the snippet {foo: 1} is right"}', 4),
        ('{"reason": "it has {braces} and \\"Score: 1\\"", "score": 4}', 4),
        ("Answer: as asked for. Score: 3", 3),
        ("Both are given, so the score is [[4]]. It would be 7/10 elsewhere.", None),
        ("Score: 0\n\nThe assistant's 10 points are all wrong.", 0),
    ],
)
def test_judgements_as_in_public_reports(judgement: str, score: float | None) -> None:
    """Openagent-eval 74, water 57, proving-ground 7, unitxt 1960, smithers 169, langchain 2282, flexeval 237, ..."""
    assert parse_score(judgement) == score


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("Score: 4\nThe maximum would be Score: 5.", 4),
        ("Relevance score: 1\nCoverage score: 1\nTotal: 2", 2),
        ('Score: 2\nThe reply says "Score: 5" of itself.', 2),
        ("Score: 2\n> Score: 5", 2),
        ('Score: 2\n"Score: 5"', 2),
        ("Clear, I would say score: 3 for that.", 3),
        ("Score: 4. It could have 5 points.", 4),
    ],
)
def test_a_statement_counts_before_a_mention(judgement: str, score: float) -> None:
    assert parse_score(judgement) == score


@pytest.mark.parametrize(
    "judgement",
    [
        "Score: 4 or 5",
        "Score: 3 to 4",
        "Score: 1+1",
        "Score: 5 minus 1",
        "Score (out of 10): 4",
        "Score\n4",
        "The score should be 4",
        "Score: 4 -> 5",
        "Score: 4 \u2192 5",
        "Score: 5/5 -> 4/5",
        "Score: 4, or 5",
        "Score: 4 / 5 or 5/5",
        "Score: *4* or *5*",
        "Score: **4 or 5**",
        "Score: 4/5 to 5/5",
        "Score: 4 & 5",
        "Score: 4|5",
        "Score: 4; 5",
        "Score: 4, 5.",
        "Score: 1 (relevance) + 1 (coverage) = 2",
        "The reply says 'Score: 5'",
        "It quotes \u201cScore: 5\u201d",
        "I would give a total score of 4.",
    ],
)
def test_what_can_be_read_in_two_ways_is_not_guessed(judgement: str) -> None:
    assert parse_score(judgement) is None


@pytest.mark.parametrize(
    ("judgement", "form"),
    [
        ("Fair.\nScore: 4\n", "plain"),
        ("Score: 4/5", "scale"),
        ("Score (out of 5): 4", "scale"),
        ("Score: 1+1=2", "sum"),
        ("### Score\n4", "heading"),
        ("**Score:** 4", "decorated"),
        ("Total: 4", "decorated"),
        ('{"score": 4}', "mention"),
        ("Score: 4 or 5", "none"),
    ],
)
def test_it_is_told_in_which_form_a_score_is_stated(judgement: str, form: str) -> None:
    assert read_score(judgement).form == form


@pytest.mark.parametrize(
    ("answer", "winner"),
    [
        ("Verdict: A", "A"),
        ("Both are fine.\n**Verdict:** b", "B"),
        ("**Verdict**: tie", "tie"),
        ("Verdict: Response A", "A"),
        ("Final verdict: A", "A"),
        ("Verdict:\nA", "A"),
        ("```\nVerdict: B\n```", "B"),
        ("Verdict: [[A]]", "A"),
        ("[[A]]", "A"),
        ("My final verdict is: [[B]]", "B"),
        ("[[C]]", "tie"),
        ("### Verdict\nA", "A"),
        ("Verdict\uff1aA", "A"),
        ('Verdict: "A"', "A"),
        ("Verdict: \\boxed{B}", "B"),
        ('{"verdict": "A"}', "A"),
        ("My verdict: B", "B"),
        ("The verdict is A.", "A"),
        ("[[A>B]]", None),
        ("Verdict: A is better than B", None),
        ("[[A]] or [[B]]", None),
        ("Verdict: A or B", None),
        ("As a judge, I considered the evidence. The final grade is B.", None),
        ("A", None),
        ("Verdict: A\nNo, both are bad.", None),
        ("", None),
    ],
)
def test_verdicts_are_read_or_not_at_all(answer: str, winner: str | None) -> None:
    assert parse_verdict(answer) == winner
    assert parse_verdict(answer, "length") is None


@pytest.mark.parametrize(
    "judgement",
    [
        "",
        "It is good.",
        "4",
        "Score",
        "Score:",
        "Score: <total points>",
        "Score: four",
        "Score 4",
        "Underscore: x",
        "highscore: 4",
        "Scores: 4",
        "Score: x 4",
        "Score\u200b: 4",
        "Ｓｃｏｒｅ： ４",
        "Score: ４",
        "Score: ٤",
        "Score: \u200f4",
        "Score: ½",
    ],
)
def test_without_a_stated_score_there_is_none(judgement: str) -> None:
    assert parse_score(judgement) is None


@pytest.mark.parametrize(
    "judgement",
    [
        "Score: 6",
        "Score: 5.1",
        "Score: 10",
        "Score: 45",
        "Score: 100",
        "Score: 1000",
        "Score: 1,000",
        "Score: 20240101",
        "Score: -1",
        "Score: −1",
        "Score: 4/10",
        "Score: 4 out of 10",
        "Score: 4/50",
        "Score: 3-5",
        "Score: 3 – 5",
        "Score: 4.1.2",
        "Score: 4.12345678",
        "Score: 5\u0663",
        "Score: 1e9",
        "Score: 5th",
        "Score: 3—5",
        "Score: 3 − 5",
        "Score: 3~5",
        "Score: 4 of 10",
        "Score: 4 points out of 10",
        "Score: 4 points/10",
        "Score: 4／10",
        "Score: 4％",
    ],
)
def test_out_of_range_or_other_scale_is_no_score(judgement: str) -> None:
    assert parse_score(judgement) is None


@pytest.mark.parametrize("judgement", ["Score: **4**/10", "Score: [4]/10", "Score: 4 (out of 10)", "Score: 4%"])
def test_other_scale_behind_decoration_is_no_score(judgement: str) -> None:
    assert parse_score(judgement) is None


@pytest.mark.parametrize("after", ["- 3 facts are right", "– 2 are wrong", "/10 is not my scale"])
def test_what_the_next_line_begins_with_does_not_matter(after: str) -> None:
    assert parse_score(f"Score: 4\n{after}") == 4


def test_absurdly_long_scale_is_no_score() -> None:
    assert parse_score("Score: 4/" + "9" * 5000) is None


VERDICT_PIECES = st.sampled_from(
    ["Verdict", ":", " is ", "A", "B", "tie", "C", "[[", "]]", "**", "\n", "### ", "`", '{"verdict": "', '"}', "or",
     "final", "My ", "Response ", "\uff1a", "\u0391", "a", "b", ".", "\\boxed{", "}"]
)  # fmt: skip


@given(st.text() | st.lists(VERDICT_PIECES, max_size=12).map("".join))
@example("[[A]]")
@example("Verdict: Response B")
def test_any_answer_has_one_verdict_or_none_and_the_other_with_sides_exchanged(answer: str) -> None:
    found = parse_verdict(answer)
    assert found in ("A", "B", "tie", None)
    sides = re.compile(r"(?<![A-Za-z])[ABab](?![A-Za-z])")
    exchanged = sides.sub(lambda side: side[0].translate(str.maketrans("ABab", "BAba")), answer)
    assert parse_verdict(exchanged) == {"A": "B", "B": "A"}.get(found or "", found)


@given(st.text() | HOSTILE)
@example("Score: 4" + "\x00")
@example("Score: \ud800 4")
@example("Score: " + "9" * 5000)
@example("Score: 0." + "0" * 5000)
def test_any_text_gives_none_or_a_score_in_range(judgement: str) -> None:
    result = parse_score(judgement)
    assert result is None or (isinstance(result, float) and 0 <= result <= 5)


@given(st.text() | HOSTILE)
@example("Score: 5")
def test_truncated_judgement_is_none(judgement: str) -> None:
    assert parse_score(judgement, "length") is None


@given(st.integers(6, 999) | st.integers(51, 9999).map(lambda n: n / 10), NEUTRAL)
def test_number_above_five_is_none(value: float, after: str) -> None:
    if value > 5:
        assert parse_score(f"Fine. Score: {value}{after}") is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), NEUTRAL)
def test_last_score_wins(scores: list[int], between: str) -> None:
    judgement = between.join(f"Score: {score}" for score in scores)
    assert parse_score(judgement + between) == scores[-1]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6), NEUTRAL)
def test_last_score_in_range_wins_over_later_ones_out_of_range(numbers: list[int], between: str) -> None:
    in_range = [number for number in numbers if number <= 5]
    judgement = between.join(f"Score: {number}" for number in numbers)
    assert parse_score(judgement + between) == (in_range[-1] if in_range else None)


@given(st.integers(0, 5), HOSTILE)
def test_what_comes_before_does_not_matter(score: int, before: str) -> None:
    assert parse_score(f"{before}\nScore: {score}") == score


@given(st.integers(0, 500).map(lambda n: n / 100))
def test_fractions_are_read_exactly(score: float) -> None:
    assert parse_score(f"Score: {score}") == score


@pytest.mark.parametrize(
    ("judgement", "rationale"),
    [
        ("Clear and right.\nScore: 4\n", "Clear and right."),
        ("Clear.\n\n**Score: 4/5**\n", "Clear."),
        ("Clear.\nScore: <total points>", "Clear."),
        ("Clear.\nscore :", "Clear."),
        ("Relevant.\nScore: 1\nRight.\nScore: 2", "Relevant.\nScore: 1\nRight."),
        ("Clear. Score: 4", "Clear."),
        ("Clear. **Score: 4 points out of 5**.", "Clear."),
        ("It says:\nScore: 5\nThat is wrong. Score: 1", "It says:\nScore: 5\nThat is wrong."),
        ("The reply claims Score: 5 but is wrong.", "The reply claims Score: 5 but is wrong."),
        ("  Clear and right.  ", "Clear and right."),
        ("Score: 4", ""),
        ("", ""),
    ],
)
def test_the_rationale_is_what_comes_before_the_score(judgement: str, rationale: str) -> None:
    assert rationale_before_score(judgement) == rationale


@pytest.mark.parametrize(
    "unit",
    [
        *("Score: ", "Score", "score:", "Score: 1", "Score: (", "Score: 4.", "Score: 4 out "),
        *("1/", "* ", "\n", "*\n", "> "),
        *("Score:" + " " * 5000, "Score: 4" + " " * 5000, "Score: 4 (" + "\t" * 5000, "Score: 4 points" + " " * 5000),
    ],
)
@pytest.mark.parametrize("read", [parse_score, rationale_before_score, re.compile(FINAL_LINE).search])
def test_long_repetitions_take_no_noticeable_time(read: Callable[[str], object], unit: str) -> None:
    text = unit * (100_000 // len(unit)) + "x"
    started = time.perf_counter()
    read(text)
    assert time.perf_counter() - started < 1
