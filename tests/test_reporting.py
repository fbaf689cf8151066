import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import AROUND, OTHER, REFUSED, REPLIES, RULES, SETTINGS, iterations_of, make_project, measured, reading_of

from srlm_pipeline.assets.reports import task_scores
from srlm_pipeline.config import PromotionSettings, Settings
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.evidence import compare_all, opinion
from srlm_pipeline.evaluation.head_to_head import ORDERS
from srlm_pipeline.evaluation.matches import match_result
from srlm_pipeline.evaluation.opponents import Role
from srlm_pipeline.evaluation.promotion import (
    Decision,
    Evidence,
    Rule,
    comparisons,
    decide_promotion,
    write_decision,
)
from srlm_pipeline.models.checkpoint import COPY_OF, Checkpoint, write_marker
from srlm_pipeline.reporting.charts import curves, dot_chart, histograms
from srlm_pipeline.reporting.iteration import Iteration, ancestry
from srlm_pipeline.reporting.overview import overview_html
from srlm_pipeline.reporting.pages import Column, write_report
from srlm_pipeline.reporting.report import choose_exchanges, in_plain_words, iteration_pages, verdict
from srlm_pipeline.reporting.words import file_address, fold, p_value, safe_address, seconds
from srlm_pipeline.store import SFT_BASELINE, ProjectStore
from srlm_pipeline.tables import WIN_RATES

PACKAGE = Path(__file__).parent.parent / "srlm_pipeline" / "reporting"
VOID = {"meta", "br", "hr", "img", "link", "input"}
SECTIONS = [
    "rules", "monitors", "vital", "matches", "judge", "verifiable", "tasks", "distributions", "replies", "prompts",
    "pairs", "lineage", "costs", "settings", "files",
]  # fmt: skip


class Page(HTMLParser):
    """Elements in order, with their attributes and all text inside; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute is given twice"
        element = {"tag": tag, "attrs": dict(attrs), "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)
        elif tag == "br":
            self.handle_data(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, *tags: str) -> list[dict[str, Any]]:
        return [e for e in self.elements if e["tag"] in tags]

    def ids(self) -> list[str]:
        return [e["attrs"]["id"] for e in self.elements if "id" in e["attrs"]]

    def rows(self, section: str) -> list[list[str]]:
        """Cells of all table rows of a section, by its id."""
        first = next(n for n, e in enumerate(self.elements) if e["attrs"].get("id") == section)
        rows: list[list[str]] = []
        for element in self.elements[first + 1 :]:
            if element["tag"] == "section":
                break
            if element["tag"] == "tr":
                rows.append([])
            elif element["tag"] in ("th", "td"):
                rows[-1].append(" ".join(element["text"].split()))
        return rows


def text_of(html: str) -> str:
    return " ".join(Page(html).all("body")[0]["text"].split())


def skeleton(html: str) -> list[tuple[str, list[str]]]:
    return [(e["tag"], sorted(e["attrs"])) for e in Page(html).elements]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></details></section></main></body></html>",
    "<!-- <style> ]]> <svg onload=alert(1)>",
    "{{ 7 * 7 }} {% for x in y %} {# hidden #}",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "# heading\n\n| a | b |\n**bold** ![x](http://example.org/x.png)",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ProjectStore:
    return make_project(tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="module")
def pages(store: ProjectStore) -> dict[str, str]:
    made = iterations_of(store)
    html, summary = iteration_pages(made[1], reading_of(made[1]))
    return {"iteration": html, "summary": summary, "overview": overview_html(made, {1: 937.0, 2: 60.0})}


def page_of(it: Iteration) -> Page:
    return Page(iteration_pages(it, reading_of(it))[0])


def second(store: ProjectStore, **changes: Any) -> Iteration:
    return iterations_of(store, **changes)[1]


def with_evaluation(**changes: Any) -> Settings:
    given = SETTINGS.model_dump()
    return Settings.model_validate(given | {"evaluation": given["evaluation"] | changes})


def named(table: list[list[str]], row: str) -> dict[str, str]:
    return dict(zip(table[0], next(cells for cells in table if cells[0].startswith(row)), strict=True))


X, Y = Column("x", "x"), Column("y", "y")
BOTH = pytest.mark.parametrize("name", ["iteration", "overview"])


@BOTH
def test_page_is_well_formed_and_can_be_found_the_way_around(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert pages[name].startswith("<!DOCTYPE html>")
    assert len(page.ids()) == len(set(page.ids()))
    targets = [e["attrs"]["href"][1:] for e in page.all("a") if e["attrs"]["href"].startswith("#")]
    assert set(targets) <= set(page.ids())
    levels = [int(e["tag"][1]) for e in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


@BOTH
def test_tables_and_charts_speak_to_screen_readers(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert all(e["attrs"].get("scope") in ("col", "row") for e in page.all("th"))
    charts = page.all("svg")
    assert len(charts) >= 4
    assert all(e["attrs"]["role"] == "img" for e in charts)
    assert all(len(e["attrs"]["aria-label"]) > 20 and e["attrs"]["aria-label"] in e["text"] for e in charts)
    boxes = [e for e in page.all("div") if e["attrs"].get("class", "").startswith("scroll")]
    assert boxes
    assert all(e["attrs"]["tabindex"] == "0" and e["attrs"]["aria-label"] for e in boxes)


@BOTH
def test_nothing_is_loaded_and_nothing_runs(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert not page.all("script", "link", "img", "iframe", "object", "embed", "video", "audio", "base", "form", "image")
    names = {name for e in page.elements for name in e["attrs"]}
    assert not {"src", "srcset", "data"} & names
    assert not [name for name in names if name.startswith("on")]
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|@font-face|expression", style["text"])
    assert {e["tag"] for e in page.elements if "href" in e["attrs"]} == {"a"}
    # Parts of a chart are drawn more than once.
    own = [value for e in page.elements for n in ("xlink:href", "clip-path") if (value := e["attrs"].get(n))]
    assert all(re.fullmatch(r"#\w+|url\(#\w+\)", value) for value in own)
    (policy,) = [e for e in page.all("meta") if e["attrs"].get("http-equiv") == "Content-Security-Policy"]
    assert policy["attrs"]["content"].startswith("default-src 'none'")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_anyone_wrote_stays_text(hostile: str, tmp_path: Path) -> None:
    def both(text: str, folder: str) -> tuple[str, str]:
        made = iterations_of(make_project(tmp_path / folder, text, other=OTHER + text), text, OTHER + text)
        return iteration_pages(made[1], reading_of(made[1]))[0], overview_html(made, {})

    found, harmless = both(hostile, "hostile"), both(re.sub(r"\S", "x", hostile), "harmless")
    for page, other in zip(found, harmless, strict=True):
        assert skeleton(page) == skeleton(other)
        assert "<script" not in page
    told = text_of(found[0])
    for written in ("Because of this.", "Plan a trip.", "Write a poem.", "Four.", "close by", OTHER):
        assert written + " ".join(hostile.split()) in told


@pytest.mark.parametrize("odd", ["null \x00", "bell \x07", "half \ud83d", "escape \x1b[31m", "c1 \x9b"])
def test_characters_that_html_forbids_are_replaced(odd: str, tmp_path: Path) -> None:
    it = second(make_project(tmp_path / "demo", rules=(replace(REFUSED, explanation=odd),)))
    write_report(tmp_path / "report.html", iteration_pages(it, reading_of(it))[0])
    read = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert odd not in read
    assert odd.split()[0] + " \ufffd" in read
    assert odd.split()[0] + " \ufffd" in str(dot_chart("t", {odd: {"x": 0.5}}, [X], {}))


@pytest.mark.parametrize(
    ("address", "linked"),
    [
        ("http://127.0.0.1:5000/#/runs/1", True),
        ("https://example.org/a?b=c&d", True),
        ("iter_001.html", True),
        ("../reports/iter_001.html#rules", True),
        ("javascript:alert(1)", False),
        (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("//example.org/x", False),
        ("\\\\example.org/x", False),
        ("http:", False),
        ("http://[broken", False),
        ("", False),
    ],
)
def test_only_harmless_addresses_become_links(address: str, linked: bool, store: ProjectStore) -> None:
    assert safe_address(address) == (address if linked else None)
    it = second(store, around=replace(AROUND, links={"there": address}))
    page = page_of(it)
    assert page.all("dd")[-4]["text"] == address
    last = [e["attrs"]["href"] for e in page.all("a") if not e["attrs"]["href"].startswith(("#", "file:"))][-1]
    assert (last == address) == linked


def test_files_are_linked_by_their_whole_path_only() -> None:
    assert file_address("/srv/my models/M3#1") == "file:///srv/my%20models/M3%231"
    assert file_address("models/M3") is None
    assert file_address("/srv/\udcff") == "file:///srv/%3F"


def test_a_section_without_figures_is_left_out_and_so_is_its_entry(pages: dict[str, str], tmp_path: Path) -> None:
    shown = [name for name in Page(pages["iteration"]).ids() if name in SECTIONS]
    assert shown == SECTIONS
    bare = make_project(tmp_path / "bare", rules=())
    it = second(bare, around=replace(AROUND, tasks={}), followed=[])
    page = page_of(it)
    assert [name for name in page.ids() if name in SECTIONS] == [
        name for name in SECTIONS if name not in ("rules", "tasks", "verifiable")
    ]
    assert not {"#rules", "#tasks", "#verifiable"} & {e["attrs"]["href"] for e in page.all("a")}


def test_figures_of_a_match_are_shown(pages: dict[str, str]) -> None:
    rows = Page(pages["iteration"]).rows("matches")
    assert named(rows[3:], "M2") == {
        "M3 against": "M2 previous model, champion",
        "wins": "1",
        "ties": "2",
        "losses": "1",
        "win rate (95%)": "50.0% 17.8% to 82.2%",
        "length-controlled": named(rows[3:], "M2")["length-controlled"],
        "decided prompts only": "50.0% 1.3% to 98.7%",
        "sign test p": "1.000",
        "length ratio": "1.12",
        "orders disagree": "0.0%",
        "position bias": "\u2013",
        "jurors agree": "66.7%",
        "effective votes": named(rows[3:], "M2")["effective votes"],
    }
    assert [row[0] for row in rows[4:]] == [
        "base base model",
        "sft_baseline SFT baseline",
        "M2 previous model, champion",
        "another model other model's answers",
    ]
    assert float(rows[4][-1]) <= 2


def test_jury_is_shown_juror_by_juror_and_a_single_arbiter_in_a_sentence(
    pages: dict[str, str], store: ProjectStore
) -> None:
    jury = Page(pages["iteration"]).rows("matches")
    assert jury[1:3] == [["verifiers", "1.00", "68.4%", "93.0%"], ["M1: scores", "2.00", "\u2013", "\u2013"]]
    around = replace(AROUND, agreement={"agreement": 0.684, "decided": 0.93})
    alone = second(store, settings=with_evaluation(arbiters=[{"model": "verifiers"}]), around=around)
    html = iteration_pages(alone, reading_of(alone))[0]
    assert "jurors agree" not in html
    assert (
        "Decided by verifiers. It agrees with 68.4% of the held-out human preferences that it decides (93.0%"
        in text_of(html)
    )


def test_figures_of_a_judge_are_shown(pages: dict[str, str]) -> None:
    assert named(Page(pages["iteration"]).rows("judge"), "M3") == {
        "model": "M3",
        "pairwise (95%)": "83.3% 50.0% to 100.0%",
        "longer is better": "50.0%",
        "length-balanced": "\u2013",
        "5-best": "100.0%",
        "exact match": "66.7%",
        "Spearman": "0.67",
        "Kendall": "0.67",
        "readable": "100.0%",
        "prompts": "3",
        "pairs": "3",
    }


def test_verifiable_instructions_are_shown_by_model_and_by_kind(pages: dict[str, str]) -> None:
    rows = Page(pages["iteration"]).rows("verifiable")
    base, new = named(rows, "base"), named(rows[:6], "M3")
    assert (base["instructions, strict"][:5], new["instructions, strict"][:5]) == ("16.7%", "50.0%")
    assert base["prompts, strict"].startswith("0.0% 0.0% to ")
    assert base["M3 against it"].startswith("+33.3% ")
    assert new["M3 against it"] == "\u2013"
    assert base["M3 against it"].split()[0] + " (" in pages["summary"]
    assert rows[6:] == [
        ["kind", "instructions", "base", "sft_baseline", "M1", "M2", "M3"],
        ["punctuation:no_comma", "3", "33.3%", *["66.7%"] * 4],
        ["startend:quotation", "3", "0.0%", "0.0%", *["33.3%"] * 3],
    ]


def test_vital_signs_stand_beside_those_of_other_models_with_what_is_proved(store: ProjectStore) -> None:
    it = second(store)
    found = {name: measured(name, loops=[name != "M3"] * 4, nats=[2.0 + 0.1 * (name == "M3")] * 9) for name in it.found}
    rows = page_of(replace(it, found=found)).rows("vital")
    assert rows[0] == ["measure", "base", "sft_baseline", "M1", "M2", "M3", "M3, with 95 % confidence (two-sided)"]
    circles = named(rows, "replies that go in circles")
    assert (circles["M1"], circles["M3"]) == ("57.1% 18.4% to 90.1%", "0.0% 0.0% to 41.0%")
    surprise = named(rows, "surprise at the best human replies")
    assert surprise["measure"].endswith("per token, less is better")
    assert surprise["M3, with 95 % confidence (two-sided)"] == "\u2717 worse than base, sft_baseline, M1, M2"
    nearness = named(rows, "nearness")
    assert nearness["M3"] == "\u2013"
    assert nearness["M3, with 95 % confidence (two-sided)"].startswith(
        "\u2013 not measured: the evaluation prompts have no `ref"
    )


def test_matches_before_an_arbiter_of_the_loop_are_called_its_own_opinion(
    pages: dict[str, str], store: ProjectStore
) -> None:
    warning = "The loop's own opinion. The arbiter is not independent: M1, which every later model descends from"
    assert warning in text_of(pages["iteration"])
    assert "The loop's own opinion: the arbiter is not independent" in pages["summary"]
    outside = second(store, settings=with_evaluation(arbiters=[{"model": "verifiers"}]))
    assert not any("own opinion" in text for text in iteration_pages(outside, reading_of(outside)))


def test_costs_are_added_up_and_compared_with_the_plan(pages: dict[str, str], store: ProjectStore) -> None:
    assert Page(pages["iteration"]).rows("costs") == [
        ["stage", "time", "planned", "actual / planned", "tokens written", "planned", "tokens read, planned"],
        ["candidates", "2 min 23 s", "2 min 00 s 1 min 20 s to 3 min 20 s", "1.20", "61,210", "60,000", "9,500"],
        ["judged_scores", "1 min 01 s", *["\u2013"] * 5],
        ["all", "3 min 24 s", "2 min 00 s", "1.20", "61,210", "60,000", "9,500"],
    ]
    unplanned = replace(AROUND, costs={"candidates": {"seconds": 143.4}, "judged_scores": {}})
    assert page_of(second(store, around=unplanned)).rows("costs") == [
        ["stage", "time"], ["candidates", "2 min 23 s"], ["judged_scores", "\u2013"], ["all", "2 min 23 s"]
    ]  # fmt: skip


def test_prompts_and_pairs_are_shown_with_what_became_of_the_others(pages: dict[str, str]) -> None:
    told = text_of(pages["iteration"])
    assert "2 kept after 5 attempts (40.0%)." in told
    assert "Turned away because not novel: 2 (40.0%) Write a poem. Write again." in told
    assert "Turned away because too long: 1 (20.0%) Kept, for example Plan a trip." in told
    assert "1 from 3 prompts; prompts without one: 1 ties, 1 too few readable scores." in told
    assert "Sum? chosen, 5 characters, score 4.30 Four. rejected, 5 characters, score 1.90 Five." in told


def test_replies_are_shown_side_by_side_where_the_arbiter_was_surest(pages: dict[str, str]) -> None:
    told = text_of(pages["iteration"])
    assert "M3 against M2: 3 of 4 evaluation prompts." in told
    won = (
        "1. Won preference +1.50, dispute 0.50 evaluation prompt 0 M3, 16 characters Because of this. M2, 8 characters"
    )
    assert won in told
    assert "Lost preference -1.00 evaluation prompt 1" in told
    assert "Most disputed" in told
    assert "Tie preference +0.00, dispute 1.00 evaluation prompt 3" in told


def test_prompts_are_shown_below_those_they_were_made_of(pages: dict[str, str]) -> None:
    told = text_of(pages["iteration"])
    assert "Made out of others, or by program: 1" in told
    assert "few-shot Plan a trip. constrain Plan a trip. Use no commas." in told


def test_the_lineage_says_how_every_model_was_made(pages: dict[str, str]) -> None:
    told = text_of(pages["iteration"])
    assert "base: base model someone/base-model" in told
    assert "sft_baseline: instruction data" in told
    assert "M2 (champion before): DPO on 1 pairs of iteration 1" in told
    assert "M3 (rejected): DPO on 1 pairs of iteration 2" in told


def test_without_sft_the_base_model_is_shown_once_as_the_sft_baseline_too(tmp_path: Path) -> None:
    store = make_project(tmp_path / "demo")
    write_marker(store.model_folder(SFT_BASELINE), SFT_BASELINE, "base", {COPY_OF: "base"})
    made = iterations_of(store)
    page, overview = page_of(made[1]), Page(overview_html(made, {}))
    assert page.rows("vital")[0][1:5] == ["base (SFT baseline)", "M1", "M2", "M3"]
    assert [row[0] for row in page.rows("judge")[1:]] == page.rows("vital")[0][1:5]
    assert [row[0] for row in page.rows("matches")[4:6]] == [
        "base base model, SFT baseline",
        "M2 previous model, champion",
    ]
    assert [row[0] for row in overview.rows("figures")] == ["model", "base (SFT baseline)", "M1", "M2 champion", "M3"]
    assert "win rate against the SFT baseline" not in overview.rows("figures")[0]
    assert SFT_BASELINE not in page.all("main")[0]["text"]


def test_rehearsed_pairs_are_told_apart_from_the_model_s_own(tmp_path: Path) -> None:
    it = iterations_of(make_project(tmp_path))[0]
    mixed = Checkpoint(tmp_path, "M2", "", "", {"dpo": {}, "pairs": 3, "iteration": 1, "rehearsed": 2})
    assert it.origin(mixed) == "DPO on 3 pairs of iteration 1 and 2 of people"


def test_verdicts_are_said_in_words_the_broken_rules_first(pages: dict[str, str]) -> None:
    page = Page(pages["iteration"])
    assert [row[1] for row in page.rows("rules")[1:]] == ["\u2717 failed", "\u2013 not judged", "\u2713 passed"]
    assert page.rows("monitors")[1:] == [
        ["distance from M1 (KL)", "\u2713 passed", "close by"],
        ["tie rate", "\u2717 failed", "12.0% tied"],
        ["variety within replies", "\u2013 not judged", "not measured"],
    ]
    assert "| \u2717 failed | win rate 53.1%" in pages["summary"]


def test_every_figure_of_a_promotion_rule_is_in_a_table_of_the_page_under_its_name(tmp_path: Path) -> None:
    asked = PromotionSettings()
    found = {name: measured(name) for name in REPLIES}
    before: dict[Role, Assessment] = {"champion": found["M2"], "baseline": found["sft_baseline"], "base": found["base"]}
    said, people = opinion((24, 25, 21), asked, 0.533, 0.684), opinion((7, 1, 3), asked)
    assert said is not None
    rules: list[Rule] = []
    told = 0
    for dependences in ((), ("the judge chose the pairs",)):
        compared = compare_all(found["M3"], before, asked, 100, bool(dependences))
        evidence = Evidence("M2", said, dependences, compared, people, 1.234)
        rules = list(decide_promotion(evidence, asked))
        made = make_project(tmp_path / str(bool(dependences)))
        digest = made.checkpoint("M3").digest
        decision = Decision("M3", digest, "M2", False, tuple(rules), comparisons(evidence, asked))
        write_decision(decision, made.decision_path(2))
        it = second(made)
        assert it.decision == decision
        rows = [" ".join(row) for row in Page(iteration_pages(it, reading_of(it))[0]).rows("rules") if len(row) == 7]
        for rule in rules:
            title = rule.name.removeprefix("no harm: ")
            own = [row for row in rows if title == rule.name or row.startswith(title)]
            # Confidences stand in the heads, and of the votes' number nothing is decided.
            words = re.sub(r"with [\d.]+ % confidence", "", rule.explanation)
            for figure in re.findall(r"[\d.]+%|[\d.]+ (?:points|nats)|\b\d\.\d{2,3}\b", words):
                assert any(figure in row for row in own), (figure, rule)
                told += 1
    assert told > 40


NOT_PROMOTED = "M3 is not promoted, M2 remains champion: wins against the champion: win rate 53.1%"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, f"{NOT_PROMOTED}; more than 55.0% needed."),
        (
            {"rules": (*RULES, Rule("length", False, "1.4 times."))},
            f"{NOT_PROMOTED}; more than 55.0% needed (and 1 more rule failed).",
        ),
        (
            {"promoted": True, "rules": (Rule("off", None, "off"), Rule("wins", True, "win rate 61.0%."))},
            "M3 is promoted to champion, in place of M2: wins: win rate 61.0%.",
        ),
        ({"promoted": True, "rules": (), "champion": "M3"}, "M3 is promoted to champion: no rule is set."),
    ],
)
def test_verdict_is_one_sentence_with_the_decisive_reason(changes: dict[str, Any], told: str) -> None:
    assert verdict(replace(Decision("M3", "", "M2", False, RULES), **changes)) == told


def test_the_verdict_stands_at_the_top(pages: dict[str, str]) -> None:
    page = Page(pages["iteration"])
    first, second, third = page.all("p")[:3]
    assert "demo, iteration 2: from M2 to M3. Made on 3 July." in first["text"]
    assert second["text"] == (
        "In the opinion of its own judge, M3 cannot be told from M2 (1:1, 2 ties: no proof) and plain "
        "fine-tuning (1:1, 2 ties: no proof)."
    )
    assert third["text"].startswith("M3 is not promoted, M2 remains champion")
    for said in (second, third):
        assert said["text"] in pages["summary"].replace("\\", "")
    assert page.all("h1")[0]["text"] == "M3 not promoted"


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((41, 3, 26), "cannot be told from M2 (41:26, 3 ties: no proof)"),
        ((24, 25, 21), "is about as good as M2 (24:21, 25 ties: no proof)"),
        ((60, 1, 9), "is better than M2 (60:9, 1 tie)"),
        ((9, 0, 60), "trails M2 (9:60)"),
        ((0, 70, 0), "cannot be told from M2 (0:0, 70 ties: no proof)"),
        ((3, 0, 1), "cannot be told from M2 (3:1: no proof)"),
    ],
)
def test_the_first_sentence_claims_what_the_interval_shows(
    store: ProjectStore, counts: tuple[int, int, int], told: str
) -> None:
    wins, ties, losses = counts
    rows = [("win", 1.0)] * wins + [("tie", 0.0)] * ties + [("loss", -1.0)] * losses
    opinions = json.dumps([{"juror": "j", "weight": 1.0, "preference": 0.0}])
    table = pd.DataFrame(
        [(f"e{n}", "M2", order, v, p, opinions) for n, (v, p) in enumerate(rows) for order in ORDERS],
        columns=list(WIN_RATES.columns),
    )
    replies = pd.DataFrame({"prompt_id": [f"e{n}" for n in range(len(rows))], "reply": "text"})
    it = second(store)
    it.__dict__["matches"] = {"M2": match_result(table, replies, replies)}
    assert in_plain_words(it) == f"In the opinion of its own judge, M3 {told}."


def test_overview_names_the_champion_and_what_became_of_the_newest_model(pages: dict[str, str]) -> None:
    page = Page(pages["overview"])
    assert page.all("p")[1]["text"] == (
        "M2, made by iteration 1, is the champion: judges as well: 71.9% after 72.4%. Of 2 iterations 1 led to a "
        "promotion; the newest model, M3, was not promoted."
    )
    assert page.rows("verdicts")[1:] == [
        ["M1", "\u2013 not judged", "the seed model, and the first champion"],
        ["M2", "\u2713 promoted", "judges as well: 71.9% after 72.4%; failed monitors: variety"],
        ["M3", "\u2717 not promoted", f"{REFUSED.name}: {REFUSED.explanation}; failed monitors: tie rate, variety"],
    ]
    assert {e["attrs"]["href"] for e in page.all("a")} >= {"iter_001.html", "iter_002.html"}


def test_overview_shows_every_figure_and_draws_what_iterations_made(pages: dict[str, str]) -> None:
    rows = Page(pages["overview"]).rows("figures")
    assert named(rows, "M2") == {
        "model": "M2 champion",
        "iteration": "1",
        "win rate against the base model": "50.0% 17.8% to 82.2%",
        "win rate against the SFT baseline": "50.0% 17.8% to 82.2%",
        "win rate against the previous model": "50.0% 17.8% to 82.2%",
        "win rate against the champion": "50.0% 17.8% to 82.2%",
        "judge accuracy": "83.3% 50.0% to 100.0%",
        "verifiable instructions": named(rows, "M2")["verifiable instructions"],
        "closed tasks": "66.7% 22.3% to 95.7%",
        "go in circles": named(rows, "M2")["go in circles"],
        "mean length": "6",
        "readable": "100.0%",
        "pairs": "1",
        "time": "15 min 37 s",
    }
    assert named(rows, "M1")["win rate against the SFT baseline"] == "50.0% 17.8% to 82.2%"
    baseline = named(rows, "sft_baseline")
    assert (baseline["iteration"], baseline["pairs"], baseline["time"]) == ("\u2013",) * 3
    charts = [e["attrs"]["aria-label"] for e in Page(pages["overview"]).all("svg")]
    assert len(charts) == 8
    assert "iteration 1, win rate against the champion: 50.0% (17.8% to 82.2%)" in charts[0]
    assert "iteration 0, win rate against the base model: 50.0% (17.8% to 82.2%)" in charts[0]
    assert "iteration 0, judge accuracy: 83.3%" in charts[1]
    assert not any("SFT baseline" in chart for chart in charts[1:])


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), max_size=30), st.integers(1, 6))
@settings(max_examples=60)
def test_chosen_exchanges_are_the_extreme_ones_and_shown_once(figures: list[tuple[float, float]], each: int) -> None:
    told = pd.DataFrame(figures, columns=["preference", "dispute"])
    groups = {title: found for (title, _), found in choose_exchanges(told, each).items()}
    best, worst, disputed = (groups.get(title, []) for title in ("Best", "Worst", "Most disputed"))
    shown = [row.Index for row in (*best, *worst, *disputed)]
    assert len(shown) == len(set(shown))
    assert [row.preference for row in best] == sorted((a for a, _ in figures if a > 0), reverse=True)[:each]
    assert [row.preference for row in worst] == sorted(a for a, _ in figures if a < 0)[:each]
    taken = {row.Index for row in (*best, *worst)}
    left = [dispute for n, (_, dispute) in enumerate(figures) if n not in taken and dispute > 0]
    assert [row.dispute for row in disputed] == sorted(left, reverse=True)[:each]


@given(st.text(max_size=200) | st.text("ab \n", min_size=300, max_size=5000))
@settings(max_examples=80)
def test_folding_loses_nothing_but_what_it_counts(text: str) -> None:
    head, rest, left_out = fold(text)
    visible = head + rest
    assert "".join(visible.split()) == "".join(text.strip()[: len(text.strip()) - left_out].split())
    assert len(head) <= 540
    assert bool(rest) == (len(text.strip()) > 540 and bool(rest.strip()))
    assert left_out == max(0, len(text.strip()) - 3000)


def test_long_replies_are_folded_at_the_end_of_a_line_or_word(store: ProjectStore) -> None:
    long = " " + "word " * 55 + "\n" + "more " * 100
    head, rest, _ = fold(long)
    assert head.endswith("word")
    assert rest.startswith("more")
    folded = [e for e in page_of(second(store, text=long)).all("details") if e["attrs"].get("class") == "fold"]
    assert any(" ".join(e["text"].split()).startswith("499 more characters more more") for e in folded)


def test_long_replies_do_not_make_a_page_too_large_to_open(store: ProjectStore) -> None:
    it = second(store, text=" Long & <winded> reply.\n" * 3000)
    assert len(iteration_pages(it, reading_of(it))[0]) < 400_000


def shapes(svg: Any) -> Iterator[str]:
    """What is said of every shape under the pointer, the chart's own title left out."""
    return (e["text"] for e in Page(svg).all("title")[1:])


def test_a_chart_says_every_figure_and_has_no_colour_of_its_own() -> None:
    rows = {"a": {"x": 0.0, "x_low": 0.0, "x_high": 0.2}, "b $x_1$": {"x": 1.0, "y": 0.5, "y_low": 0.4, "y_high": 0.6}}
    chart = dot_chart("t", rows, [X, Y], {"even": 0.5, "unknown": float("nan")})
    assert chart == dot_chart("t", rows, [X, Y], {"even": 0.5, "unknown": None})
    (svg,) = Page(chart or "").all("svg")
    told = ["a, x: 0.0% (0.0% to 20.0%)", "b $x_1$, x: 100.0%", "b $x_1$, y: 50.0% (40.0% to 60.0%)"]
    assert svg["attrs"]["aria-label"] == f"t. {'; '.join(told)}."
    assert list(shapes(chart)) == told
    assert {"b $x_1$", "even", "x", "y"} <= {e["text"] for e in Page(chart or "").all("text")}
    assert not re.search(r"#[0-9a-f]{6}\b|font-family", re.sub(r'"#\w+"|url\(#\w+\)|id="\w+"', "", chart or ""))
    assert dot_chart("t", {"a": {"x": None}}, [X, Y], {}) is None


@given(st.lists(st.lists(st.floats(0, 1e5), min_size=1, max_size=40), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_every_value_is_in_exactly_one_bar(values: list[list[float]]) -> None:
    chart = histograms("t", {str(n): np.array(v) for n, v in enumerate(values)})
    shares = [float(text.rsplit(": ", 1)[1].rstrip("%")) / 100 for text in shapes(chart)]
    assert sum(shares) == pytest.approx(len(values), abs=0.0006 * len(shares))


def test_scores_keep_their_whole_scale_even_if_they_are_all_alike() -> None:
    chart = histograms("t", {"judge": np.full(50, 2.6)}, (0.0, 5.0))
    assert [e["text"] for e in Page(chart or "").all("text")] == ["0", "1", "2", "3", "4", "5", "judge"]
    assert [text for text in shapes(chart) if not text.endswith(": 0.0%")] == ["2.5 to 2.75: 100.0%"]
    assert histograms("t", {"judge": np.array([])}) is None


def test_curve_has_a_gap_where_an_iteration_has_no_figure() -> None:
    made = {1: {"x": 0.5}, 2: {"x": 0.6, "x_low": 0.5, "x_high": 0.7}, 3: {"x": float("nan")}, 4: {"x": 0.4}}
    chart = curves("t", [X, Y], made, reference=0.5)
    assert list(shapes(chart)) == [
        "iteration 1, x: 50.0%",
        "iteration 2, x: 60.0% (50.0% to 70.0%)",
        "iteration 4, x: 40.0%",
    ]
    texts = [e["text"] for e in Page(chart or "").all("text")]
    assert texts[:4] == ["1", "2", "3", "4"]
    assert curves("t", [X], {1: {}}) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 7.0])
def test_curve_through_one_point_can_be_drawn(value: float) -> None:
    chart = curves("t", [Column("x", "x", str)], {1: {"x": value}})
    assert len(Page(chart or "").all("text")) >= 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (143.4, "2 min 23 s"),
        (3599.6, "1 h 00 min"),
        (7260.0, "2 h 01 min"),
    ],
)
def test_times_are_written_for_people(value: float, text: str) -> None:
    assert seconds(value) == text


def test_tiny_p_values_are_not_written_as_zero() -> None:
    assert p_value(1e-9) == "< 0.001"
    assert p_value(0.04321) == "0.043"


def test_report_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "reports" / "iter_001.html"
    write_report(target, "old")
    write_report(target, "new")
    assert target.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        write_report(target, "half \ud800")
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_every_colour_is_one_of_the_two_schemes() -> None:
    css = (PACKAGE / "templates" / "report.css").read_text(encoding="utf-8")
    names = set(re.findall(r"(--[a-z0-9-]+): light-dark\(#[0-9a-f]{6}, #[0-9a-f]{6}\);", css))
    drawn = {f"--s{n}" for n in range(4)}
    # The height of the bar is told by the script.
    assert set(re.findall(r"var\((--[a-z0-9-]+)[),]", css)) - {"--bar"} | drawn == names
    assert not re.findall(r"#[0-9a-f]{3,6}\b", re.sub(r"light-dark\(.*?\)", "", css))


def test_templates_are_installed_with_the_package() -> None:
    project = tomllib.loads((PACKAGE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["srlm_pipeline.reporting.templates"]
    names = [path.name for path in (PACKAGE / "templates").iterdir()]
    assert names
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in names)


def test_scores_of_the_harness_are_found_in_what_was_recorded() -> None:
    recorded = {
        "prompt_strict": 0.4,
        "harness_arc_easy/acc": 0.5,
        "harness_arc_easy/acc_stderr": 0.1,
        "harness_gsm8k/exact_match/strict": 0.2,
        "harness_gsm8k/exact_match_stderr/strict": 0.05,
        "harness_other/f1": 0.3,
    }
    found = task_scores(recorded)
    assert list(found["arc_easy", "acc"].values()) == pytest.approx([0.5, 0.304, 0.696])
    assert list(found["gsm8k", "exact_match/strict"].values()) == pytest.approx([0.2, 0.102, 0.298])
    assert np.isnan(found["other", "f1"]["score_low"]), "without an error there is no interval"


def checkpoint(name: str, digest: str, parent: str) -> Checkpoint:
    return Checkpoint(Path(name), name, digest, parent)


def test_the_lineage_leads_back_from_the_newest_model_past_those_that_it_does_not_come_from() -> None:
    models = [checkpoint("sft_baseline", "s", "base"), checkpoint("M1", "a", "s"), checkpoint("M2", "b", "a")]
    retried = checkpoint("M3", "c", "a")
    assert [m.name for m in ancestry([*models, retried])] == ["sft_baseline", "M1", "M3"]


def test_a_training_that_changed_nothing_does_not_lead_in_circles() -> None:
    models = [checkpoint("M1", "a", "s"), checkpoint("M2", "a", "a"), checkpoint("M3", "a", "a")]
    assert [m.name for m in ancestry(models)] == ["M1", "M2", "M3"]
