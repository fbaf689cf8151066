"""A model is measured once; what is kept is found again only for these very weights and these very questions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from assessed import assessed
from fakes import FakeEngine
from numpy.typing import NDArray

from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.checks.verifiable import load_verifiable
from srlm_pipeline.checks.vital_signs import SIGNS
from srlm_pipeline.config import Settings, load_settings
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessing import assess, vital_signs
from srlm_pipeline.evaluation.assessment import (
    Assessment,
    assessed_by,
    read_assessment,
    read_assessments,
    write_assessment,
)
from srlm_pipeline.evaluation.measures import SHOWN
from srlm_pipeline.generation.engine import Completion, GenerationRequest
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import REPLIES, VITAL_SIGNS, check_table

TABLES = ("replies", "verifiable", "judgements", "likelihood")


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "project", tmp_path)


def checkpoint(store: ProjectStore, name: str, digest: str = "") -> Checkpoint:
    return Checkpoint(store.model_folder(name), name, digest or f"{name}-weights", None)


def whole(model: str, **changes: Any) -> Assessment:
    given = {
        "replies": ["one reply", "another"],
        "closed": [1, 0, 1],
        "followed": [2, 0],
        "scores": [(4, 1), (None, 3)],
        "nats": [1.5, 2.5],
        "nearness": [0.5, None],
    }
    return assessed(model, **{**given, **changes})


def keep(store: ProjectStore, *assessments: Assessment) -> list[Checkpoint]:
    found = []
    for assessment in assessments:
        found.append(checkpoint(store, assessment.model, assessment.digest))
        write_assessment(assessment, store, found[-1])
    return found


def assert_equal(one: Assessment, other: Assessment) -> None:
    assert (one.model, one.digest) == (other.model, other.digest)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


# Kept


def test_what_was_written_is_read_back(store: ProjectStore) -> None:
    written = whole("M2")
    (m2,) = keep(store, written)
    assert_equal(read_assessment(store, m2), written)


def test_parts_are_told_apart_and_in_the_order_of_asking(store: ProjectStore) -> None:
    (m2,) = keep(store, whole("M2"))
    found = read_assessment(store, m2)
    assert found.part("evaluation")["reply"].tolist() == ["one reply", "another"]
    assert found.part("closed")["right"].tolist() == [1.0, 0.0, 1.0]
    assert found.part("verifiable")["prompt_id"].tolist() == ["v0", "v1"]
    replies = check_table(found.evaluation_replies(), REPLIES)
    assert replies["prompt"].tolist() == ["evaluation prompt 0", "evaluation prompt 1"]


def test_a_second_assessment_takes_the_place_of_the_first(store: ProjectStore) -> None:
    keep(store, whole("M2"))
    again = whole("M2", closed=[0, 0, 0])
    (m2,) = keep(store, again)
    assert_equal(read_assessment(store, m2), again)
    assert len(list((store.root / "assessments").iterdir())) == 1


def test_a_broken_assessment_is_not_kept_and_the_old_one_stays(store: ProjectStore) -> None:
    good = whole("M2")
    (m2,) = keep(store, good)
    broken = replace(good, replies=good.replies.assign(right=7.0))
    with pytest.raises(TableError):
        write_assessment(broken, store, m2)
    assert_equal(read_assessment(store, m2), good)


@pytest.mark.parametrize(
    ("model", "asset"),
    [
        ("base", "seed_assessment"),
        ("sft_baseline", "seed_assessment"),
        ("M1", "seed_assessment"),
        ("M2", "assessment[iter_001]"),
        ("M11", "assessment[iter_010]"),
    ],
)
def test_a_model_that_was_not_assessed_names_the_asset_to_materialize(
    store: ProjectStore, model: str, asset: str
) -> None:
    assert assessed_by(model) == asset
    with pytest.raises(TableError) as caught:
        read_assessment(store, checkpoint(store, model))
    assert f"{model} has not been assessed as it is now; materialize {asset} first" in str(caught.value)


def test_other_weights_under_the_same_name_are_not_taken_for_the_assessed_ones(store: ProjectStore) -> None:
    first, second = whole("M2", digest="first"), whole("M2", digest="second", closed=[0, 0, 0])
    (kept,) = keep(store, first)
    with pytest.raises(TableError, match=r"materialize assessment\[iter_001\] first"):
        read_assessment(store, checkpoint(store, "M2", "second"))
    keep(store, second)
    assert_equal(read_assessment(store, kept), first)
    assert_equal(read_assessment(store, checkpoint(store, "M2", "second")), second)


@pytest.mark.parametrize("content", [None, b"", b"{ torn"])
def test_whatever_is_missing_or_damaged_is_an_error_in_plain_words(store: ProjectStore, content: bytes | None) -> None:
    (m2,) = keep(store, whole("M2"))
    for path in sorted(store.assessment_folder(m2).iterdir()):
        kept = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(TableError):
            read_assessment(store, m2)
        path.write_bytes(kept)
    assert read_assessment(store, m2).model == "M2"


# Together


def test_several_models_are_read_by_name(store: ProjectStore) -> None:
    kept = keep(store, whole("base"), whole("M1"), whole("M2", replies=["other words", "and more"], nats=[3, 4]))
    found = read_assessments(store, kept)
    assert list(found) == ["base", "M1", "M2"]
    assert all(found[name].model == name for name in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"replies": ["one reply", "another", "a third"]},
        {"closed": [1, 0]},
        {"followed": [2]},
        {"scores": [(4, 1)]},
    ],
)
def test_models_that_were_asked_other_prompts_than_the_last_name_what_to_materialize(
    store: ProjectStore, changes: dict[str, Any]
) -> None:
    kept = keep(store, whole("base"), whole("M2", **changes), whole("M3", **changes))
    with pytest.raises(TableError) as caught:
        read_assessments(store, kept)
    assert (
        "base was asked other prompts than M3, or with another limit of tokens; materialize seed_assessment again"
        in str(caught.value)
    )
    assert "M2 was" not in str(caught.value)
    assert set(read_assessments(store, kept[1:])) == {"M2", "M3"}
    with pytest.raises(
        TableError,
        match=r"M2 was asked other prompts than base, or with .*; materialize assessment\[iter_001\]",
    ):
        read_assessments(store, [kept[1], kept[0]])


def test_other_words_in_a_prompt_are_another_prompt(store: ProjectStore) -> None:
    old, new = whole("M1"), whole("M2")
    old = replace(old, replies=old.replies.assign(prompt="worded " + old.replies["prompt"]))
    with pytest.raises(TableError, match="M1 was asked other prompts than M2"):
        read_assessments(store, keep(store, old, new))


# Measured


class Near:
    """Says of every text how long it is."""

    def nearness(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        return np.array([min(len(text), 100) / 100 for text in first])


PROMPTS = pd.DataFrame(
    {
        "id": ["a", "b", "c"],
        "kind": ["writing", "facts", "facts"],
        "prompt": ["Tell me of the sea in a few sentences.", "Why do cats purr at night?", "Where does tea come from?"],
        "reference": pd.Series(["The sea is wide and deep.", None, "From China."], dtype=object),
    }
)
RANKED = pd.DataFrame(
    [
        {"group_id": group, "kind": "facts", "prompt": f"Prompt {group}?", "rank": rank, "text": text}
        for group in ("h", "g")
        for rank, text in enumerate(("A good reply.", "A bad one."))
    ]
)
SAID = {
    "Tell me of the sea in a few sentences.": "wave " * 50,
    "Why do cats purr at night?": "Because they are content, or to calm themselves.",
    "Where does tea come from?": "",
}


def measured_with(**evaluation: Any) -> Settings:
    short = {
        "bootstrap_samples": 100,
        "encoder": "none",
        "verifiable": {"limit": 3},
        "closed_tasks": {"limit": 4},
    }
    return load_settings(
        "quickstart",
        {
            "model": {"device": "cpu", "dtype": "float32"},
            "judge": {"mode": "distribution", "rubric": "short"},
            "evaluation": {**short, **evaluation},
        },
    )


class Answering:
    """Opens engines that know the answer to every closed task but the last, and remembers how often."""

    def __init__(self, settings: Settings, otherwise: str, frame: str) -> None:
        self.opened = 0
        self._otherwise = otherwise
        self.engines: list[FakeEngine] = []
        chosen = settings.evaluation.closed_tasks
        tasks = load_closed_tasks(chosen.source, chosen.limit)[:-1]
        self._answers = {task.prompt: frame.format(task.answers[0]) for task in tasks}

    def open(self, _: Checkpoint, batch_size: int) -> FakeEngine:
        self.opened += 1

        def write(request: GenerationRequest) -> Completion:
            asked = request.prompt.removeprefix("USER ").removesuffix(" ASSISTANT ")
            text = SAID.get(asked, self._answers.get(asked, self._otherwise))
            return Completion(request.key, text, 5, "length" if text.startswith("wave") else "stop")

        self.engines.append(FakeEngine(write, lambda prefix: [0, 0, 0, 0, 0, 1] if "good" in prefix else [1] * 6))
        return self.engines[-1]


def measure(
    settings: Settings,
    model: Path,
    store: ProjectStore,
    encoder: Near | None = None,
    otherwise: str = "I do not know that.",
    frame: str = "{}",
) -> tuple[Assessment, Answering]:
    answering = Answering(settings, otherwise, frame)
    found = assess(
        Checkpoint(model, "M2", "weights", None),
        PROMPTS,
        RANKED,
        settings,
        store,
        answering.open,  # type: ignore[arg-type]
        NullProgress(),
        encoder,
    )
    return found, answering


@pytest.mark.slow
def test_a_model_is_asked_everything_and_every_reply_has_its_signs(tiny_model: Path, store: ProjectStore) -> None:
    settings = measured_with()
    found, answering = measure(settings, tiny_model, store)
    write_assessment(found, store, Checkpoint(tiny_model, "M2", "weights", None))
    assert (found.model, found.digest) == ("M2", "weights")
    assert found.replies["part"].value_counts().to_dict() == {"evaluation": 3, "verifiable": 3, "closed": 4}
    own = found.part("evaluation").set_index("prompt_id")
    assert own["kind"].tolist() == PROMPTS["kind"].tolist()
    shown = {key: {sign for sign in SIGNS if row[sign]} for key, row in own.iterrows()}
    assert shown == {"a": {"loops"}, "b": set(), "c": {"empty"}}
    assert own["finish_reason"].tolist() == ["length", "stop", "stop"]
    assert found.part("closed")["right"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert found.replies["nearness"].isna().all()
    prompts = load_verifiable(settings.evaluation.verifiable)
    assert found.verifiable["key"].tolist() == [prompt.key for prompt in prompts]
    assert found.judgements["score"].notna().all()
    assert found.likelihood["group_id"].tolist() == ["g", "h"]
    assert (found.likelihood["nats"] > 0).all()
    assert answering.opened == 1, "one model, loaded once for all that is asked"


@pytest.mark.slow
def test_what_is_known_is_not_asked_for_again(tiny_model: Path, store: ProjectStore) -> None:
    settings = measured_with()
    first, _ = measure(settings, tiny_model, store)
    again, answering = measure(settings, tiny_model, store)
    assert_equal(first, again)
    assert answering.opened == 0


@pytest.mark.slow
def test_nearness_is_measured_where_there_is_a_reference(tiny_model: Path, store: ProjectStore) -> None:
    found, _ = measure(measured_with(), tiny_model, store, Near())
    assert found.part("evaluation")["nearness"].tolist() == pytest.approx([1.0, np.nan, 0.0], nan_ok=True)
    assert found.part("closed")["nearness"].isna().all()


@pytest.mark.slow
def test_sets_that_are_switched_off_leave_nothing_behind(tiny_model: Path, store: ProjectStore) -> None:
    off = measured_with(verifiable={"source": "none"}, closed_tasks={"source": "none"})
    found, _ = measure(off, tiny_model, store)
    assert set(found.replies["part"]) == {"evaluation"}
    assert len(found.verifiable) == 0
    write_assessment(found, store, Checkpoint(tiny_model, "M2", "weights", None))


@pytest.mark.slow
def test_stock_replies_follow_nothing_and_short_answers_are_not_read_together_with_them(
    tiny_model: Path, store: ProjectStore
) -> None:
    found, _ = measure(measured_with(), tiny_model, store, otherwise="thank you for asking me about this")
    assert found.part("verifiable")["recites"].all()
    assert found.verifiable["n_strict"].tolist() == found.verifiable["n_loose"].tolist() == [0, 0, 0]
    assert not found.part("closed")["recites"].any()


@pytest.mark.slow
def test_a_right_answer_in_a_sentence_that_is_always_the_same_is_right(tiny_model: Path, store: ProjectStore) -> None:
    found, _ = measure(measured_with(), tiny_model, store, frame="The correct answer to the question is {}.")
    assert found.part("closed")["right"].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_vital_signs_are_one_row_for_each_model_and_measure() -> None:
    table = check_table(vital_signs([whole("M1"), whole("M2", closed=[])], 100), VITAL_SIGNS)
    assert list(zip(table["model"], table["measure"], strict=True)) == [
        (model, measure.name) for model in ("M1", "M2") for measure in SHOWN
    ]
    rows = table.set_index(["model", "measure"])
    assert rows.loc[("M1", "closed_tasks"), "value"] == pytest.approx(2 / 3)
    assert rows.loc[("M1", "closed_tasks"), "note"] == ""
    unmeasured = rows.loc[("M2", "closed_tasks")]
    assert unmeasured[["value", "low", "high"]].isna().all()
    assert (unmeasured["n"], unmeasured["note"]) == (0, "evaluation.closed_tasks.source is none")
