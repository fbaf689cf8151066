"""Rubrics that fit the kind of a prompt: what is asked, what comes of it, and of which kind a prompt is."""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from test_rubric_and_judges import HOSTILE, TAG, judge_tags

from srlm_pipeline.config import DataSettings, JudgeSettings, PanelMember, ServerSettings, load_settings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import DataError, SettingsError
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.choosing import make_judge
from srlm_pipeline.judging.judges import JudgeItem, Judgement, SampledJudge
from srlm_pipeline.judging.kind_judge import KindRubricJudge
from srlm_pipeline.judging.kind_rubrics import KindRubric, kind_rubrics, load_rubrics
from srlm_pipeline.judging.kinds import kind_place, kinds_of, tell_kinds
from srlm_pipeline.judging.panel import Member, PanelJudge
from srlm_pipeline.judging.reading import Place, expectation, read_places, weighted_expectation
from srlm_pipeline.judging.rubric import dimension_prompt, judge_prompt, kind_rubric_prompt
from srlm_pipeline.progress import NullProgress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "srlm_pipeline"
CODE = JudgeItem("a", "Sort a list in Python.", "sorted(x)", "code")
LETTERS = [chr(ord("A") + n) for n in range(len(kind_rubrics().by_kind))]


def masses(score: int) -> list[float]:
    return [0.5 if n == score else 0.0 for n in range(6)]


def letters(likely: str, weight: float = 0.4) -> list[float]:
    return [weight if letter == likely else 0.01 for letter in LETTERS]


class Telling(FakeEngine):
    """Tells kinds by letters, and scores in every dimension as it is told."""

    def __init__(self, letter: Callable[[str], Sequence[float]], score: Callable[[str], Sequence[float]]) -> None:
        super().__init__(weigh=lambda prefix: (letter if "letter of the kind" in prefix else score)(prefix))


def judged(engine: FakeEngine, items: Sequence[JudgeItem], journal: Journal | None = None) -> list[Judgement]:
    return KindRubricJudge(engine).judge(items, NullProgress(), journal)


def test_every_kind_of_the_embedded_data_has_a_rubric() -> None:
    data = DataSettings()
    tables = (load_instructions(data), load_ranked_replies(data), load_evaluation_prompts(data))
    assert {kind for loaded in tables for kind in loaded.table["kind"]} == set(kind_rubrics().by_kind)


def test_rubrics_and_templates_are_installed_with_the_package() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    for folder in ("rubrics", "templates"):
        patterns = found[f"srlm_pipeline.judging.{folder}"]
        files = [p for p in (PACKAGE / "judging" / folder).iterdir() if p.suffix not in (".py", "") and p.is_file()]
        assert files
        assert all(any(path.match(pattern) for pattern in patterns) for path in files)


GOOD = "kinds: {x: do x}\ndimensions:\n- {name: a, weight: 1, question: 'Is the response a?'}\n"
GOOD += "- {name: b, weight: 2, question: 'Is the response b?'}\n"
GENERAL = GOOD.replace("{x: do x}", "{}")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"x": GOOD}, "there is no general.yaml"),
        ({"general": GENERAL, "x": GOOD, "y": GOOD}, "y.yaml: kinds: x has a rubric in another file"),
        ({"general": GENERAL, "x": GOOD.replace("weight: 1", "weight: 0")}, "x.yaml: dimensions.0.weight: .*greater"),
        ({"general": GENERAL, "x": GOOD.replace("name: b", "name: a")}, "two dimensions have the same name"),
        ({"general": GENERAL, "x": GOOD.replace("b?", "b.")}, "x.yaml: dimensions.1.question"),
        ({"general": GENERAL, "x": GOOD.replace("response b", "text b")}, "x.yaml: dimensions.1.question"),
        ({"general": GENERAL, "x": GOOD + "more: 1\n"}, "x.yaml: more: Extra"),
        ({"general": GENERAL, "x": "kinds: ["}, "x.yaml: it is not YAML"),
        ({"general": GENERAL, "x": "kinds: {x: do x}\ndimensions: []\n"}, "x.yaml: dimensions"),
    ],
)
def test_a_rubric_that_is_none_is_refused_with_its_file(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        load_rubrics(tmp_path)


def test_an_unknown_kind_and_none_have_the_general_rubric(tmp_path: Path) -> None:
    (tmp_path / "general.yaml").write_text(GENERAL, encoding="utf-8")
    (tmp_path / "x.yaml").write_text(GOOD, encoding="utf-8")
    rubrics = load_rubrics(tmp_path)
    assert rubrics.of("x") is not rubrics.general
    assert rubrics.of(None) is rubrics.of("") is rubrics.of("y") is rubrics.general


@given(prompt=HOSTILE, response=HOSTILE, question=HOSTILE)
def test_data_cannot_add_or_close_tags_whatever_is_asked(prompt: str, response: str, question: str) -> None:
    rubric = kind_rubrics().general
    for text in (kind_rubric_prompt(rubric, prompt, response), dimension_prompt(question, prompt, response)):
        assert TAG.findall(text) == judge_tags()
    assert TAG.findall(kind_place(prompt).message) == judge_tags()[:2]


def test_all_that_is_asked_of_a_reply_begins_alike_up_to_its_end() -> None:
    texts = [dimension_prompt(d.question, "the prompt", "the reply") for d in kind_rubrics().of("code").dimensions]
    beginning = texts[0][: texts[0].index("</response>")]
    assert all(text.startswith(beginning) for text in texts)


def test_the_score_is_the_weighted_mean_of_the_kinds_dimensions() -> None:
    dimensions = kind_rubrics().of("code").dimensions
    scores = {d.question: n % 6 for n, d in enumerate(dimensions, start=2)}
    engine = FakeEngine(weigh=lambda prefix: masses(next(s for q, s in scores.items() if q in prefix)))
    (judgement,) = judged(engine, [CODE])
    weights = [d.weight for d in dimensions]
    assert judgement.score == pytest.approx(np.average([scores[d.question] for d in dimensions], weights=weights))
    assert (judgement.key, judgement.n_valid, judgement.n_invalid) == ("a", len(dimensions), 0)
    told = json.loads(judgement.raw)
    assert told == {"kind": "code", "dimensions": {d.name: masses(scores[d.question]) for d in dimensions}}


def test_a_dimension_that_cannot_be_read_is_left_out_and_without_any_there_is_no_score() -> None:
    first, *others = kind_rubrics().of("code").dimensions
    engine = FakeEngine(weigh=lambda prefix: [0.0] * 6 if first.question in prefix else masses(4))
    (judgement,) = judged(engine, [CODE])
    assert (judgement.score, judgement.n_valid, judgement.n_invalid) == (4.0, len(others), 1)
    (judgement,) = judged(FakeEngine(weigh=lambda _: [0.0] * 6), [CODE])
    assert (judgement.score, judgement.spread, judgement.n_valid) == (None, None, 0)


def test_the_datas_kind_goes_before_the_models_and_a_prompt_is_told_once() -> None:
    kinds = list(kind_rubrics().by_kind)
    engine = Telling(
        lambda prefix: letters("C") if "tell me" in prefix else letters("none"),
        lambda prefix: masses(3),
    )
    items = [
        CODE,
        JudgeItem("b", "tell me", "x"),
        JudgeItem("c", "tell me", "y", "a kind of somebody's own"),
        JudgeItem("d", "tell me", "x", ""),
    ]
    assert kinds_of(engine, items, NullProgress()) == ["code", kinds[2], kinds[2], kinds[2]]
    assert sum("tell me" in prefix for prefix in engine.prefixes) == 1
    assert not any(CODE.prompt in prefix for prefix in engine.prefixes)
    assert [json.loads(j.raw)["kind"] for j in judged(engine, items)] == ["code", kinds[2], kinds[2], kinds[2]]


def test_a_models_liking_for_a_letter_is_taken_out() -> None:
    kinds = list(kind_rubrics().by_kind)
    # Whatever is asked, A is likely; for the one prompt B is likelier than else.
    engine = FakeEngine(
        weigh=lambda prefix: (
            [0.6, 0.2, *[0.01] * (len(kinds) - 2)] if "ONE" in prefix else [0.6, 0.02, *[0.01] * (len(kinds) - 2)]
        )
    )
    one, other = tell_kinds(engine, ["ONE", "OTHER"], NullProgress())
    assert one.kind == kinds[1]
    assert sum(one.probabilities.values()) == pytest.approx(1)
    assert list(other.probabilities.values()) == pytest.approx([1 / len(kinds)] * len(kinds))


def test_a_model_that_was_about_to_say_something_else_tells_no_kind() -> None:
    engine = Telling(lambda _: [1e-6] * len(LETTERS), lambda _: masses(2))
    (told,) = tell_kinds(engine, ["p"], NullProgress())
    assert told.kind is None
    (judgement,) = judged(engine, [JudgeItem("a", "p", "x")])
    assert set(json.loads(judgement.raw)["dimensions"]) == {d.name for d in kind_rubrics().general.dimensions}


def test_an_interrupted_judge_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    items = [JudgeItem(str(n), f"p{n % 2}", f"x{n}") for n in range(5)]
    engine = Telling(lambda _: letters("B"), lambda _: masses(3))
    first = judged(engine, items[:3], Journal(tmp_path))
    before = len(engine.prefixes)
    again = judged(engine, items, Journal(tmp_path))
    asked = engine.prefixes[before:]
    assert again[:3] == first
    assert not any("letter of the kind" in prefix for prefix in asked)
    assert {n for n in range(5) if any(f"x{n}" in prefix for prefix in asked)} == {3, 4}
    before = len(engine.prefixes)
    assert judged(engine, items, Journal(tmp_path)) == again
    assert len(engine.prefixes) == before


def test_judges_that_write_are_asked_by_all_dimensions_at_once() -> None:
    engine = FakeEngine(lambda _: "Fine.\nScore: 4\n", lambda _: masses(2))
    sampled = make_judge(engine, JudgeSettings(rubric="by_kind", samples=1), 20, "s")
    assert [j.score for j in sampled.judge([CODE], NullProgress())] == [4.0]
    asked = engine.requests[0].prompt
    assert all(d.question in asked for d in kind_rubrics().of("code").dimensions)
    assert asked.count("Score: <total points>") == 1
    hybrid = make_judge(engine, JudgeSettings(rubric="by_kind", mode="hybrid"), 20, "s")
    assert [j.score for j in hybrid.judge([CODE], NullProgress())] == [2.0]
    assert engine.prefixes[-1] == engine.requests[-1].prompt + "Fine.\nScore: "


def test_what_m1_is_taught_is_asked_by_a_rubric_for_all_kinds() -> None:
    assert JudgeSettings(rubric="additive").taught_rubric == "additive"
    settings = JudgeSettings(rubric="by_kind", samples=1)
    assert settings.taught_rubric == "short"
    engine = FakeEngine(lambda _: "Score: 1")
    SampledJudge(engine, settings, 20, "eft").judge([CODE], NullProgress())
    assert judge_prompt("short", CODE.prompt, CODE.response, "rationale") in engine.requests[0].prompt


@pytest.mark.slow
def test_a_real_model_is_asked_several_questions_at_once_and_answers_as_one_by_one(tiny_model: Path) -> None:
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.generation.transformers_engine import TransformersEngine
    from srlm_pipeline.models.loading import load_model

    loaded = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32"))
    items = [CODE, JudgeItem("b", "Translate cat into German.", "Katze"), JudgeItem("c", "Translate it.", "Hund")]
    together, alone = (
        judged(TransformersEngine(loaded.model, loaded.tokenizer, "tiny", rows), items)  # type: ignore[arg-type]
        for rows in (8, 1)
    )
    assert [j.score for j in together] == pytest.approx([j.score for j in alone], abs=1e-3)
    assert [json.loads(j.raw)["kind"] for j in together] == [json.loads(j.raw)["kind"] for j in alone]


def test_a_panel_takes_a_judge_by_kind_like_any_other(tmp_path: Path) -> None:
    engine = Telling(lambda _: letters("A"), lambda _: masses(3))
    panel = PanelJudge([Member(KindRubricJudge(engine), 1.0, Journal(tmp_path))])
    (judgement,) = panel.judge([CODE], NullProgress())
    assert (judgement.key, judgement.score) == ("a", 3.0)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"rubric": "checklist", "mode": "sampled"}, "rubric checklist .* needs mode distribution"),
        ({"rubric": "checklist", "mode": "distribution", "panel": [{"mode": "hybrid"}]}, "of every member"),
        (
            {"rubric": "by_kind", "panel": ["self", {"model": "m", "server": {"base_url": "http://x/v1"}}]},
            r"rubric by_kind reads probabilities, and a server \(m\) is asked in words",
        ),
    ],
)
def test_a_rubric_that_cannot_be_asked_is_refused(judge: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings("quickstart", {"judge": judge})


def test_other_rubrics_may_be_asked_of_servers() -> None:
    server = PanelMember(model="m", server=ServerSettings(base_url="http://x/v1"))
    assert JudgeSettings(rubric="short", panel=(server,)).panel == (server,)


def test_equal_groups_are_read_once_and_come_back_in_their_order() -> None:
    engine = FakeEngine(weigh=lambda prefix: [len(prefix), 0.0])
    groups = [[Place("bb", ""), Place("b", "")], [Place("aaaa", "")], [Place("bb", ""), Place("b", "")]]
    read = read_places(engine, groups, ["x", "y"], "reading", NullProgress())
    lengths = [[len(engine.render(place.message)) for place in group] for group in groups]
    assert [found[:, 0].tolist() for found in read] == lengths
    assert len(engine.prefixes) == 3
    assert read_places(engine, [], ["x"], "reading", NullProgress()) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(0, 3))
def test_an_expectation_lies_between_the_values_and_needs_some_probability(found: list[float], least: int) -> None:
    values = list(range(least, least + len(found)))
    expected = expectation(found, values)
    assert (expected is None) == (sum(found) < 0.01)
    if expected is not None:
        assert values[0] <= expected.mean <= values[-1]
        assert 0 <= expected.spread <= (values[-1] - values[0]) / 2 + 1e-9


@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.floats(0.1, 9)), min_size=1, max_size=6))
def test_what_could_not_be_read_does_not_move_the_weighted_mean(found: list[tuple[float | None, float]]) -> None:
    expectations = [None if yes is None else expectation((1 - yes, yes), (0, 5)) for yes, _ in found]
    weights = [weight for _, weight in found]
    mean = weighted_expectation(expectations, weights)
    read = [(e, weight) for e, weight in zip(expectations, weights, strict=True) if e is not None]
    assert (mean is None) == (not read)
    if mean is not None:
        means = [e.mean for e, _ in read]
        assert min(means) - 1e-9 <= mean.mean <= max(means) + 1e-9
        assert mean == weighted_expectation([e for e, _ in read], [weight for _, weight in read])


def test_a_rubrics_weights_are_shown_as_shares() -> None:
    rubric = KindRubric.model_validate(
        {
            "kinds": {},
            "dimensions": [
                {"name": "a", "weight": 3, "question": "Is the response right?"},
                {"name": "b", "weight": 1, "question": "Is the response short?"},
            ],
        }
    )
    text = kind_rubric_prompt(rubric, "p", "x")
    assert "- Is the response right? (75% of the points)\n- Is the response short? (25% of the points)" in text
