"""Closed tasks: which replies are right, the embedded set's promises, sampling, and what is said of a broken file."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.checks.closed_tasks import ClosedTask, closed_tasks_digest, is_right, load_closed_tasks
from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.prompting.filters import NoveltyIndex

EMBEDDED = load_closed_tasks("embedded")
KINDS = Counter(task.kind for task in EMBEDDED)


def asking(*answers: str, wrong: tuple[str, ...] = ()) -> ClosedTask:
    return ClosedTask("1", "kind", "prompt", answers, wrong)


PARIS = asking("Paris")
SEVEN = asking("7")
YES = asking("yes", wrong=("no",))
HORSE = asking("B", "horse", wrong=("A", "C", "D", "cup", "lamp", "oak"))
CUP = asking("A", "cup", wrong=("B", "C", "D", "horse", "lamp", "oak"))


@pytest.mark.parametrize(
    ("task", "reply"),
    [
        (PARIS, "paris"),
        (PARIS, '\n\n  **"Paris."**  '),
        (PARIS, "The capital of France is `Paris`!"),
        (PARIS, "Paris's the one"),
        (PARIS, "\u201cParis\u201d"),
        (PARIS, "_Paris_"),
        (PARIS, "The answer is:\n\nParis\nor Rome"),
        (PARIS, "**Answer:**\nParis"),
        (PARIS, "```\nParis\n```"),
        (PARIS, "Paris, Paris, Paris"),
        (asking("the Sun"), "It is a sun."),
        (asking("sun"), "The Sun"),
        (asking("ice cream"), "Ice-cream"),
        (asking("mother's day"), "Mother\u2019s Day"),
        (SEVEN, "7"),
        (SEVEN, "7.0"),
        (SEVEN, "3 + 4 = 7."),
        (SEVEN, "3+4=7"),
        (SEVEN, "Seven!"),
        (SEVEN, "Sure! The answer is 7. And 8 is next."),
        (SEVEN, "$7"),
        (SEVEN, "7kg"),
        (SEVEN, "If you have 5 apples and get 2 more, you have 5 + 2 = 7 apples"),
        (asking("1000"), "1,000 metres"),
        (asking("-3"), "1 - 4 = \u22123"),
        (asking("3"), "5-2=3"),
        (asking("0.5"), "It is 0.5."),
        (asking("20", "21"), "twenty-one"),
        (asking("23", wrong=("14",)), "There are 23 people."),
        (YES, "Yes, it is."),
        (HORSE, "B"),
        (HORSE, "b."),
        (HORSE, "(B)"),
        (HORSE, "**B**"),
        (HORSE, "B) horse"),
        (HORSE, "The answer is B."),
        (HORSE, "horse"),
        (HORSE, "A horse"),
        (HORSE, "A horse is an animal."),
        (CUP, "A"),
        (CUP, "a"),
        (CUP, "a) cup"),
        (CUP, "A: cup"),
        (CUP, "The answer is A"),
        (CUP, "Option A is the one."),
        (asking("Z"), "The last letter is 'Z'."),
        (asking("I", wrong=("J",)), "I"),
    ],
)
def test_a_right_reply_may_be_dressed_in_many_ways(task: ClosedTask, reply: str) -> None:
    assert is_right(task, reply)


@pytest.mark.parametrize(
    ("task", "reply"),
    [
        (PARIS, ""),
        (PARIS, " \n\t"),
        (PARIS, "***"),
        (PARIS, "Rome"),
        (PARIS, "Parisian"),
        (PARIS, "I think about it.\nParis"),
        (PARIS, "Here:\nit is\nParis"),
        (PARIS, "Paris " * 4),
        (PARIS, "well " * 40 + "Paris"),
        (asking("the Sun"), "The"),
        (asking("ice cream"), "cream ice"),
        (SEVEN, "8"),
        (SEVEN, "17"),
        (SEVEN, "7.5"),
        (SEVEN, "1,007"),
        (SEVEN, "seventeen"),
        (SEVEN, "twenty-seven"),
        (SEVEN, "x7"),
        (SEVEN, "7 and then 8"),
        (SEVEN, "It is 8. No, 7."),
        (SEVEN, "1 2 3 4 5 6 7"),
        (SEVEN, "number"),
        (asking("23", wrong=("14",)), "14 or 23"),
        (YES, "No"),
        (YES, "yes no yes no"),
        (YES, "Yes or no"),
        (YES, "Yes " * 10),
        (YES, "yesterday"),
        (HORSE, "A"),
        (HORSE, "A, B, C, D"),
        (HORSE, "A) cup B) horse C) lamp D) oak"),
        (HORSE, "B) oak"),
        (HORSE, "D) horse"),
        (HORSE, "cup, horse, lamp or oak"),
        (HORSE, "A: horse"),
        (HORSE, "Bob's"),
        (CUP, "A horse"),
        (CUP, "A thing like this is hard to say"),
        (CUP, "It is a"),
        (CUP, "I can't say a thing"),
        (CUP, "A) horse"),
        (asking("D", wrong=("C",)), "I'd say so"),
        (asking("I"), "I am a helpful assistant"),
    ],
)
def test_a_wrong_or_worthless_reply_is_not_right(task: ClosedTask, reply: str) -> None:
    assert not is_right(task, reply)


@given(st.text(), st.sampled_from(EMBEDDED))
def test_any_text_is_right_or_not(text: str, task: ClosedTask) -> None:
    assert is_right(task, text) in (True, False)


@given(st.sampled_from(EMBEDDED), st.text(), st.sampled_from(["{}", "**{}**", '"{}"', "`{}`.", " {}! ", "It is {}."]))
def test_dress_and_what_follows_do_not_matter(task: ClosedTask, rest: str, dress: str) -> None:
    assert all(is_right(task, dress.format(answer) + "\n" + rest) for answer in task.answers)
    assert all(is_right(task, dress.format(answer.upper())) for answer in task.answers)


@given(st.sampled_from([t for t in EMBEDDED if t.wrong]), st.data())
def test_naming_another_option_as_well_is_wrong(task: ClosedTask, data: st.DataObject) -> None:
    named = data.draw(st.permutations([task.answers[0], data.draw(st.sampled_from(task.wrong))]))
    assert not is_right(task, " or ".join(named))


def test_every_accepted_form_is_right() -> None:
    assert [(t.key, answer) for t in EMBEDDED for answer in t.answers if not is_right(t, answer)] == []


def test_the_embedded_set_is_large_and_its_kinds_are_of_one_size() -> None:
    assert len(EMBEDDED) >= 380
    assert len(KINDS) >= 12
    assert len(set(KINDS.values())) == 1
    assert len({task.key for task in EMBEDDED}) == len({task.prompt for task in EMBEDDED}) == len(EMBEDDED)


def test_every_prompt_says_how_to_answer() -> None:
    said = ("Answer with one word.", "Reply with the number only.", "Answer yes or no.", "Reply with the English only.")
    assert [task.key for task in EMBEDDED if not task.prompt.endswith(said)] == []


def test_no_constant_reply_solves_much() -> None:
    stock = [
        "",
        "yes",
        "no",
        "Yes.",
        "A",
        "B",
        "I",
        "the",
        "I am an AI language model and cannot answer that.",
        "I'm sorry, but as a helpful assistant I need more information to answer this question.",
        "The answer is a number.",
        "One of the most important things in the world is a good day with friends, food and water.",
        "yes no yes no yes no",
        "1 2 3 4 5 6 7 8 9 10",
    ]
    common = Counter(answer for task in EMBEDDED for answer in task.answers).most_common(20)
    for reply in [*stock, *(answer for answer, _ in common)]:
        solved = Counter(task.kind for task in EMBEDDED if is_right(task, reply))
        assert solved.total() <= 0.05 * len(EMBEDDED), reply
        assert all(count <= KINDS[kind] / 2 for kind, count in solved.items()), reply


def test_copying_the_prompt_solves_nothing() -> None:
    def copies(task: ClosedTask) -> Iterator[str]:
        words = task.prompt.split()
        yield task.prompt
        yield task.prompt.partition("?")[0]
        yield task.prompt.rpartition("?")[0].rpartition(". ")[2]
        yield f"{task.prompt}\n{task.answers[0]}"
        yield " ".join(words[: len(words) // 2] * 2)

    copied = [task.key for task in EMBEDDED if any(is_right(task, copy) for copy in copies(task))]
    assert len(copied) <= 0.03 * len(EMBEDDED), copied


def test_neither_the_first_nor_the_last_option_is_right_more_often_than_by_chance() -> None:
    places: dict[str, list[tuple[int, int]]] = {}
    for task in EMBEDDED:
        options = task.prompt.rpartition(": ")[2].split("?")[0].replace(" or ", ", ").split(", ")
        if task.wrong and set(options) == {*task.answers, *task.wrong}:
            places.setdefault(task.kind, []).append((options.index(task.answers[0]), len(options)))
    assert set(places) == {"ordering", "odd_one_out"}
    for kind, found in places.items():
        assert len(found) == KINDS[kind]
        n = found[0][1]
        counts = Counter(place for place, _ in found)
        assert max(counts.values()) <= len(found) * 1.5 / n, (kind, counts)


def test_the_answers_to_yes_or_no_are_balanced() -> None:
    answers = Counter(task.answers for task in EMBEDDED if task.kind == "yes_no")
    assert answers[("yes",)] == answers[("no",)] == KINDS["yes_no"] / 2


def test_no_prompt_is_near_one_that_models_train_on_or_are_compared_on() -> None:
    data = DataSettings()
    tables = (load_instructions(data), load_ranked_replies(data), load_evaluation_prompts(data))
    index = NoveltyIndex(prompt for loaded in tables for prompt in set(loaded.table["prompt"]))
    assert [task.prompt for task in EMBEDDED if index.nearest(task.prompt) >= 0.7] == []


@pytest.mark.parametrize("limit", [1, 14, 50, 100, 391, 392, 10_000])
def test_a_sample_is_balanced_over_the_kinds_and_always_the_same(limit: int) -> None:
    sample = load_closed_tasks("embedded", limit)
    assert sample == load_closed_tasks("embedded", limit)
    assert len(sample) == min(limit, len(EMBEDDED))
    counts = [sum(task.kind == kind for task in sample) for kind in KINDS]
    assert max(counts) - min(counts) <= 1
    places = [EMBEDDED.index(task) for task in sample]
    assert places == sorted(places)
    assert set(sample) <= set(load_closed_tasks("embedded", limit + 1))


def test_a_sample_holds_as_many_yes_as_no() -> None:
    sample = load_closed_tasks("embedded", 10 * len(KINDS))
    answers = Counter(task.answers for task in sample if task.kind == "yes_no")
    assert answers[("yes",)] == answers[("no",)] == 5


def test_switched_off_there_are_none() -> None:
    assert load_closed_tasks("none") == ()
    assert closed_tasks_digest("none") == ""


ROW = {"id": "a-1", "kind": "a", "prompt": "Which?", "answers": ["Paris"], "wrong": ["Rome"]}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_in_the_same_format_is_read_and_its_digest_tells_an_edit(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "id": 2, "prompt": "Who?", "wrong": []}]
    source = written(tmp_path, *rows)
    first, second = load_closed_tasks(source)
    assert first == ClosedTask("a-1", "a", "Which?", ("Paris",), ("Rome",))
    assert second == replace(first, key="2", prompt="Who?", wrong=())
    before = closed_tasks_digest(source)
    assert before == closed_tasks_digest(source) != closed_tasks_digest("embedded")
    written(tmp_path, *rows[:1])
    assert closed_tasks_digest(source) != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": []}, "answers"),
        ({"answers": ["..."]}, "answers.0"),
        ({"answers": "Paris"}, "answers"),
        ({"wrong": None}, "wrong"),
        ({"kind": " "}, "kind"),
        ({"prompt": ""}, "prompt"),
        ({"id": "a-1"}, "id: the same as in line 1"),
        ({"prompt": "Which?"}, "prompt: the same as in line 1"),
        ({"answers": ["Lyon", "the rome"]}, "answers.1: 'the rome' is also wrong: wrong.0 is 'Rome'"),
        ({"answers": ["old Rome"]}, "answers.0"),
        ({"answers": ["7"], "wrong": ["seven"]}, "answers.0: '7' is also wrong: wrong.0 is 'seven'"),
        ({"answers": ["Paris " * 41]}, "answers.0"),
        ({"answers": ["Here\nParis"]}, "answers.0"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    source = written(tmp_path, ROW, {**ROW, "id": "a-2", "prompt": "Who?", **change})
    with pytest.raises(DataError) as error:
        load_closed_tasks(source)
    assert str(error.value).startswith(f"{source}, line 2: {reason}")
    assert error.value.line == 2


@pytest.mark.parametrize("field", list(ROW))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    source = written(tmp_path, {key: value for key, value in ROW.items() if key != field})
    with pytest.raises(DataError, match=rf"line 1: {field}"):
        load_closed_tasks(source)


def test_a_file_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_closed_tasks(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(EmptyDataError, match="no closed tasks"):
        load_closed_tasks(written(tmp_path))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        load_closed_tasks("embedded", 0)
