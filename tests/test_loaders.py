import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.loaders import (
    for_judging,
    held_out_prompts,
    load_evaluation_prompts,
    load_instructions,
    load_ranked_replies,
    source_digest,
)
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.tables import EVALUATION_PROMPTS, INSTRUCTIONS, RANKED_REPLIES, check_table

GOOD = '{"prompt": "p", "response": "r"}'


@pytest.fixture
def write_rows(tmp_path: Path):
    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def ranked(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "replies": [{"text": "best"}, {"text": "worst"}]} | more


def with_replies(*replies: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "p", "replies": list(replies)}


def split_of(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["prompt"], table["split"], strict=True))


@pytest.mark.parametrize(
    ("load", "schema"),
    [
        (load_instructions, INSTRUCTIONS),
        (load_ranked_replies, RANKED_REPLIES),
        (load_evaluation_prompts, EVALUATION_PROMPTS),
    ],
)
def test_embedded_data_follows_its_schema(load: Any, schema: Any) -> None:
    loaded = load(DataSettings())
    assert len(check_table(loaded.table, schema)) > 0
    assert loaded.left_out == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ('{"prompt": "p", "response": "r"', "not valid JSON"),
        ("[1, 2]", "the whole line"),
        ("null", "the whole line"),
        ('"text"', "the whole line"),
        ('{"prompt": "p"}', "response"),
        ('{"prompt": "", "response": "r"}', "prompt"),
        ('{"prompt": " \\n ", "response": "r"}', "prompt"),
        ('{"prompt": "p", "response": null}', "response"),
        ('{"prompt": 5, "response": "r"}', "prompt"),
        ('{"prompt": "p", "response": "\\ud800"}', "response"),
    ],
)
def test_broken_line_names_file_line_and_field(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        load_instructions(DataSettings(ift=str(path)))
    assert (caught.value.path, caught.value.line) == (path, 3)
    assert "broken.jsonl, line 3" in str(caught.value)


@pytest.mark.parametrize("line", ['{"prompt": ' + "9" * 5000 + "}", "[" * 200_000], ids=["long number", "deep nesting"])
def test_line_that_the_json_reader_gives_up_on_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_instructions(DataSettings(ift=str(path)))
    assert caught.value.line == 2


@pytest.mark.parametrize("place", range(4))
def test_bytes_that_are_no_utf8_name_file_and_line(tmp_path: Path, place: int) -> None:
    path = tmp_path / "latin.jsonl"
    lines = [GOOD.encode()] * 4
    lines[place] = '{"prompt": "café", "response": "r"}'.encode("latin-1")
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="UTF-8") as caught:
        load_instructions(DataSettings(ift=str(path)))
    assert caught.value.line == place + 1


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_first_broken_line_is_the_one_that_is_named(tmp_path_factory: Any, broken: list[bool]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(('{"prompt": 1}' if b else GOOD) + "\n" for b in broken), encoding="utf-8")
    if any(broken):
        with pytest.raises(DataError) as caught:
            load_instructions(DataSettings(ift=str(path)))
        assert caught.value.line == broken.index(True) + 1
    else:
        assert len(load_instructions(DataSettings(ift=str(path))).table) == len(broken)


@given(st.lists(st.sampled_from(["good", "no object", "no JSON", "no UTF-8", "no prompt"]), min_size=1, max_size=12))
def test_broken_rows_are_left_out_and_counted_by_reason_where_the_settings_say_so(
    tmp_path_factory: Any, kinds: list[str]
) -> None:
    lines = {
        "good": (GOOD.encode(), ""),
        "no object": (b"[1]", "bad row: the whole line: expected an object with named fields"),
        "no JSON": (b"{", "bad row: not valid JSON"),
        "no UTF-8": (b'{"prompt": "\xff"}', "bad row: not UTF-8"),
        "no prompt": (b'{"response": "r"}', "bad row: prompt: Field required"),
    }
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines[kind][0] for kind in kinds))
    data = DataSettings(ift=str(path), bad_rows="skip")
    counts = Counter(lines[kind][1] for kind in kinds if kind != "good")
    if "good" not in kinds:
        with pytest.raises(EmptyDataError, match="bad row"):
            load_instructions(data)
    else:
        loaded = load_instructions(data)
        assert loaded.left_out == counts
        assert len(loaded.table) == kinds.count("good")


def test_wrong_place_in_a_list_is_named_where_it_stops_the_run_and_not_where_many_are_counted(write_rows) -> None:
    rows = [ranked("x"), ranked("y"), *(with_replies({"text": "a"}, {"text": text}) for text in (3, 4))]
    path = write_rows(rows)
    with pytest.raises(DataError, match=r"replies\.1\.text"):
        load_ranked_replies(DataSettings(ranked_replies=path))
    loaded = load_ranked_replies(DataSettings(ranked_replies=path, bad_rows="skip"))
    assert loaded.left_out == {"bad row: replies.text: Input should be a valid string": 2}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "p"}, "replies"),
        (with_replies({"text": "a"}), "two are needed"),
        (with_replies({"text": "a", "rank": 0}, {"text": "b"}), "all have a rank"),
        (with_replies({"text": "a", "score": 6}, {"text": "b"}), "replies.0"),
        (with_replies({"text": "a"}, {"text": "b", "score": -0.5}), "replies.1"),
        (with_replies({"text": "a"}, {"text": "b", "score": float("nan")}), "replies.1"),
        (with_replies({"text": "a", "rank": 0, "score": 1}, {"text": "b", "rank": 1, "score": 4}), "ranked above"),
        (with_replies({"text": "a", "score": 1}, {"text": "b"}, {"text": "c", "score": 4}), "ranked above"),
        (with_replies({"text": "a"}, {"answer": "b"}), "replies: an object without text; it has answer: "),
        ({"prompt": "p", "replies": ["a", 5]}, "replies: .* found int"),
        ({"prompt": "p", "replies": "a, b"}, "replies: expected a list"),
        (with_replies({"text": "a", "rank": "best"}, {"text": "b", "rank": 1}), "replies.0.rank"),
    ],
)
def test_ranking_that_cannot_be_used_names_line_and_field(write_rows, row: dict[str, Any], field: str) -> None:
    path = write_rows([ranked("x"), ranked("y"), row])
    with pytest.raises(DataError, match=field) as caught:
        load_ranked_replies(DataSettings(ranked_replies=path))
    assert caught.value.line == 3


def test_negative_rank_names_its_line(write_rows) -> None:
    path = write_rows([ranked("x"), ranked("y"), with_replies({"text": "a", "rank": -1}, {"text": "b", "rank": 0})])
    with pytest.raises(DataError) as caught:
        load_ranked_replies(DataSettings(ranked_replies=path))
    assert caught.value.line == 3


def test_blank_id_is_refused_naming_its_line(write_rows) -> None:
    path = write_rows([{"id": " ", "prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match="id: ") as caught:
        load_instructions(DataSettings(ift=path))
    assert caught.value.line == 1


def test_missing_file_is_named() -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        load_instructions(DataSettings(ift="/no/such/ift.jsonl"))
    assert caught.value.line is None


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff"])
def test_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content, encoding="utf-8")
    for load, key in ((load_instructions, "ift"), (load_evaluation_prompts, "evaluation_prompts")):
        with pytest.raises(EmptyDataError, match=r"empty\.jsonl"):
            load(DataSettings(**{key: str(path)}))


@pytest.mark.parametrize("content", [f"\ufeff{GOOD}\n{GOOD}", f"{GOOD}\r\n\r\n{GOOD}\r\n", f"\n\n{GOOD}\n \n{GOOD}"])
def test_byte_order_mark_line_ends_and_blank_lines_do_not_matter(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode())
    assert load_instructions(DataSettings(ift=str(path))).table["prompt"].tolist() == ["p", "p"]


def test_text_with_unicode_line_separators_is_one_row(write_rows) -> None:
    path = write_rows([{"prompt": "a\u2028b\x85c", "response": "r"}])
    assert load_instructions(DataSettings(ift=path)).table["prompt"].tolist() == ["a\u2028b\x85c"]


def test_a_good_reply_to_an_evaluation_prompt_is_kept_and_may_be_missing(write_rows) -> None:
    rows = [{"prompt": "a", "reference": " good "}, {"prompt": "b"}, {"prompt": "c", "reference": " "}]
    table = load_evaluation_prompts(DataSettings(evaluation_prompts=write_rows(rows))).table
    checked = check_table(table, EVALUATION_PROMPTS)
    assert checked["reference"].isna().tolist() == [False, True, True]
    assert checked["reference"][0] == "good"
    renamed = {"source": write_rows([{"prompt": "a", "answer": "good"}]), "columns": {"reference": "answer"}}
    assert load_evaluation_prompts(DataSettings(evaluation_prompts=renamed)).table["reference"].tolist() == ["good"]


def test_a_reference_that_is_no_text_is_refused_naming_its_line(write_rows) -> None:
    path = write_rows([{"prompt": "a", "reference": "good"}, {"prompt": "b", "reference": 3}])
    with pytest.raises(DataError, match="reference: ") as caught:
        load_evaluation_prompts(DataSettings(evaluation_prompts=path))
    assert caught.value.line == 2


def test_evaluation_prompts_of_the_package_have_references() -> None:
    table = load_evaluation_prompts(DataSettings()).table
    assert table["reference"].notna().mean() > 0.9


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\nbroken\n")
    assert len(load_instructions(DataSettings(ift=str(path), ift_limit=2)).table) == 2
    with pytest.raises(DataError):
        load_instructions(DataSettings(ift=str(path), ift_limit=3))


def test_limits_of_the_other_sources(write_rows) -> None:
    path = write_rows([ranked(f"prompt {n}") for n in range(10)])
    assert load_ranked_replies(DataSettings(ranked_replies=path, ranked_limit=4)).table["group_id"].nunique() == 4
    assert len(load_evaluation_prompts(DataSettings(evaluation_prompts=path, evaluation_limit=3)).table) == 3


def test_missing_ids_are_given_and_existing_ones_kept(write_rows) -> None:
    path = write_rows([{"prompt": "a", "response": "r"}, {"id": "mine", "prompt": "b", "response": "r"}])
    ids = load_instructions(DataSettings(ift=path)).table["id"].tolist()
    assert ids[1] == "mine"
    assert len(set(ids)) == 2


def test_repeated_ids_are_refused(write_rows) -> None:
    path = write_rows([{"id": "x", "response": "r"} | ranked(str(n)) for n in range(2)])
    for load, key in (
        (load_instructions, "ift"),
        (load_ranked_replies, "ranked_replies"),
        (load_evaluation_prompts, "evaluation_prompts"),
    ):
        with pytest.raises(DataError, match="line 2: id occurs more than once: 'x'"):
            load(DataSettings(**{key: path}))


def test_order_of_replies_counts_where_ranks_are_missing(write_rows) -> None:
    given_ranks = with_replies({"text": "a", "rank": 2}, {"text": "b", "rank": 0}, {"text": "c", "rank": 2})
    path = write_rows([ranked("other"), given_ranks])
    table = load_ranked_replies(DataSettings(ranked_replies=path)).table
    ranks = {prompt: dict(zip(own["text"], own["rank"], strict=True)) for prompt, own in table.groupby("prompt")}
    assert ranks == {"other": {"best": 0, "worst": 1}, "p": {"a": 2, "b": 0, "c": 2}}


def test_scores_and_rationales_are_kept(write_rows) -> None:
    row = with_replies({"text": "a", "score": 4, "rationale": "fine"}, {"text": "b"})
    table = load_ranked_replies(DataSettings(ranked_replies=write_rows([ranked("other"), row]))).table
    kept = check_table(table, RANKED_REPLIES).set_index("text")
    assert (kept.loc["a", "score"], kept.loc["a", "rationale"]) == (4, "fine")
    assert kept.loc["b", ["score", "rationale"]].isna().all()


def test_user_file_follows_the_schema_of_every_table(write_rows) -> None:
    path = write_rows([{"response": "r", "kind": "k"} | ranked(f"prompt {n}") for n in range(5)])
    asked = write_rows([{"prompt": f"question {n}", "response": "r"} for n in range(5)], "asked.jsonl")
    data = DataSettings(ift=asked, ranked_replies=path, evaluation_prompts=path)
    assert len(check_table(load_instructions(data).table, INSTRUCTIONS)) == 5
    assert len(check_table(load_ranked_replies(data).table, RANKED_REPLIES)) == 10
    assert len(check_table(load_evaluation_prompts(data).table, EVALUATION_PROMPTS)) == 5


def test_home_folder_is_expanded(write_rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows([{"prompt": "p", "response": "r"}])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_instructions(DataSettings(ift="~/rows.jsonl")).table) == 1


def test_split_does_not_change_when_the_file_is_reordered(write_rows) -> None:
    rows = [ranked(f"prompt {n}") for n in range(20)]
    splits = [
        split_of(load_ranked_replies(DataSettings(ranked_replies=write_rows(order))).table)
        for order in (rows, rows[::-1], rows[7:] + rows[:7])
    ]
    assert splits[0] == splits[1] == splits[2]
    assert sum(split == "held_out" for split in splits[0].values()) == 7


def test_prompt_is_never_on_both_sides_however_it_is_written(write_rows) -> None:
    rows = [ranked(text) for n in range(10) for text in (f"Prompt {n}", f"  prompt\t{n} ", f"PROMPT\n{n}")]
    table = load_ranked_replies(DataSettings(ranked_replies=write_rows(rows))).table
    sides = table.groupby(table["prompt"].str.lower().str.split().str.join(" "))["split"].nunique()
    assert (sides == 1).all()
    assert len(sides) == 10
    assert set(table["split"]) == {"train", "held_out"}


@pytest.mark.parametrize("rows", [[ranked("only one")], [ranked("the same"), ranked("The  same")]])
def test_too_few_prompts_to_split_are_refused(write_rows, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(EmptyDataError, match="split"):
        load_ranked_replies(DataSettings(ranked_replies=write_rows(rows)))


PROMPTS = st.lists(st.text(max_size=8), max_size=20)


@given(PROMPTS, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
def test_held_out_prompts_do_not_depend_on_order_or_repetition(
    prompts: list[str], fraction: float, random: Any
) -> None:
    shuffled = prompts + prompts[: len(prompts) // 2]
    random.shuffle(shuffled)
    assert held_out_prompts(prompts, fraction) == held_out_prompts(shuffled, fraction)


@given(PROMPTS, st.floats(0.01, 0.99))
def test_held_out_share_is_what_was_asked_for(prompts: list[str], fraction: float) -> None:
    different = {" ".join(p.lower().split()) for p in prompts}
    held_out = held_out_prompts(prompts, fraction)
    assert held_out <= different
    assert abs(len(held_out) - fraction * len(different)) <= 0.5


@given(PROMPTS, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_larger_share_only_adds_prompts(prompts: list[str], one: float, other: float) -> None:
    assert held_out_prompts(prompts, min(one, other)) <= held_out_prompts(prompts, max(one, other))


def shared_by(prompts: list[str]) -> list[dict[str, Any]]:
    return [{"response": "r"} | ranked(prompt) for prompt in prompts]


@given(
    st.lists(st.sampled_from("abcdefghijklmno"), max_size=20),
    st.lists(st.sampled_from("ABCDEFGHIJKLMNO"), max_size=20),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_no_prompt_is_in_both_tables_and_none_is_lost(
    tmp_path_factory: Any, trained: list[str], judged: list[str], share: float
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for name, prompts in (("ift", trained), ("ranked", judged)):
        text = "".join(json.dumps(row) + "\n" for row in shared_by([*prompts, f"{name} 1", f"{name} 2", f"{name} 3"]))
        (folder / f"{name}.jsonl").write_text(text)
    data = DataSettings(ift=f"{folder}/ift.jsonl", ranked_replies=f"{folder}/ranked.jsonl", ranked_share=share)
    in_ift = {prompt.lower() for prompt in load_instructions(data).table["prompt"]}
    in_ranked = {prompt.lower() for prompt in load_ranked_replies(data).table["prompt"]}
    assert not in_ift & in_ranked
    everything = {prompt.lower() for prompt in [*trained, *judged]}
    assert in_ift | in_ranked >= everything
    both = {prompt for prompt in trained if prompt.upper() in judged}
    assert in_ranked & both == {prompt for prompt in both if for_judging(prompt, share)}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 250), (0.5, 500), (1.0, 1000)])
def test_about_the_share_that_was_asked_for_goes_to_judging(share: float, expected: int) -> None:
    assert sum(for_judging(f"prompt {n}", share) for n in range(1000)) == pytest.approx(expected, abs=50)


def test_what_went_to_the_other_table_is_counted(write_rows) -> None:
    path = write_rows(shared_by([f"prompt {n}" for n in range(40)]))
    data = DataSettings(ift=path, ranked_replies=path)
    ift, judging = load_instructions(data), load_ranked_replies(data)
    assert ift.left_out == {"prompt used in ranked_replies": judging.table["group_id"].nunique()}
    assert judging.left_out == {"prompt used in ift": len(ift.table)}


def test_limits_do_not_move_a_prompt_to_the_other_table(write_rows) -> None:
    path = write_rows(shared_by([f"prompt {n}" for n in range(40)]))
    whole = load_instructions(DataSettings(ift=path, ranked_replies=path)).table
    limited = load_instructions(DataSettings(ift=path, ranked_replies=path, ift_limit=5, ranked_limit=3)).table
    assert limited["prompt"].tolist() == whole["prompt"].tolist()[:5]


def test_digest_follows_the_content_of_the_file_and_the_name_of_a_dataset(write_rows, tmp_path: Path) -> None:
    path = write_rows([{"prompt": "a", "response": "r"}])
    before = source_digest(DataSettings(ift=path), "ift", "ranked_replies")
    assert source_digest(DataSettings(ift=path), "ift", "ranked_replies") == before
    write_rows([{"prompt": "b", "response": "r"}])
    assert source_digest(DataSettings(ift=path), "ift", "ranked_replies") != before
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("{}")
    of_folder = source_digest(DataSettings(ift=str(tmp_path / "set")), "ift")
    (tmp_path / "set" / "train.jsonl").write_text("{ }")
    assert source_digest(DataSettings(ift=str(tmp_path / "set")), "ift") != of_folder
    hub = [{"source": "some/name"}, {"source": "some/name", "split": "test"}, {"source": "some/name", "subset": "de"}]
    assert len({source_digest(DataSettings(ift=source), "ift") for source in hub}) == 3
