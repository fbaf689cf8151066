"""Answers of other models, as AlpacaEval writes them, become replies to the project's own evaluation prompts."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.errors import DataError
from srlm_pipeline.evaluation.other_answers import OtherAnswers, read_other_answers, require_names
from srlm_pipeline.tables import REPLIES, check_table

PROMPTS = pd.DataFrame(
    {"id": ["e1", "e2", "e3"], "kind": "", "prompt": ["Name a river.", "Add 2\nand 3.", "Say hello."]}
)


def answer(instruction: str, output: str, generator: str = "gpt4", **more: Any) -> dict[str, Any]:
    return {"dataset": "helpful_base", "instruction": instruction, "output": output, "generator": generator, **more}


def words(text: str) -> int:
    return len(text.split())


def read(path: Path, content: Any) -> list[OtherAnswers]:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_other_answers(path, PROMPTS, words)


def test_an_alpaca_eval_file_becomes_replies_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path / "answers.json",
        [answer("Say hello.", "Hello there, you."), answer("Who wrote Faust?", "Goethe"), answer("Name a river.", "")],
    )
    check_table(found.replies, REPLIES)
    assert found.replies["prompt_id"].tolist() == ["e1", "e3"]
    assert found.replies["reply"].tolist() == ["", "Hello there, you."]
    assert found.replies["n_tokens"].tolist() == [0, 3]
    assert set(found.replies["model"]) == {"gpt4"}
    assert (found.model, found.n_prompts, found.n_elsewhere, found.n_repeated) == ("gpt4", 3, 1, 0)


def test_json_lines_with_prompt_for_instruction_are_read_too(tmp_path: Path) -> None:
    lines = [{"prompt": p, "output": "x", "generator": "m"} for p in PROMPTS["prompt"]]
    (found,) = read(tmp_path / "answers.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert found.replies["prompt_id"].tolist() == ["e1", "e2", "e3"]


def test_blanks_in_prompts_do_not_matter_and_letters_do(tmp_path: Path) -> None:
    given_answers = [answer(" Add 2 and\t3. \n", "5"), answer("say hello.", "hi")]
    (found,) = read(tmp_path / "answers.json", given_answers)
    assert found.replies["prompt_id"].tolist() == ["e2"]
    assert found.replies["prompt"].tolist() == ["Add 2\nand 3."]
    assert found.n_elsewhere == 1


def test_several_models_in_one_file_are_kept_apart(tmp_path: Path) -> None:
    found = read(
        tmp_path / "answers.json",
        [
            answer("Say hello.", "hi", "b"),
            answer("Say hello.", "good day", "a"),
            answer("Name a river.", "Po", "b"),
            answer("Say hello.", "hi again", "b"),
        ],
    )
    assert [(f.model, f.replies["reply"].tolist(), f.n_repeated) for f in found] == [
        ("b", ["Po", "hi"], 1),
        ("a", ["good day"], 0),
    ]


def test_a_model_meets_the_other_on_the_prompts_that_both_answer(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "answers.json", [answer("Say hello.", "hi"), answer("Name a river.", "Po")])
    mine = pd.DataFrame({"prompt_id": ["e3", "e2", "e1"], "reply": ["three", "two", "one"]})
    met = found.met_by(mine)
    assert met["prompt_id"].tolist() == found.replies["prompt_id"].tolist()
    assert met["reply"].tolist() == ["one", "three"]
    assert met.columns.tolist() == mine.columns.tolist()


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.json", [answer("Say hello.", "hi"), {"output": "x", "generator": "m"}], "row 2: .*instruction.*prompt"),
        ("a.json", [{"instruction": "Say hello.", "generator": "m"}], "row 1: output: Field required"),
        ("a.json", [{"instruction": "Say hello.", "output": "hi"}], "row 1: generator: Field required"),
        ("a.json", [answer("Say hello.", "hi", "  ")], "row 1: generator"),
        ("a.json", [{**answer("Say hello.", ""), "output": None}], "row 1: output"),
        ("a.json", [{**answer("Say hello.", ""), "output": ["hi"]}], "row 1: output"),
        ("a.json", ["Say hello."], "row 1: .*expected an object"),
        ("a.json", "[{", "not readable as a JSON array"),
        ("a.json", [], "holds no answers"),
        ("a.jsonl", "", "holds no answers"),
        ("a.jsonl", json.dumps(answer("Say hello.", "hi")) + "\n{oops", "line 2: not valid JSON"),
        ("a.json", [answer("Say hello.", "hi", "M2")], "'M2', which is a name of the project's own"),
        ("a.json", [answer("Say hello.", "hi", "Champion")], "'Champion', which is a name"),
        ("a.json", [answer("Say hello.", "hi", "x" * 101)], "101 characters, more than 100"),
        ("a.json", [answer("Say hello.", "hi"), answer("What?", "x", "stranger")], "none of the 3 .* stranger"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_place_and_field(
    tmp_path: Path, name: str, content: Any, place: str
) -> None:
    with pytest.raises(DataError, match=place) as caught:
        read(tmp_path / name, content)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "organisation/dataset"])
def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_other_answers(Path(name), PROMPTS, words)


def test_models_that_would_be_taken_for_each_other_are_refused_before_there_are_prompts(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps([answer("Say hello.", "hi", "qwen2.5@q4"), answer("Say hello.", "hi", "q@w")]))
    two.write_text(json.dumps([answer("What?", "x", "gpt4")]))
    assert require_names([one, two]) == ["qwen2.5@q4", "q@w", "gpt4"]
    two.write_text(json.dumps([answer("What?", "x", "Qwen2.5-q4")]))
    with pytest.raises(DataError, match=r"'Qwen2.5-q4' cannot be told from those of 'qwen2.5@q4' in .*one.json"):
        require_names([one, two])


ANSWERS = st.lists(
    st.builds(
        answer,
        st.sampled_from([*PROMPTS["prompt"], "Add 2 and 3.", "another"]),
        st.text(max_size=8),
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=8,
)


@given(ANSWERS)
@settings(max_examples=25)
def test_every_answer_is_used_or_counted(tmp_path_factory: pytest.TempPathFactory, answers: list[Any]) -> None:
    path = tmp_path_factory.mktemp("answers") / "answers.json"
    models = list(dict.fromkeys(a["generator"] for a in answers))
    useful = {a["generator"] for a in answers if a["instruction"] != "another"}
    if useful != set(models):
        with pytest.raises(DataError):
            read(path, answers)
        return
    found = read(path, answers)
    assert [f.model for f in found] == models
    for f in found:
        given_answers = [a for a in answers if a["generator"] == f.model]
        assert len(f.replies) + f.n_elsewhere + f.n_repeated == len(given_answers)
        assert set(f.replies["reply"]) <= {a["output"] for a in given_answers}
