import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.judge_accuracy import JudgeAccuracy
from srlm_pipeline.evaluation.promotion import Rule
from srlm_pipeline.report import IterationFacts, iteration_markdown

MATCH = HeadToHead(12, 5, 3, 0.725, 0.55, 0.875, 0.8, 0.035, 0.15, 0.4)
JUDGE = JudgeAccuracy(0.712, 0.65, 0.77, 0.6, 0.66, 0.75, 0.57, 0.5, 0.25, 0.456, 0.3, 0.98, 20, 90)
BLIND = JudgeAccuracy(None, None, None, None, None, None, None, None, None, None, None, 0.0, 20, 0)
PIPE = re.compile(r"(?<!\\)\|")


def facts(**changes: object) -> IterationFacts:
    replies = pd.DataFrame([("Why?", "base", "older", "newer")], columns=["prompt", "baseline", "previous", "model"])
    plain = IterationFacts(
        project="demo",
        iteration=3,
        model="M3",
        previous="M2",
        arbiter="M1 (scores)",
        matches={"M2": MATCH},
        judges={"M2": BLIND, "M3": JUDGE},
        promoted=True,
        rules=[Rule("wins", True, "win rate 72.5%"), Rule("length", False, "1.40 times")],
        replies=replies,
        figures={"speed": 1234.5678, "loss": 0.00012345},
    )
    return replace(plain, **changes)


def with_reply(text: str) -> list[str]:
    replies = pd.DataFrame([("Why?", "base", "older", text)], columns=["prompt", "baseline", "previous", "model"])
    return iteration_markdown(facts(replies=replies)).split("\n")


def shown(text: str) -> str:
    (line,) = [line for line in with_reply(text) if line.startswith("- *M3:* ")]
    return line.removeprefix("- *M3:* ")


def tables(markdown: str) -> list[list[list[str]]]:
    """Cells of every table: blocks of lines whose second line is a row of dashes."""
    blocks = [block.strip().splitlines() for block in markdown.split("\n\n")]
    found = [block for block in blocks if len(block) > 1 and set(block[1]) <= set("-|")]
    return [[[cell.strip() for cell in PIPE.split(line.strip("|"))] for line in block] for block in found]


@pytest.mark.parametrize(("promoted", "verdict"), [(True, "promoted to champion"), (False, "not promoted")])
def test_first_line_gives_the_verdict(promoted: bool, verdict: str) -> None:
    first = iteration_markdown(facts(promoted=promoted)).splitlines()[0]
    assert first == f"# demo, iteration 3: M3 {verdict}"


def test_rows_of_every_table_have_as_many_cells_as_its_head() -> None:
    found = tables(iteration_markdown(facts()))
    assert [len(table) for table in found] == [4, 3, 4, 4]
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


def test_failed_rules_stand_out_with_their_reasons() -> None:
    rules = tables(iteration_markdown(facts()))[0][2:]
    assert rules == [["wins", "passed", "win rate 72.5%"], ["length", "**failed**", "1.40 times"]]


def test_matches_are_shown_with_who_decided_them() -> None:
    assert "Decided by M1 (scores)." in iteration_markdown(facts())


def test_matches_show_counts_rate_interval_and_disagreement() -> None:
    (row,) = tables(iteration_markdown(facts()))[1][2:]
    assert row == ["M2", "12", "5", "3", "72.5% (55.0% to 87.5%)", "15%"]


def test_judges_show_their_figures_under_the_right_heads_and_none_where_there_is_none() -> None:
    head, _, blind, judge = tables(iteration_markdown(facts()))[2]
    assert dict(zip(head, judge, strict=True)) == {
        "model": "M3",
        "pairwise (95 %)": "71.2% (65.0% to 77.0%)",
        "length baseline": "60.0%",
        "length-balanced": "66.0%",
        "5-best": "50.0%",
        "exact match": "25.0%",
        "Spearman": "0.46",
        "Kendall": "0.30",
        "parsed": "98%",
    }
    assert blind == ["M2", "none (none to none)", *["none"] * 6, "0%"]


def test_figures_are_rounded_to_four_digits() -> None:
    assert tables(iteration_markdown(facts()))[3][2:] == [["speed", "1235"], ["loss", "0.0001234"]]


def test_replies_stand_under_their_models() -> None:
    markdown = iteration_markdown(facts())
    assert "**Why?**\n\n- *SFT baseline:* base\n- *M2:* older\n- *M3:* newer\n" in markdown


@pytest.mark.parametrize("missing", ["matches", "judges", "figures"])
def test_report_without_a_part_still_has_the_others(missing: str) -> None:
    markdown = iteration_markdown(facts(**{missing: {}}))
    assert sorted(len(table) for table in tables(markdown)) != [3, 4, 4, 4]
    assert len(tables(markdown)) == 4
    assert "- *M3:* newer" in markdown


@pytest.mark.parametrize(
    "hostile",
    [
        "a\n\n# promoted to champion",
        "x | y | z",
        "<script>alert(1)</script>",
        "```\ncode",
        "![image](http://example.org)",
        "*bold* _thin_ {x}",
        "\\* no escape",
        "line\u2028separator\x85too",
    ],
)
def test_reply_stays_one_line_of_plain_text(hostile: str) -> None:
    assert len(with_reply(hostile)) == len(with_reply("plain"))
    text = shown(hostile)
    assert re.sub(r"\\(.)", r"\1", text) == " ".join(hostile.split())
    assert not re.search(r"[`*_{}\[\]<>|#\\]", re.sub(r"\\.", "", text))


@pytest.mark.parametrize("hostile", ["~~struck~~", "&lt;b&gt;"])
def test_strikethrough_and_entities_are_plain_text_too(hostile: str) -> None:
    assert not re.search(r"[~&]", re.sub(r"\\.", "", shown(hostile)))


@given(st.text(max_size=40) | st.lists(st.sampled_from(["\\", "|", "\n", "\r", "`", "#", "a", " "])).map("".join))
@settings(max_examples=80, deadline=None)
def test_what_a_model_wrote_can_be_read_back(text: str) -> None:
    assert re.sub(r"\\(.)", r"\1", shown(text)) == " ".join(text.split())


def test_long_replies_are_cut_before_they_are_escaped() -> None:
    assert shown("a" * 300) == "a" * 300
    assert shown("a" * 301) == "a" * 300 + "\u2026"
    assert shown("*" * 301) == "\\*" * 300 + "\u2026"
