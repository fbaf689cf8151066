import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.vital_signs import SIGNS, Mark
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.reporting.pages import environment
from srlm_pipeline.reporting.reading import SIGN_WORDS, Piece, Prompt, Reading, Reply, read_replies, telling
from srlm_pipeline.reporting.reading import reading_html as html_of
from srlm_pipeline.tables import ASSESSED_REPLIES

TEMPLATES = Path(__file__).parent.parent / "srlm_pipeline" / "reporting" / "templates"
VOID = {"meta", "input", "br"}
SYSTEM = "You are a patient gardener who answers in rhymes about beetroot and rain"
LOOP = "the same old song " * 12
ROLES = {"base": "base model", "SFT baseline": "SFT baseline", "M1": "previous model, champion", "M2": "new"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></section></article></main></script></style></body></html>",
    "<!-- <style> ]]> <svg onload=alert(1)>",
    "{{ 7 * 7 }} {% for x in y %} {# hidden #}",
    "&lt;b&gt; &amp; &#60;script&#62;",
]


class Element:
    def __init__(self, tag: str, attrs: dict[str, str | None]) -> None:
        self.tag, self.attrs, self.text = tag, attrs, ""
        self.inside: list[Element] = []

    def all(self, tag: str, **wanted: str) -> list["Element"]:
        """Elements inside by tag, and by attributes: of a class one name is enough."""
        return [
            e
            for e in self.inside
            if e.tag == tag
            and all(v in (e.attrs.get(k.strip("_").replace("_", "-")) or "").split() for k, v in wanted.items())
        ]


class Page(HTMLParser, Element):
    """The page's elements; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)
        Element.__init__(self, "page", {})
        self.open: list[Element] = [self]
        self.feed(html)
        self.close()
        assert self.open == [self]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute is given twice"
        element = Element(tag, dict(attrs))
        for outer in self.open:
            outer.inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def assessed(model: str, replies: Sequence[str], signs: Sequence[str] = (), **columns: Sequence[Any]) -> Assessment:
    """Replies to the prompts 1, 2, ...; `signs` are of each reply, separated by blanks, `cut_off` among them."""
    n = len(replies)
    given = [set(text.split()) for text in [*signs, *[""] * n][:n]]
    assert set().union(*given) <= {*SIGNS, "cut_off"}
    frame = pd.DataFrame(
        {
            "model": model,
            "part": "evaluation",
            "prompt_id": [f"e{i}" for i in range(1, n + 1)],
            "kind": ["writing" if i % 2 else "exact_format" for i in range(1, n + 1)],
            "prompt": [f"Prompt number {i}: why do cats purr at night?" for i in range(1, n + 1)],
            "reply": list(replies),
            "n_tokens": [len(text.split()) for text in replies],
            "finish_reason": ["length" if "cut_off" in found else "stop" for found in given],
            **{sign: [sign in found for found in given] for sign in SIGNS},
            "nearness": None,
            "right": None,
        }
        | {name: list(values) for name, values in columns.items()}
    )
    empty = pd.DataFrame()
    return Assessment(model, "digest", ASSESSED_REPLIES.validate(frame), empty, empty, empty)


def page_of(
    *models: Assessment,
    references: dict[str, str] | None = None,
    roles: dict[str, str] | None = None,
    champion: str | None = None,
) -> Reading:
    """The champion is the model before the last unless it is said."""
    before = models[-2].model if len(models) > 1 else None
    shown = {m.model: m for m in models}
    return read_replies(shown, ROLES if roles is None else roles, champion or before, references or {}, SYSTEM)


def reading_html(reading: Reading, title: str = "Iteration 1", back: str = "iter_001.html") -> str:
    return html_of(reading, "demo", title, "Made today.", back)


FOUR = (
    assessed("base", ["", LOOP, "a b c"], ["empty", "loops cut_off", ""]),
    assessed("SFT baseline", ["Because.", "No.", "a b c"]),
    assessed("M1", ["They like it.", "I'm sorry, but I cannot help.", "a b c"], ["", "refuses", ""]),
    assessed("M2", ["They like it.", LOOP, "a b d"], ["", "loops cut_off", ""]),
)
PAGE = page_of(*FOUR, references={"e1": "A good reply.", "e3": " "})


def skeleton(html: str) -> list[tuple[str, list[str]]]:
    return [(e.tag, sorted(e.attrs)) for e in Page(html).inside if e.tag != "mark"]


def exact(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    return [(piece.text, " ".join(sign.name for sign in piece.signs)) for piece in pieces]


def test_replies_stand_side_by_side_in_the_order_of_the_models() -> None:
    assert PAGE.roles == ROLES
    assert list(PAGE.compared) == ["M1", "M2"]
    articles = Page(reading_html(PAGE)).all("article")
    assert [a.attrs["id"] for a in articles] == ["p1", "p2", "p3"]
    for article in articles:
        sides = article.all("section")
        assert [s.attrs["aria-label"] for s in sides] == list(ROLES)
        assert [s.all("strong")[0].text for s in sides] == list(ROLES)
    texts = [s.all("div", class_="text") for s in articles[1].all("section")]
    assert [t[0].text for t in texts] == [LOOP.strip(), "No.", "I'm sorry, but I cannot help.", LOOP.strip()]


def test_every_sign_is_a_badge_and_is_counted() -> None:
    page = Page(reading_html(PAGE))
    sides = [a.all("section") for a in page.all("article")]
    assert [b.text for b in sides[1][0].all("li", class_="badge")] == ["loops", "cut off"]
    assert [b.text for b in sides[0][0].all("li", class_="badge")] == ["empty"]
    assert "(empty)" in sides[0][0].text
    assert "ended by the token limit" in sides[1][3].text
    assert sides[1][3].attrs["data-signs"] == "loops cut_off"
    rows = [[c.text.strip() for c in row.inside if c.tag in ("th", "td")] for row in page.all("tr")]
    head = [
        "model",
        "replies",
        "flagged",
        "loops",
        "echoes",
        "recites",
        "empty",
        "refuses",
        "other language",
        "cut off",
    ]
    assert rows[0] == head
    assert [row[1:] for row in rows[1:]] == [
        ["3", "2", "1", "0", "0", "1", "0", "0", "1"],
        ["3", "0", "0", "0", "0", "0", "0", "0", "0"],
        ["3", "1", "0", "0", "0", "0", "1", "0", "0"],
        ["3", "1", "1", "0", "0", "0", "0", "0", "1"],
    ]


def test_there_are_words_for_every_sign() -> None:
    assert {sign.name for sign in SIGN_WORDS} == {*SIGNS, "cut_off"}
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    assert all(f".{sign.name} {{" in css for sign in SIGN_WORDS)


def test_only_places_of_signs_that_the_reply_is_flagged_with_are_marked() -> None:
    text = "Why do cats purr at night? " + LOOP
    looping = assessed("M2", [text, text], ["loops", ""])
    flagged, unflagged = page_of(looping).prompts
    assert {mark.sign for mark in flagged.replies["M2"].marks} == {"loops"}
    assert unflagged.replies["M2"].marks == ()
    (refusing,) = page_of(assessed("M2", ["I'm sorry, but no."])).prompts
    assert [mark.sign for mark in refusing.replies["M2"].marks] == ["refuses"]


def test_what_concerns_the_whole_reply_is_shown_beside_it() -> None:
    (prompt,) = page_of(assessed("M2", ["Guten Tag."], ["recites other_language cut_off"])).prompts
    assert [sign.name for sign in prompt.replies["M2"].elsewhere] == ["recites", "other_language"]
    (article,) = Page(reading_html(page_of(assessed("M2", ["Guten Tag."], ["other_language"])))).all("article")
    assert article.all("div", class_="other_language")[0].text == "Guten Tag."


@pytest.mark.parametrize(
    ("marks", "pieces"),
    [
        ([], [("abcdefgh", "")]),
        ([(0, 8, "loops")], [("abcdefgh", "loops")]),
        ([(0, 2, "loops"), (6, 8, "echoes")], [("ab", "loops"), ("cdef", ""), ("gh", "echoes")]),
        ([(2, 4, "loops"), (4, 6, "loops")], [("ab", ""), ("cd", "loops"), ("ef", "loops"), ("gh", "")]),
        (
            [(1, 5, "echoes"), (3, 7, "loops")],
            [("a", ""), ("bc", "echoes"), ("de", "loops echoes"), ("fg", "loops"), ("h", "")],
        ),
        ([(0, 8, "loops"), (3, 4, "recites")], [("abc", "loops"), ("d", "loops recites"), ("efgh", "loops")]),
        ([(6, 99, "loops")], [("abcdef", ""), ("gh", "loops")]),
    ],
)
def test_a_text_is_cut_where_marks_begin_and_end(marks: Any, pieces: Any) -> None:
    reply = Reply("abcdefgh", 1, ("loops",), tuple(Mark(*mark) for mark in marks))
    assert exact(reply.pieces) == pieces
    shifted = replace(reply, text=" \n" + reply.text + "\n", marks=tuple(Mark(a + 2, b + 2, s) for a, b, s in marks))
    assert exact(shifted.pieces) == pieces


@given(st.text(max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60), st.sampled_from(SIGNS))))
@settings(max_examples=60)
def test_marks_neither_add_nor_lose_a_character(text: str, spans: list[tuple[int, int, Any]]) -> None:
    reply = Reply(text, 1, (), tuple(Mark(a, a + n, sign) for a, n, sign in spans))
    assert "".join(piece.text for piece in reply.pieces) == text.strip()
    assert all(piece.text for piece in reply.pieces)
    assert "".join(piece.text for piece in reply.excerpt) == text.strip()


def test_a_long_blank_in_a_reply_can_be_cut() -> None:
    assert Reply("begins" + "\n" * 2000 + "ends").excerpt[0].text.startswith("begins\n")


def test_an_excerpt_is_short_and_shows_the_first_mark() -> None:
    def shown(reply: Reply) -> str:
        return "".join(piece.text for piece in reply.excerpt)

    words = " ".join(f"word{i}" for i in range(300))
    begins = shown(Reply(words, 1))
    assert begins.startswith("word0 ")
    assert begins.endswith(" \u2026")
    assert 300 < len(begins) <= 402
    middle = words.index("word150")
    later = Reply(words, 1, ("loops",), (Mark(middle, middle + 7, "loops"),))
    assert [p.text for p in later.excerpt if p.signs] == ["word150"]
    assert shown(later).startswith("\u2026 word")
    assert shown(later).endswith(" \u2026")
    end = len(words)
    last = Reply(words, 1, ("loops",), (Mark(end - 7, end, "loops"),))
    assert shown(last).endswith("word299")
    assert len(shown(Reply("x" * 5000, 1))) == 402
    assert shown(Reply("x" * 430, 1)) == "x" * 430


def test_change_is_measured_in_words_against_the_champion() -> None:
    assert [prompt.change for prompt in PAGE.prompts] == pytest.approx([0.0, 1.0, 1 / 3])
    articles = Page(reading_html(PAGE)).all("article")
    assert "same words as M1" in articles[0].text
    assert "33% changed from M1" in articles[2].text


def test_a_reference_is_folded_and_left_out_where_there_is_none() -> None:
    assert [prompt.reference for prompt in PAGE.prompts] == ["A good reply.", None, None]
    first, second, third = Page(reading_html(PAGE)).all("article")
    (folded,) = first.all("details")
    assert "A good reply." in folded.text
    assert "open" not in folded.attrs
    assert not second.all("details") + third.all("details")


def test_one_model_alone_is_compared_with_nothing() -> None:
    page = page_of(FOUR[3])
    assert page.compared == {"M2": "new"}
    html = Page(reading_html(page))
    assert [len(a.all("section")) for a in html.all("article")] == [1, 1, 1]
    assert "changed" not in html.all("main")[0].text
    assert not html.all("input", id="changed")
    assert [prompt.number for prompt in telling(page)] == [2, 1, 3]


def test_a_model_that_was_not_asked_leaves_a_gap() -> None:
    asked_less = assessed("M1", ["They like it."])
    page = page_of(asked_less, FOUR[3])
    assert page.prompts[1].change == 0
    assert "(not asked)" in Page(reading_html(page)).all("article")[1].all("section")[0].text
    assert dict(page.counts["M1"])["replies"] == 1
    assert telling(page)[0].number == 2


def test_pages_without_flags_and_without_prompts() -> None:
    html = Page(reading_html(page_of(FOUR[1])))
    assert not html.all("mark")
    assert not html.all("li", class_="badge")
    nothing = Reading({"M2": ""}, None, ())
    assert Page(reading_html(nothing)).all("article") == []
    assert telling(nothing) == ()


def test_replies_to_other_sets_of_prompts_are_not_shown() -> None:
    mixed = assessed("M2", ["a", "b", "c"], part=["closed", "evaluation", "verifiable"])
    assert [(p.number, p.id) for p in page_of(mixed).prompts] == [(1, "e2")]


def prompt_with(number: int, change: float, before: str = "", after: str = "") -> Prompt:
    replies = {"M1": Reply("x", 1, tuple(before.split())), "M2": Reply("y", 1, tuple(after.split()))}
    return Prompt(number, f"e{number}", "writing", "Why?", None, replies, change)


def test_telling_shows_newly_flagged_replies_of_different_signs_first() -> None:
    prompts = (
        prompt_with(1, 1.0),
        prompt_with(2, 0.2, after="loops"),
        prompt_with(3, 0.9, after="loops cut_off"),
        prompt_with(4, 0.8, before="loops", after="loops"),
        prompt_with(5, 0.1, after="refuses"),
        prompt_with(6, 0.5, after="cut_off"),
        prompt_with(7, 1.0),
    )
    page = Reading({"M1": "champion", "M2": "new"}, "M1", prompts)
    assert [p.number for p in telling(page)] == [3, 5, 2]
    assert [p.number for p in telling(page, 5)] == [3, 5, 2, 6, 1]
    assert [p.number for p in telling(page, 99)] == [3, 5, 2, 6, 1, 7, 4]
    assert telling(page, 0) == ()
    backwards = replace(page, prompts=prompts[::-1])
    assert telling(backwards, 99) == telling(page, 99)


def test_telling_can_be_shown_in_a_report() -> None:
    template = environment().from_string(
        '{% from "telling.html" import telling_prompts %}{{ telling_prompts(prompts, models, address) }}'
    )
    shown = Page(template.render(prompts=telling(PAGE), models=PAGE.compared, address="iter_001_reading.html"))
    first, *_ = shown.all("article")
    assert len(shown.all("article")) == 3
    assert [b.text for b in first.all("li", class_="badge")] == ["refuses", "loops", "cut off"]
    assert {m.attrs["class"] for m in first.all("mark")} == {"refuses", "loops"}
    assert [a.attrs["href"] for a in shown.all("a")] == [f"iter_001_reading.html#p{n}" for n in (2, 3, 1)]
    ids = {a.attrs["id"] for a in Page(reading_html(PAGE)).all("article")}
    assert {str(a.attrs["href"]).split("#")[1] for a in shown.all("a")} <= ids


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_anyone_wrote_stays_text(hostile: str) -> None:
    def html(addition: str) -> str:
        replies = [addition + LOOP, LOOP + addition, addition]
        columns = {"kind": ["k" + addition] * 3, "prompt": ["Why? " + addition] * 3}
        models = [assessed(name + addition, replies, ["loops"] * 2, **columns) for name in ("M1", "M2")]
        roles = {model.model: "role" + addition for model in models}
        return reading_html(page_of(*models, roles=roles, references={"e1": addition}), title=addition)

    shown = html(hostile)
    assert skeleton(shown) == skeleton(html("harmless"))
    assert shown.count("<script") == 1
    articles = Page(shown).all("article")
    for place in ("prompt", "side", "reference"):
        found = [e for e in articles[0].inside if place in (e.attrs.get("class") or "").split()]
        assert all(hostile in e.text for e in found)
    assert articles[0].attrs["data-kind"] == "k" + hostile


@pytest.mark.parametrize("odd", ["null \x00", "bell \x07", "half \ud83d", "escape \x1b[31m", "c1 \x9b"])
def test_characters_that_html_forbids_are_replaced(odd: str) -> None:
    # As the tables cannot hold them all, they are put where a reply would be.
    html = reading_html(replace(PAGE, prompts=(Prompt(1, "e1", odd, odd, odd, {"M2": Reply(odd)}),)))
    assert odd not in html
    assert odd.split()[0] + " \ufffd" in html
    html.encode()


def test_texts_of_any_direction_are_kept_apart() -> None:
    page = page_of(assessed("M2", ["\u202eesrever"]))
    (article,) = Page(reading_html(page)).all("article")
    texts = article.all("div", class_="text")
    assert [e.attrs["dir"] for e in texts] == ["auto"] * 2
    assert "unicode-bidi: isolate" in (TEMPLATES / "report.css").read_text(encoding="utf-8")


def test_policy_allows_this_script_and_this_style_and_nothing_else() -> None:
    html = reading_html(PAGE)

    def digest(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    (policy,) = Page(html).all("meta", http_equiv="Content-Security-Policy")
    allowed = dict(rule.split(" ", 1) for rule in str(policy.attrs["content"]).split("; "))
    assert allowed == {
        "default-src": "'none'",
        "script-src": digest("script"),
        "style-src": digest("style"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_nothing_is_loaded_from_anywhere() -> None:
    html = reading_html(PAGE)
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]+\.", html)
    tags = {e.tag for e in page.inside}
    assert not {"link", "img", "iframe", "object", "embed", "video", "audio", "base", "form", "svg"} & tags
    names = {name for e in page.inside for name in e.attrs}
    assert not {"src", "srcset", "data", "style", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    (style,), (script,) = page.all("style"), page.all("script")
    assert not re.search(r"url\(|@import|@font-face", style.text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp|import\(", script.text
    )


@pytest.mark.parametrize("back", ["javascript:alert(1)", "//example.org/x", ""])
def test_the_way_back_is_a_harmless_address_or_none(back: str) -> None:
    links = [a.attrs["href"] for a in Page(reading_html(PAGE, back=back)).all("a")]
    assert links == ["#prompts"]
    assert "iter_001.html" in [a.attrs["href"] for a in Page(reading_html(PAGE)).all("a")]


def test_the_page_can_be_used_without_a_script_and_without_eyes() -> None:
    page = Page(reading_html(PAGE))
    (bar,) = page.all("div", id="bar")
    assert "hidden" in bar.attrs
    assert bar.attrs["role"] == "search"
    assert not [a for a in page.all("article") + page.all("section") if "hidden" in a.attrs]
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("h1")) == 1
    ids = [e.attrs["id"] for e in page.inside if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    assert all(a.attrs["aria-labelledby"] in ids for a in page.all("article"))
    assert all(e.attrs.get("scope") in ("col", "row") for e in page.all("th"))
    labelled = [e for label in page.all("label") for e in label.inside]
    assert all(e in labelled for e in page.all("input") + page.all("select"))
    assert all(b.text.strip() or b.attrs.get("aria-label") for b in page.all("button"))


def test_the_script_finds_what_it_asks_for() -> None:
    page = Page(reading_html(PAGE))
    script = (TEMPLATES / "reading.js").read_text(encoding="utf-8")
    ids = {e.attrs["id"] for e in page.inside if "id" in e.attrs}
    assert set(re.findall(r'\$\("([a-z]+)"\)', script)) <= ids
    attributes = {name for e in page.inside for name in e.attrs}
    assert set(re.findall(r"\[(data-[a-z]+)\]", script)) <= attributes


def test_the_same_facts_make_the_same_page() -> None:
    again = page_of(*FOUR, references={"e1": "A good reply.", "e3": " "})
    assert reading_html(again) == reading_html(PAGE)
    assert telling(again) == telling(PAGE)


def test_signs_and_text_can_be_read_in_light_and_dark() -> None:
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    pairs = re.findall(r"(--[a-z0-9-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", css)
    general = {name: colours for name, *colours in pairs}
    for scheme in (0, 1):
        for name, *colours in pairs:
            if name == "--tint-of":
                assert contrast(general["--ink"][scheme], colours[scheme]) >= 4.5
            elif name in ("--line-of", "--ink", "--soft", "--link", "--good", "--bad"):
                assert contrast(general["--paper"][scheme], colours[scheme]) >= 4.5, name
    # And what was chosen and rejected.
    assert sum(name == "--line-of" for name, *_ in pairs) == len(SIGN_WORDS) + 2


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
