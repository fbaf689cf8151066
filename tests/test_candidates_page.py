"""The page with candidates and pairs: who marks what, and that nothing that was written becomes markup."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import iterations_of, make_project
from test_reading_page import HOSTILE, Page

from srlm_pipeline.config import PairSettings
from srlm_pipeline.reporting.candidates import Browsed, browse, candidates_html
from srlm_pipeline.reporting.framing import framed, with_pages
from srlm_pipeline.reporting.reading import page_digest
from srlm_pipeline.tables import GENERATED_PROMPTS, JUDGED_SCORES, PREFERENCE_PAIRS, write_table

PAIRS = PairSettings(unfit="scored")
NO_PAIRS = pd.DataFrame(columns=list(PREFERENCE_PAIRS.columns))


def scored(*replies: dict[str, Any]) -> pd.DataFrame:
    """Replies to one prompt."""
    told = {
        "prompt_id": "p0", "prompt": "Sum?", "completion": "A text.", "n_tokens": 2, "finish_reason": "stop",
        "signs": "", "judge": "M1", "score": 3.0, "n_valid": 1, "n_invalid": 0, "spread": None, "disagreement": None,
        "passed": None, "opinion": None, "raw": "[0.2, 0.8]",
    }  # fmt: skip
    table = pd.DataFrame([{**told, "sample": n, **reply} for n, reply in enumerate(replies)])
    numbers = ("score", "spread", "disagreement", "passed", "opinion")
    return table.assign(token_ids=None)[list(JUDGED_SCORES.columns)].astype(dict.fromkeys(numbers, float))


def made_by(first: float | None, second: float | None) -> str:
    said = [("M1@1", first, json.dumps(["Well said.\nScore: 4"])), ("verifiers", second, "[]")]
    return json.dumps([{"judge": who, "weight": 1, "score": score, "raw": raw} for who, score, raw in said])


def of_two_judges() -> Browsed:
    """Three replies on which the members of a panel disagree; the panel itself made no pair."""
    table = scored(
        {"completion": "One.", "score": 2.5, "raw": made_by(4.0, 1.0)},
        {"completion": "Two.", "score": 2.5, "raw": made_by(1.0, 4.0)},
        {"completion": "Three.", "score": 2.0, "raw": made_by(2.0, None), "signs": "loops,cut_off"},
    )
    return browse(pd.DataFrame({"prompt_id": ["p0"], "operator": ["constrain"]}), table, NO_PAIRS, PAIRS)


def test_each_judge_of_a_panel_marks_what_it_would_have_chosen() -> None:
    browsed = of_two_judges()
    assert browsed.judges[1:] == ("M1@1", "verifiers")
    (prompt,) = browsed.prompts
    assert [c.marks for c in prompt.candidates] == [
        ("", "chosen", "rejected"),
        ("", "rejected", "chosen"),
        ("", "", ""),
    ]
    assert [c.scores[1:] for c in prompt.candidates] == [(4.0, 1.0), (1.0, 4.0), (2.0, None)]
    assert prompt.margins == (None, 3.0, 3.0)
    assert prompt.disagree
    assert prompt.kind == "constrain"
    assert prompt.candidates[0].said[1:] == ("Well said.\nScore: 4", "")
    assert [sign.name for sign in prompt.candidates[2].reply.badges] == ["loops", "cut_off"]


def test_the_pairs_that_were_made_are_marked_for_the_judge_that_counts(tmp_path: Path) -> None:
    it = iterations_of(make_project(tmp_path / "demo"))[1]
    page = Page(candidates_html(it, "iter_002.html"))
    articles = page.all("article")
    assert [article.attrs["data-margins"] for article in articles] == ["2.4", "", ""]
    marks = [section.attrs["data-marks"] for section in articles[0].all("section")]
    assert marks == ["chosen", "rejected"]
    assert "no score" in articles[2].text, "what could not be read is not 0"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("[0.1, 0.9]", ""),
        (json.dumps(["a. Score: 3", "b. Score: 4"]), "a. Score: 3\n\nb. Score: 4"),
        (json.dumps({"rationale": "because", "probabilities": [1]}), "because"),
        ("[" * 100_000, "[" * 600),
        ("", ""),
        ("[1, {}]", ""),
    ],
)
def test_what_the_judge_wrote_is_shown_and_its_numbers_are_not(raw: str, said: str) -> None:
    (prompt,) = browse(pd.DataFrame({"prompt_id": [], "operator": []}), scored({"raw": raw}), NO_PAIRS, PAIRS).prompts
    assert prompt.candidates[0].said == (said,)


@given(text=st.sampled_from(HOSTILE) | st.text(max_size=60))
@settings(max_examples=12)
def test_no_reply_prompt_or_judgement_becomes_markup(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = make_project(tmp_path_factory.mktemp("demo") / "demo")
    it = iterations_of(store)[1]

    def page(told: str) -> Page:
        replies = [
            {"completion": told + "x", "prompt": told + "y", "raw": json.dumps([told + "z"]), "judge": told + "j"}
        ]
        write_table(scored(*replies), JUDGED_SCORES, store.table_path("judged_scores", 2))
        prompt = ("p0", told + "y", "few_shot", 0, "", "", 0.1, 3)
        generated = pd.DataFrame([prompt], columns=list(GENERATED_PROMPTS.columns))
        write_table(generated, GENERATED_PROMPTS, store.table_path("generated_prompts", 2))
        return Page(candidates_html(it, "iter_002.html"))

    def skeleton(page: Page) -> list[tuple[str, list[str]]]:
        return [(e.tag, sorted(e.attrs)) for e in page.inside]

    clean = text.encode("utf-8", "ignore").decode()
    assert skeleton(page(clean)) == skeleton(page("plain"))


def test_the_page_loads_nothing_and_its_only_script_is_named_by_its_digest(tmp_path: Path) -> None:
    it = replace(iterations_of(make_project(tmp_path / "demo"))[1])
    html = candidates_html(it, "iter_002.html")
    policy = next(m.attrs["content"] or "" for m in Page(html).all("meta") if "http-equiv" in m.attrs)
    assert re.match(r"default-src 'none'; script-src 'sha256-[\w+/=]+'; style-src 'sha256-[\w+/=]+';", policy)
    assert not re.search(r"\b(src|href)=\"(https?:)?//", html)


def test_a_report_in_a_frame_carries_the_pages_that_it_links_to(tmp_path: Path) -> None:
    it = iterations_of(make_project(tmp_path / "demo"))[1]
    pages = {
        "iter_002.html": '<html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><body>'
        '<a href="iter_002_candidates.html#p1">all</a> <a href="iter_001.html">M2</a></body></html>',
        "iter_002_candidates.html": candidates_html(it, "iter_002.html"),
    }
    html = with_pages("iter_002.html", pages)
    page = Page(html)
    assert [a.attrs["href"] for a in page.all("a")] == ["iter_002_candidates.html#p1"], "the other one says where"
    data, script = page.all("script")
    carried = json.loads(re.search(r'id="pages"[^>]*>(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert data.attrs["data-own"] == "iter_002.html"
    assert set(carried) == {"iter_002_candidates.html"}
    # Its own script and that of the page that it carries may run, and no other.
    policy = next(m.attrs["content"] or "" for m in page.all("meta") if "http-equiv" in m.attrs)
    scripts = [html.rpartition("<script>")[2].partition("</script>")[0]]
    scripts += re.findall(r"<script>(.*?)</script>", carried["iter_002_candidates.html"], re.DOTALL)
    assert re.findall(r"sha256-[\w+/=]+", policy) == [page_digest(text) for text in scripts]
    assert script.attrs == {}


def test_in_a_frame_links_between_pages_say_where_to_look_and_others_stay() -> None:
    page = (
        '<p><a href="iter_001_replies.html#p3" aria-label="x">Read in full</a> <a href="iter_002.html">M3</a> '
        '<a href="#rules">Rules</a> <a href="http://127.0.0.1:5000/#/runs/1">run</a></p>'
    )
    told = framed(page, {"iter_001_replies.html": "replies.html"})
    assert 'Read in full <span class="soft small">(replies.html, in the list of artifacts)</span>' in told
    assert 'M3 <span class="soft small">(with that iteration\'s report)</span>' in told
    assert '<a href="#rules">' in told and '<a href="http://127.0.0.1:5000/#/runs/1">' in told
