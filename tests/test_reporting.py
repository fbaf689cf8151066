import itertools
import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.assets.reports import task_figures
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.reporting.charts import dot_chart, histogram, line_chart
from srlm_pipeline.reporting.facts import (
    Answer,
    Distribution,
    Estimate,
    Exchange,
    FilePath,
    Finding,
    IterationReport,
    JudgeFigures,
    Juror,
    KindFigures,
    LineageStep,
    Link,
    MatchFigures,
    ModelSummary,
    OverviewReport,
    PairExample,
    PairFigures,
    PromptFigures,
    RejectedPrompts,
    Replies,
    StageCost,
    TaskFigures,
    VerifiableFigures,
    VitalSign,
)
from srlm_pipeline.reporting.gather import ancestry
from srlm_pipeline.reporting.render import (
    choose_exchanges,
    iteration_html,
    iteration_verdict,
    overview_html,
    overview_verdict,
    write_report,
)
from srlm_pipeline.reporting.summary import iteration_summary
from srlm_pipeline.reporting.words import file_address, fold, p_value, safe_address, seconds

PACKAGE = Path(__file__).parent.parent / "srlm_pipeline" / "reporting"
VOID = {"meta", "br", "hr", "img", "link", "input"}
SECTIONS = {
    "rules": {"rules": ()},
    "monitors": {"monitors": ()},
    "vital": {"vital_signs": ()},
    "matches": {"matches": ()},
    "judge": {"judges": ()},
    "verifiable": {"verifiable": ()},
    "tasks": {"tasks": ()},
    "distributions": {"scores": (), "lengths": ()},
    "replies": {"replies": None},
    "prompts": {"prompts": None},
    "pairs": {"pairs": None},
    "lineage": {"lineage": ()},
    "costs": {"costs": ()},
    "settings": {"settings": ""},
    "files": {"links": (), "files": ()},
}

MATCH = MatchFigures(
    opponent="M2",
    role="previous model, champion",
    wins=118,
    ties=36,
    losses=102,
    win_rate=Estimate(0.531, 0.469, 0.594),
    length_controlled=Estimate(0.512, 0.44, 0.58),
    decided=Estimate(0.536, 0.466, 0.606),
    p_value=0.3107,
    disagreement=0.14,
    position_bias=-0.073,
    length_ratio=1.124,
    jury_agreement=0.66,
    effective_votes=1.74,
)
JUDGE = JudgeFigures("M3", Estimate(0.719, 0.659, 0.774), 0.612, 0.669, 0.41, 0.22, 0.314, 0.262, 0.987, 120, 1540)
VERIFIABLE = VerifiableFigures(
    "M3",
    72,
    101,
    Estimate(0.319, 0.219, 0.429),
    Estimate(0.369, 0.269, 0.479),
    Estimate(0.419, 0.319, 0.519),
    Estimate(0.459, 0.359, 0.549),
    (KindFigures("no comma", 7, 0.43),),
)
FULL = IterationReport(
    project="demo",
    iteration=2,
    model="M3",
    previous="M2",
    champion="M2",
    promoted=False,
    rules=(
        Finding("wins against the champion", False, "win rate 53.1%; the interval must lie above 50.0%"),
        Finding("judges as well", True, "71.9% after 72.4%"),
        Finding("not measured", None, "switched off"),
    ),
    made_at="Made on 3 July.",
    monitors=(Finding("ties", True, "12.0% of the prompts gave no pair"),),
    vital_signs=(
        VitalSign("go in circles", "share", {"M2": Estimate(0.05, 0.02, 0.1), "M3": Estimate(0.3)}, ("M2", "base")),
        VitalSign("nearness", "cosine", {"M2": Estimate(0.5, 0.4, 0.6), "M3": Estimate(0.6)}, ("base",), ("M2",)),
        VitalSign("surprise", "nats", {"M2": Estimate(2.5), "M3": Estimate(2.4, 2.3, 2.5)}),
        VitalSign("tasks solved", "share", {"M2": None, "M3": None}, note="there are no tasks"),
    ),
    dependences=("M1 descends from the same training",),
    arbiters=(Juror("M1, scores", 1.0, Estimate(0.684, 0.62, 0.74), 0.93), Juror("verifiers", 2.0)),
    decision="weighted mean",
    matches=(MATCH,),
    judges=(replace(JUDGE, model="M2"), JUDGE),
    verifiable=(VERIFIABLE,),
    verifiable_source="embedded set",
    tasks=(TaskFigures("arc_easy", "acc", "M3", Estimate(0.44, 0.41, 0.47)),),
    scores=(Distribution("iteration 2", (2.5, 3.0, 3.5, 4.0)), Distribution("iteration 1", (1.0, 2.0))),
    lengths=(Distribution("M3", (812.0, 90.0, 1200.0)), Distribution("M2", (512.0, 80.0, 900.0))),
    replies=Replies(
        "M2",
        (
            Exchange("Why?", (Answer("M3", "Because.", 4.1, True), Answer("M2", "No idea.", 1.2)), "win", 2.9),
            Exchange("How?", (Answer("M3", "So."), Answer("M2", "Like this.")), "loss", -1.0),
            Exchange("When?", (Answer("M3", "Now."), Answer("M2", "Then.")), "tie", 0.0, 0.8, "jurors differ"),
        ),
    ),
    prompts=PromptFigures(120, 214, (RejectedPrompts("not_novel", 51, ("Write a poem.",)),), ("Plan a trip.",)),
    pairs=PairFigures(120, 98, (("ties", 14), ("unscored", 8)), (PairExample("Sum?", "Four.", 4.3, "Five.", 1.9),)),
    lineage=(LineageStep("M2", "9b8a7c6d", "DPO", "champion"), LineageStep("M3", "1a2b3c4d", "DPO")),
    costs=(
        StageCost("candidates", 143.4, Estimate(120, 80, 200), 61210, 60000, 9000, 9500),
        StageCost("judged_scores", 61.0, Estimate(70, 50, 90)),
    ),
    settings="seed: 20\n",
    links=(Link("MLflow run", "http://127.0.0.1:5000/#/runs/1"),),
    files=(FilePath("model", "/srv/srlm/models/M3"),),
    overview="index.html",
)
MINIMAL = IterationReport("demo", 1, "M2", "M1", None, True, (), "Made today.")
SUMMARY = ModelSummary(
    "M2",
    1,
    True,
    "win rate 59.0% against M1",
    "iter_001.html",
    {"SFT baseline": Estimate(0.61, 0.55, 0.67), "champion": Estimate(0.59, 0.53, 0.65)},
    Estimate(0.735, 0.68, 0.79),
    Estimate(0.29, 0.2, 0.38),
    0.976,
    580.4,
    104,
    (),
    937.0,
    Estimate(0.62, 0.55, 0.69),
    Estimate(0.04, 0.01, 0.09),
)
OVERVIEW = OverviewReport(
    "demo",
    "M2",
    (
        ModelSummary("SFT baseline", None, None, judge_accuracy=Estimate(0.611)),
        SUMMARY,
        replace(SUMMARY, model="M3", iteration=2, promoted=False, reason="too long", failed_monitors=("length",)),
    ),
    "Made today.",
    FULL.arbiters,
    "weighted mean",
    FULL.lineage,
    FULL.links,
)
BOTH = pytest.mark.parametrize("html", [iteration_html(FULL), overview_html(OVERVIEW)], ids=["iteration", "overview"])


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
    return Page(html).all("body")[0]["text"]


def with_every_text(value: Any, addition: str) -> Any:
    """The same facts with something added to every text that a person or a model may have written."""
    if isinstance(value, str):
        return value + addition
    if isinstance(value, tuple):
        return tuple(with_every_text(item, addition) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"verdict", "address", "path", "overview", "report", "iteration"}
        changed = {f.name: with_every_text(getattr(value, f.name), addition) for f in fields(value)}
        return replace(value, **{name: item for name, item in changed.items() if name not in kept})
    if isinstance(value, dict):
        return {key + addition: item for key, item in value.items()}
    return value


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


@BOTH
def test_page_is_well_formed_and_can_be_found_the_way_around(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(page.ids()) == len(set(page.ids()))
    targets = [e["attrs"]["href"][1:] for e in page.all("a") if e["attrs"]["href"].startswith("#")]
    assert set(targets) <= set(page.ids())
    levels = [int(e["tag"][1]) for e in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


@BOTH
def test_tables_and_charts_speak_to_screen_readers(html: str) -> None:
    page = Page(html)
    assert all(e["attrs"].get("scope") in ("col", "row") for e in page.all("th"))
    charts = [e for e in page.all("svg") if e["attrs"].get("role") == "img"]
    assert len(charts) >= 4
    assert all(len(e["attrs"]["aria-label"]) > 20 and e["attrs"]["aria-label"] in e["text"] for e in charts)
    boxes = [e for e in page.all("div") if e["attrs"].get("class", "").startswith("scroll")]
    assert boxes
    assert all(e["attrs"]["tabindex"] == "0" and e["attrs"]["aria-label"] for e in boxes)


@BOTH
def test_nothing_is_loaded_and_nothing_runs(html: str) -> None:
    page = Page(html)
    assert not page.all("script", "link", "img", "iframe", "object", "embed", "video", "audio", "base", "form", "image")
    names = {name for e in page.elements for name in e["attrs"]}
    assert not {"src", "srcset", "data", "style", "xlink:href"} & names
    assert not [name for name in names if name.startswith("on")]
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|@font-face|expression", style["text"])
    assert {e["tag"] for e in page.elements if "href" in e["attrs"]} == {"a"}
    (policy,) = [e for e in page.all("meta") if e["attrs"].get("http-equiv") == "Content-Security-Policy"]
    assert policy["attrs"]["content"].startswith("default-src 'none'")


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(("render", "facts"), [(iteration_html, FULL), (overview_html, OVERVIEW)])
def test_what_anyone_wrote_stays_text(render: Any, facts: Any, hostile: str) -> None:
    html = render(with_every_text(facts, hostile))
    assert skeleton(html) == skeleton(render(with_every_text(facts, "harmless")))
    assert html.count("<script") == 0
    assert "Because." + hostile in text_of(html) or facts is OVERVIEW
    assert hostile in text_of(html)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
@settings(max_examples=25)
def test_any_reply_can_be_read_in_the_report(text: str) -> None:
    reply = Replies("M2", (Exchange(text, (Answer("M3", text),), "win", 1.0),))
    page = Page(iteration_html(replace(MINIMAL, replies=reply)))
    shown = [e["text"] for e in page.all("div") if e["attrs"].get("class") == "text"]
    assert shown == ([text.strip()] * 2 if text.strip() else [])


@pytest.mark.parametrize("odd", ["null \x00", "bell \x07", "half \ud83d", "escape \x1b[31m", "c1 \x9b"])
def test_characters_that_html_forbids_are_replaced(odd: str, tmp_path: Path) -> None:
    html = iteration_html(with_every_text(FULL, odd))
    write_report(tmp_path / "report.html", html)
    read = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert odd not in read
    assert odd.split()[0] + " \ufffd" in read


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
def test_only_harmless_addresses_become_links(address: str, linked: bool) -> None:
    assert safe_address(address) == (address if linked else None)
    links = Page(iteration_html(replace(MINIMAL, links=(Link("there", address),)))).all("dd")
    page = Page(iteration_html(replace(MINIMAL, links=(Link("there", address),))))
    assert [e["attrs"]["href"] for e in page.all("a") if not e["attrs"]["href"].startswith("#files")] == (
        [address] if linked else []
    )
    assert links[0]["text"] == address


def test_files_are_linked_by_their_whole_path_only() -> None:
    assert file_address("/srv/my models/M3#1") == "file:///srv/my%20models/M3%231"
    assert file_address("models/M3") is None
    assert file_address("/srv/\udcff") == "file:///srv/%3F"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_without_facts_is_left_out_and_so_is_its_entry(section: str) -> None:
    present = Page(iteration_html(FULL)).ids()
    assert present == list(SECTIONS)
    html = iteration_html(replace(FULL, **SECTIONS[section]))
    assert Page(html).ids() == [name for name in SECTIONS if name != section]
    assert f'href="#{section}"' not in html


def test_reports_can_do_without_everything() -> None:
    assert Page(iteration_html(MINIMAL)).ids() == []
    empty = Page(overview_html(OverviewReport("demo", None, (), "Made today.")))
    assert empty.ids() == []
    assert "There is no champion yet." in empty.all("p")[1]["text"]


def test_figures_of_a_match_are_shown_as_given() -> None:
    head, row = Page(iteration_html(FULL)).rows("matches")[3:]
    assert dict(zip(head, row, strict=True)) == {
        "M3 against": "M2previous model, champion",
        "wins": "118",
        "ties": "36",
        "losses": "102",
        "win rate (95%)": "53.1%46.9% to 59.4%",
        "length-controlled": "51.2%44.0% to 58.0%",
        "decided only": "53.6%46.6% to 60.6%",
        "sign test p": "0.311",
        "length ratio": "1.12",
        "orders disagree": "14.0%",
        "position bias": "-0.07",
        "jurors agree": "66.0%",
        "effective votes": "1.74 of 2",
    }


def test_jury_is_shown_juror_by_juror_and_a_single_arbiter_in_a_sentence() -> None:
    jury = Page(iteration_html(FULL)).rows("matches")
    assert jury[1] == ["M1, scores", "1.00", "68.4%62.0% to 74.0%", "93.0%"]
    assert jury[2] == ["verifiers", "2.00", "–", "–"]
    single = iteration_html(replace(FULL, arbiters=FULL.arbiters[:1]))
    assert "jurors agree" not in single
    assert "Decided by M1, scores. It agrees with 68.4% (62.0% to 74.0%) of the held-out" in text_of(single)


def test_figures_of_a_judge_are_shown_as_given() -> None:
    head, _, row = Page(iteration_html(FULL)).rows("judge")
    assert dict(zip(head, row, strict=True)) == {
        "model": "M3",
        "pairwise (95%)": "71.9%65.9% to 77.4%",
        "longer is better": "61.2%",
        "length-balanced": "66.9%",
        "5-best": "41.0%",
        "exact match": "22.0%",
        "Spearman": "0.31",
        "Kendall": "0.26",
        "readable": "98.7%",
        "prompts": "120",
        "pairs": "1,540",
    }


def test_checkable_instructions_are_compared_with_those_of_earlier_models() -> None:
    baseline = replace(VERIFIABLE, model="SFT", by_kind=(), ahead=Estimate(-0.149, -0.256, -0.048))
    report = replace(FULL, verifiable=(baseline, VERIFIABLE))
    rows = Page(iteration_html(report)).rows("verifiable")
    assert [row[-1] for row in rows[:3]] == ["M3 against it", "-14.9% (-25.6% to -4.8%)", ""]
    assert "| -14.9% (-25.6% to -4.8%)" in iteration_summary(report)


def test_checkable_instructions_are_shown_by_model_and_by_kind() -> None:
    rows = Page(iteration_html(FULL)).rows("verifiable")
    assert rows[1][:5] == [
        "M3",
        "31.9%21.9% to 42.9%",
        "36.9%26.9% to 47.9%",
        "41.9%31.9% to 51.9%",
        "45.9%35.9% to 54.9%",
    ]
    assert rows[2:] == [["kind", "instructions", "M3"], ["no comma", "7", "43.0%"]]


def test_vital_signs_stand_beside_those_of_other_models_with_what_is_proved() -> None:
    head, *rows = Page(iteration_html(FULL)).rows("vital")
    assert head == ["measure", "M2", "M3", "M3, with 95 % confidence"]
    assert rows == [
        ["go in circles", "5.0%2.0% to 10.0%", "30.0%", "worse than M2, base"],
        ["nearnesscosine, more is better", "0.500.40 to 0.60", "0.60", "worse than base; better than M2"],
        ["surprisenats per token, less is better", "2.50", "2.402.30 to 2.50", "no difference proved"],
        ["tasks solved", "–", "–", "not measured: there are no tasks"],
    ]


def test_matches_before_an_arbiter_of_the_loop_are_called_its_own_opinion() -> None:
    warning = "The loop's own opinion. The arbiter is not independent: M1 descends from the same training."
    assert warning in text_of(iteration_html(FULL))
    assert "own opinion" not in text_of(iteration_html(replace(FULL, dependences=())))


def test_what_is_only_shown_is_not_said_to_be_unmeasured() -> None:
    shown = Finding("the loop's own opinion", None, "win rate 60.0%: shown, and decides nothing")
    report = replace(FULL, rules=(shown,), monitors=(), vital_signs=())
    assert "not measured" not in iteration_summary(report)
    assert "not measured" not in " ".join(Page(iteration_html(report)).rows("rules")[1])


def test_costs_are_added_up_and_compared_with_the_plan() -> None:
    rows = Page(iteration_html(FULL)).rows("costs")
    assert [row[:4] for row in rows] == [
        ["stage", "time", "planned", "actual / planned"],
        ["candidates", "2 min 23 s", "2 min 00 s (1 min 20 s to 3 min 20 s)", "1.20"],
        ["judged_scores", "1 min 01 s", "1 min 10 s (50.0 s to 1 min 30 s)", "0.87"],
        ["all", "3 min 24 s", "3 min 10 s", "1.08"],
    ]
    assert rows[1][4:] == ["61,210", "60,000", "9,000", "9,500"]
    assert rows[2][4:] == ["–"] * 4
    unplanned = replace(FULL, costs=(StageCost("candidates", 143.4), StageCost("judged_scores", None)))
    assert Page(iteration_html(unplanned)).rows("costs") == [
        ["stage", "time"], ["candidates", "2 min 23 s"], ["judged_scores", "–"], ["all", "2 min 23 s"]
    ]  # fmt: skip


def test_rejected_prompts_are_shown_with_reason_share_and_examples() -> None:
    rows = Page(iteration_html(FULL)).rows("prompts")
    assert rows[1] == ["not novel", "51", "23.8%", "Write a poem."]


def test_rules_say_passed_failed_or_not_judged_in_words() -> None:
    rows = Page(iteration_html(FULL)).rows("rules")[1:]
    assert [row[1] for row in rows] == ["✗ failed", "✓ passed", "– not judged"]


def test_figures_that_are_no_numbers_are_shown_as_not_measured() -> None:
    nan = float("nan")
    facts = replace(
        FULL,
        matches=(replace(MATCH, win_rate=Estimate(nan, nan, nan), length_controlled=None, p_value=nan),),
        judges=(JudgeFigures("M3", Estimate(nan), nan, nan, None, None, None, None, 0.0, 0, 0),),
        scores=(Distribution("judge", (nan, 3.0)), Distribution("empty", ())),
        lengths=(Distribution("M3", (nan,)),),
        costs=(StageCost("candidates", nan),),
    )
    html = iteration_html(facts)
    assert "nan" not in html
    assert Page(html).rows("matches")[-1][4:6] == ["–", "–"]
    assert Page(html).rows("distributions")[-1] == ["judge", "1", "3.00", "3.00", "3.00", "3.00"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {},
            "M3 is not promoted, M2 remains champion: win rate 53.1%; the interval must lie above 50.0%.",
        ),
        (
            {"rules": (*FULL.rules, Finding("length", False, "1.4 times."))},
            "M3 is not promoted, M2 remains champion: win rate 53.1%; the interval must lie above 50.0% "
            "(and 1 more rule failed).",
        ),
        (
            {"promoted": True, "rules": (Finding("off", None, "off"), Finding("wins", True, "win rate 61.0%."))},
            "M3 is promoted to champion, in place of M2: win rate 61.0%.",
        ),
        ({"promoted": True, "rules": (), "champion": None}, "M3 is promoted to champion: no rule is set."),
    ],
)
def test_verdict_is_one_sentence_with_the_decisive_reason(changes: dict[str, Any], verdict: str) -> None:
    facts = replace(FULL, **changes)
    assert iteration_verdict(facts) == verdict
    page = Page(iteration_html(facts))
    first, second = page.all("p")[:2]
    assert "iteration 2" in first["text"]
    assert second["text"] == verdict
    assert page.all("h1")[0]["text"] == ("M3 promoted to champion" if facts.promoted else "M3 not promoted")


def test_overview_names_the_champion_and_what_became_of_the_newest_model() -> None:
    assert overview_verdict(OVERVIEW) == (
        "M2, made by iteration 1, is the champion: win rate 59.0% against M1. Of 2 iterations 1 led to a promotion; "
        "the newest model, M3, was not promoted."
    )
    page = Page(overview_html(OVERVIEW))
    assert page.rows("verdicts")[1:] == [
        ["M2", "✓ promoted", "win rate 59.0% against M1"],
        ["M3", "✗ not promoted", "too long; failed monitors: length"],
    ]
    assert {e["attrs"]["href"] for e in page.all("a")} >= {"iter_001.html"}


def test_overview_shows_every_figure_and_draws_what_iterations_made() -> None:
    html = overview_html(OVERVIEW)
    head, baseline, model, _ = Page(html).rows("figures")
    assert dict(zip(head, model, strict=True)) == {
        "model": "M2 champion",
        "iteration": "1",
        "win rate against the SFT baseline": "61.0%55.0% to 67.0%",
        "win rate against the champion": "59.0%53.0% to 65.0%",
        "judge accuracy": "73.5%68.0% to 79.0%",
        "checkable instructions": "29.0%20.0% to 38.0%",
        "closed tasks": "62.0%55.0% to 69.0%",
        "go in circles": "4.0%1.0% to 9.0%",
        "readable": "97.6%",
        "mean length": "580",
        "pairs": "104",
        "time": "15 min 37 s",
    }
    assert baseline == ["SFT baseline", "–", "–", "–", "61.1%", *["–"] * 7]
    charts = [e["attrs"]["aria-label"] for e in Page(html).all("svg") if e["attrs"].get("role") == "img"]
    assert len(charts) == 8
    assert "against the champion, iteration 1: 59.0% (53.0% to 65.0%)" in charts[0]
    assert all("baseline, iteration" not in chart for chart in charts[1:])


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), max_size=30),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_chosen_exchanges_are_the_extreme_ones_and_shown_once(figures: list[tuple[float, float]], each: int) -> None:
    exchanges = [
        Exchange(str(n), (Answer("M3", "x"),), "tie", advantage, dispute)
        for n, (advantage, dispute) in enumerate(figures)
    ]
    groups = {group.title: group.exchanges for group in choose_exchanges(exchanges, each)}
    best, worst = groups.get("Best", ()), groups.get("Worst", ())
    disputed = groups.get("Most disputed", ())
    shown = [e.prompt for group in groups.values() for e in group]
    assert len(shown) == len(set(shown))
    assert [e.advantage for e in best] == sorted((a for a, _ in figures if a > 0), reverse=True)[:each]
    assert [e.advantage for e in worst] == sorted(a for a, _ in figures if a < 0)[:each]
    left = [e.dispute for e in exchanges if e not in (*best, *worst) and e.dispute > 0]
    assert [e.dispute for e in disputed] == sorted(left, reverse=True)[:each]


@given(st.text(max_size=200) | st.text("ab \n", min_size=300, max_size=5000))
@settings(max_examples=80)
def test_folding_loses_nothing_but_what_it_counts(text: str) -> None:
    part = fold(text)
    visible = part.head + part.rest
    assert "".join(visible.split()) == "".join(text.strip()[: len(text.strip()) - part.left_out].split())
    assert len(part.head) <= 540
    assert bool(part.rest) == (len(text.strip()) > 540 and bool(part.rest.strip()))
    assert part.left_out == max(0, len(text.strip()) - 3000)


def test_long_replies_are_folded_at_the_end_of_a_line_or_word() -> None:
    text = "word " * 55 + "\n" + "more " * 100
    part = fold(text)
    assert part.head.endswith("word")
    assert part.rest.startswith("more")
    page = Page(
        iteration_html(replace(MINIMAL, replies=Replies("M2", (Exchange("q", (Answer("M3", text),), "win", 1.0),))))
    )
    folded = [e for e in page.all("details") if e["attrs"].get("class") == "fold"]
    assert [" ".join(e["text"].split())[:20] for e in folded] == ["499 more characters "]


def test_report_on_250_long_replies_stays_below_a_megabyte() -> None:
    reply = "Long & <winded> reply.\n" * 300
    exchanges = tuple(
        Exchange(f"{n}?", tuple(Answer(m, reply) for m in ("M3", "M2", "SFT baseline")), "win", 125.5 - n, float(n))
        for n in range(250)
    )
    size = len(iteration_html(replace(FULL, replies=Replies("M2", exchanges))).encode())
    assert 100_000 < size < 1_000_000


def test_dots_stand_in_the_order_of_their_figures_within_the_chart() -> None:
    rows = {"a": {"x": Estimate(0.0, 0.0, 0.2)}, "b": {"x": Estimate(1.0), "y": Estimate(0.5, 0.4, 0.6)}}
    chart = dot_chart("t", rows, {"even": 0.5, "unknown": float("nan")})
    assert chart is not None
    (low,), (high, even) = (row.dots for row in chart.rows)
    assert 0 < low.x < even.x == chart.references[0].at < high.x < 100
    assert (low.series, high.series, even.series) == (0, 0, 1)
    assert even.low is not None and even.high is not None and even.low < even.x < even.high
    assert high.low is None
    assert low.y < high.y < even.y < chart.height
    assert low.y + 6 < chart.rows[1].y - 13, "a label must not cover the dots above it"
    assert dot_chart("t", {"a": {"x": None}}, {}) is None


@given(st.lists(st.lists(st.floats(0, 1e5), min_size=1, max_size=40), min_size=1, max_size=3))
@settings(max_examples=60)
def test_every_value_is_in_exactly_one_bar(values: list[list[float]]) -> None:
    chart = histogram("t", [Distribution(str(n), tuple(v)) for n, v in enumerate(values)])
    assert chart is not None
    tallest = max(bar.height for row in chart.rows for bar in row.bars)
    for row, described, given_values in zip(chart.rows, chart.described, values, strict=True):
        shares = [float(bar.text.rsplit(": ", 1)[1].rstrip("%")) / 100 for bar in row.bars]
        assert sum(shares) == pytest.approx(1, abs=0.0006 * len(shares))
        assert all(bar.x >= 0 and bar.x + bar.width <= 100 for bar in row.bars)
        assert all(bar.height <= tallest and bar.y + bar.height == pytest.approx(row.base) for bar in row.bars)
        assert described.n == len(given_values)
        assert min(given_values) <= described.median <= max(given_values)


def test_scores_keep_their_whole_scale_even_if_they_are_all_alike() -> None:
    chart = histogram("t", [Distribution("judge", (2.6,) * 50)], (0.0, 5.0))
    assert chart is not None
    assert [tick.text for tick in chart.ticks] == ["0", "1", "2", "3", "4", "5"]
    (bar,) = chart.rows[0].bars
    assert bar.text == "2.5 to 2.75: 100.0%"
    assert histogram("t", [Distribution("judge", ())]) is None


def test_curve_has_a_gap_where_an_iteration_has_no_figure() -> None:
    figures = {1: Estimate(0.5), 2: Estimate(0.6, 0.5, 0.7), 3: None, 4: Estimate(0.4)}
    chart = line_chart("t", {"a": figures, "b": dict.fromkeys(figures)}, lambda v: f"{v:.1%}", reference=0.5)
    assert chart is not None
    (curve,) = chart.curves
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3", "4"]
    assert len(curve.points) == 3
    assert len(curve.segments) == 1
    one, two, four = curve.points
    assert one.x < two.x < four.x
    assert two.y < one.y == chart.reference < four.y
    assert two.low is not None and two.high is not None and two.high < two.y < two.low
    assert all(0 <= y <= chart.bottom for y in (two.low, two.high, four.y))
    assert line_chart("t", {"a": {1: None}}, str) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 7.0])
def test_curve_through_one_point_can_be_drawn(value: float) -> None:
    chart = line_chart("t", {"a": {1: Estimate(value)}}, str)
    assert chart is not None
    assert len(chart.y_ticks) >= 2
    assert chart.curves[0].points[0].x == 50


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


def test_colours_are_the_same_names_in_light_and_dark() -> None:
    css = (PACKAGE / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = (
        set(re.findall(r"(--[a-z0-9-]+):", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    assert light == dark
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", css)) == light
    used = set(re.findall(r"#[0-9a-f]{6}", re.sub(r":root \{.*?\}", "", css, flags=re.S)))
    assert not used, "a colour outside the two schemes would not change with them"


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
    easy, maths, other = task_figures(recorded, "M2")
    assert (easy.task, easy.metric, easy.model) == ("arc_easy", "acc", "M2")
    assert (easy.score.low, easy.score.high) == pytest.approx((0.304, 0.696))
    assert (maths.task, maths.metric, maths.score.value) == ("gsm8k", "exact_match/strict", 0.2)
    assert maths.score.low == pytest.approx(0.102)
    assert other.score.low != other.score.low, "without an error there is no interval"


def checkpoint(name: str, digest: str, parent: str) -> Checkpoint:
    return Checkpoint(Path(name), name, digest, parent)


def test_the_lineage_leads_back_from_the_newest_model_past_those_that_it_does_not_come_from() -> None:
    models = [checkpoint("sft_baseline", "s", "base"), checkpoint("M1", "a", "s"), checkpoint("M2", "b", "a")]
    retried = checkpoint("M3", "c", "a")
    assert [m.name for m in ancestry([*models, retried])] == ["sft_baseline", "M1", "M3"]


def test_a_training_that_changed_nothing_does_not_lead_in_circles() -> None:
    models = [checkpoint("M1", "a", "s"), checkpoint("M2", "a", "a"), checkpoint("M3", "a", "a")]
    assert [m.name for m in ancestry(models)] == ["M1", "M2", "M3"]
