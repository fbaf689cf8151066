from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pytest

from srlm_pipeline import tables
from srlm_pipeline.errors import TableError
from srlm_pipeline.tables import JUDGED_SCORES, PREFERENCE_PAIRS, RANKED_REPLIES, check_table, read_table, write_table

SCHEMAS = {name: value for name, value in vars(tables).items() if isinstance(value, pa.DataFrameSchema)}


def reply(**changes: Any) -> dict[str, Any]:
    return {
        "group_id": "g",
        "split": "train",
        "kind": "",
        "prompt": "p",
        "rank": 0,
        "text": "t",
        "score": 4.5,
        "rationale": "because",
    } | changes


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "prompt_id": "p",
        "prompt": "q",
        "strategy": "best_worst",
        "length_control": 0.0,
        "min_margin": 0.0,
        "chosen_sample": 0,
        "rejected_sample": 1,
        "chosen": "a",
        "rejected": "b",
        "chosen_score": 4.0,
        "chosen_finish_reason": "stop",
        "rejected_finish_reason": "length",
        "rejected_score": 1.0,
        "margin": 3.0,
        "chosen_passed": None,
        "rejected_passed": None,
        "rejected_for": "",
        "judge": "j",
    } | changes


def problems_of(schema: pa.DataFrameSchema, *rows: dict[str, Any]) -> list[str]:
    with pytest.raises(TableError) as caught:
        check_table(pd.DataFrame(list(rows)), schema)
    assert caught.value.table == schema.name
    return caught.value.problems


@pytest.mark.parametrize("name", SCHEMAS)
def test_empty_table_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    schema = SCHEMAS[name]
    write_table(pd.DataFrame(columns=list(schema.columns)), schema, tmp_path / "t.parquet")
    table = read_table(schema, tmp_path / "t.parquet")
    assert list(table.columns) == list(schema.columns)
    assert len(table) == 0


def test_table_names_are_distinct() -> None:
    assert len({schema.name for schema in SCHEMAS.values()}) == len(SCHEMAS)


def test_written_table_is_read_back(tmp_path: Path) -> None:
    rows = [
        reply(),
        reply(text="é\n日本\u2028", rank=1, score=0.0),
        reply(text="none", rank=2, score=None, rationale=None),
    ]
    path = tmp_path / "deep" / "t.parquet"
    write_table(pd.DataFrame(rows), RANKED_REPLIES, path)
    table = read_table(RANKED_REPLIES, path)
    assert table["text"].tolist() == [row["text"] for row in rows]
    assert table["rank"].tolist() == [0, 1, 2]
    assert table["score"].tolist()[:2] == [4.5, 0.0]
    assert table.loc[2, ["score", "rationale"]].isna().all()
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_columns_come_in_the_declared_order_and_others_are_left_out() -> None:
    shuffled = pd.DataFrame([dict(reversed(reply(surplus=1).items()))])
    assert list(check_table(shuffled, RANKED_REPLIES).columns) == list(RANKED_REPLIES.columns)


def test_numbers_take_the_declared_type() -> None:
    checked = check_table(pd.DataFrame([reply(score=4, rank=1.0)]), RANKED_REPLIES)
    assert (str(checked["score"].dtype), str(checked["rank"].dtype)) == ("float64", "int64")


def test_missing_score_is_missing_and_not_zero() -> None:
    checked = check_table(pd.DataFrame([reply(score=None)]), RANKED_REPLIES)
    assert checked["score"].isna().all()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("score", 5.1),
        ("score", -0.1),
        ("score", float("inf")),
        ("rank", -1),
        ("rank", "first"),
        ("rank", None),
        ("split", "test"),
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("kind", None),
    ],
)
def test_value_that_breaks_the_schema_is_named_by_column(column: str, value: Any) -> None:
    problems = problems_of(RANKED_REPLIES, reply(), reply(text="other") | {column: value})
    assert all(problem.startswith(column) for problem in problems)


def test_fraction_where_a_whole_number_belongs_is_refused() -> None:
    assert problems_of(RANKED_REPLIES, reply(rank=1.5))


@pytest.mark.parametrize("column", [c for c in RANKED_REPLIES.columns if c != "rank"])
def test_missing_column_is_named(column: str) -> None:
    row = reply()
    del row[column]
    assert column in problems_of(RANKED_REPLIES, row)[0]


def test_repeated_key_is_refused() -> None:
    assert problems_of(RANKED_REPLIES, reply(), reply(rank=1))
    check_table(pd.DataFrame([reply(), reply(group_id="h")]), RANKED_REPLIES)


def test_many_violations_are_told_in_a_few_sentences() -> None:
    problems = problems_of(RANKED_REPLIES, *(reply(text=f"t{n}", score=9) for n in range(100)))
    assert 1 <= len(problems) <= 5


def test_pair_without_a_margin_is_refused() -> None:
    check_table(pd.DataFrame([pair()]), PREFERENCE_PAIRS)
    assert problems_of(PREFERENCE_PAIRS, pair(margin=0.0))
    check_table(pd.DataFrame([pair(margin=-1.0, rejected_for="loops")]), PREFERENCE_PAIRS)
    assert problems_of(PREFERENCE_PAIRS, pair(chosen_score=None))
    assert problems_of(PREFERENCE_PAIRS, pair(rejected="  "))


def test_a_positive_example_has_nothing_that_it_was_preferred_to() -> None:
    alone = dict.fromkeys(("rejected", "rejected_sample", "rejected_score", "rejected_finish_reason", "margin"))
    rows = [pair(strategy="positive_only", **alone), pair(strategy="positive_only", chosen_sample=2, **alone)]
    table = check_table(pd.DataFrame(rows), PREFERENCE_PAIRS)
    assert table["rejected_sample"].isna().all()
    assert problems_of(PREFERENCE_PAIRS, *rows, rows[0])


def test_broken_table_is_not_written_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(pd.DataFrame([reply()]), RANKED_REPLIES, path)
    with pytest.raises(TableError):
        write_table(pd.DataFrame([reply(score=9)]), RANKED_REPLIES, path)
    assert read_table(RANKED_REPLIES, path)["score"].tolist() == [4.5]


def test_missing_file_is_a_table_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="materialize"):
        read_table(RANKED_REPLIES, tmp_path / "t.parquet")


def test_file_of_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(pd.DataFrame([reply()]), RANKED_REPLIES, path)
    with pytest.raises(TableError, match="column missing"):
        read_table(JUDGED_SCORES, path)


@pytest.mark.parametrize("content", [b"", b"PAR1 torn"])
def test_file_that_is_no_parquet_is_a_table_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(TableError):
        read_table(RANKED_REPLIES, path)


def test_checking_does_not_change_the_given_table() -> None:
    table = pd.DataFrame([reply(score=4, surplus=1)])
    before = table.copy()
    check_table(table, RANKED_REPLIES)
    pd.testing.assert_frame_equal(table, before)
