"""Files, folders and hub datasets of every format become the same rows."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest

from srlm_pipeline.config import DataSettings, load_settings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import DataError

ROWS = [{"prompt": f"prompt {n}", "response": f"response {n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()
TABLE = b"prompt,response\r\n" + b"".join(f'"prompt {n}",response {n}\r\n'.encode() for n in range(3))


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def prompts(source: Any, **more: Any) -> list[str]:
    return load_instructions(DataSettings(ift=source, **more)).table["prompt"].tolist()


@pytest.fixture
def write(tmp_path: Path):
    def lines(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return lines


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a hub dataset, with the splits `train` and `test`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    pd.DataFrame(ROWS).to_parquet(folder / "train.parquet")
    pd.DataFrame(ROWS[:1]).to_parquet(folder / "test.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.txt", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("rows.json", LINES),
        ("rows.json", ARRAY),
        ("rows.json", b"\xef\xbb\xbf \n" + ARRAY),
        ("rows.json.gz", gzip.compress(ARRAY, mtime=0)),
        ("rows.jsonl.zst", zstd(LINES)),
        ("rows.json.zst", zstd(ARRAY)),
        ("rows.csv", TABLE),
        ("rows.csv", b"\xef\xbb\xbf" + TABLE),
        ("rows.tsv", TABLE.replace(b",", b"\t")),
        ("rows.csv.gz", gzip.compress(TABLE, mtime=0)),
        ("rows.tsv.zst", zstd(TABLE.replace(b",", b"\t"))),
        ("ROWS.JSONL", LINES),
        ("Rows.Json", ARRAY),
        ("ROWS.CSV", TABLE),
        ("ROWS.JSON.GZ", gzip.compress(ARRAY, mtime=0)),
    ],
)
def test_text_files_of_every_kind_give_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts(str(tmp_path / name)) == [row["prompt"] for row in ROWS]


def test_parquet_files_do_too(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert prompts(str(tmp_path / "rows.parquet")) == [row["prompt"] for row in ROWS]
    (tmp_path / "rows.parquet").rename(tmp_path / "ROWS.PARQUET")
    assert prompts(str(tmp_path / "ROWS.PARQUET")) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("name", ["rows.zip", "rows.jsonl.bz2", "Rows.XLSX", "rows.tar.gz", "rows.parquet.gz"])
def test_endings_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*(are not read: make it|unpack it)"):
        prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"prompt,response\na,b\nc\n", "row 2: the whole row: not as many cells as the header has names, 1 for 2"),
        (b"prompt,response\na,b\nc,d,e\n", "row 2: .*, 3 for 2"),
        (b"prompt,response\na,b\nc,\n", "row 2: response: "),
        (b"prompt;response\na;b\n", ": the names of the columns are not separated as in .csv or .tsv: prompt;response"),
        (b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("prompt,response\na,b\ncaf\xe9,d\n".encode("latin-1"), "not UTF-8: .*save the table as UTF-8"),
    ],
)
def test_broken_rows_of_tables_are_named(tmp_path: Path, table: bytes, reason: str) -> None:
    (tmp_path / "rows.csv").write_bytes(table)
    with pytest.raises(DataError, match=f"rows\\.csv.*{reason}"):
        prompts(str(tmp_path / "rows.csv"))


def test_a_cell_may_be_as_long_as_a_reply(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt,response\n{'a ' * 200_000},b\n")
    assert [len(prompt) for prompt in prompts(str(tmp_path / "rows.csv"))] == [399_999]


def test_broken_rows_of_arrays_and_parquet_files_are_named_by_row(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": None, "response": "r"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("rows.parquet", "rows.json"):
        with pytest.raises(DataError, match=f"{name}, row 4: prompt: "):
            prompts(str(tmp_path / name))
        assert len(prompts(str(tmp_path / name), bad_rows="skip")) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES, mtime=0)[:-12]),
        ("no.jsonl.gz", LINES),
        ("cut.json", ARRAY[:-3]),
        ("cut.json.gz", gzip.compress(ARRAY, mtime=0)[:-12]),
        ("no.parquet", LINES),
        ("cut.jsonl.zst", zstd(LINES)[:-4]),
        ("cut.json.zst", zstd(ARRAY)[:-4]),
        ("no.csv.zst", TABLE),
        ("cut.csv.gz", gzip.compress(TABLE, mtime=0)[:-12]),
    ],
)
@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
def test_damaged_file_is_refused_whatever_becomes_of_broken_rows(
    tmp_path: Path, name: str, content: bytes, bad_rows: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        prompts(str(tmp_path / name), bad_rows=bad_rows)


def test_dataset_is_loaded_with_its_split(dataset_folder: Path) -> None:
    assert prompts(str(dataset_folder)) == [row["prompt"] for row in ROWS]
    assert prompts({"source": str(dataset_folder), "split": "test"}) == ["prompt 0"]


@pytest.mark.parametrize("wrong", [{"split": "nowhere"}, {"subset": "nothing"}])
def test_split_or_subset_that_is_not_there_is_named(dataset_folder: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong.values()))):
        prompts({"source": str(dataset_folder)} | wrong)


def test_hub_that_cannot_be_reached_is_an_error_that_says_what_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, subset: str | None, split: str) -> None:
        assert (name, subset, split) == ("OpenAssistant/oasst1", None, "train")
        raise ConnectionError("no way out")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(DataError, match=r"OpenAssistant/oasst1: .*no way out.* local Parquet or JSONL file"):
        prompts("OpenAssistant/oasst1")


@pytest.mark.parametrize("name", ["data/ift.jsonl", "ift.parquet", "./ift", "/no/such/ift", "~/ift", "a/b/c"])
def test_what_looks_like_a_file_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", None)
    with pytest.raises(DataError, match="no such file"):
        prompts(name)


def test_columns_are_named_by_the_settings(write) -> None:
    path = write([{"instruction": "p", "answers": [{"text": "r"}], "nr": 7, "prompt": "not this one"}])
    columns = {"prompt": "instruction", "response": "answers.0.text", "id": "nr"}
    table = load_instructions(DataSettings(ift={"source": path, "columns": columns})).table
    assert table[["id", "prompt", "response"]].to_numpy().tolist() == [["7", "p", "r"]]


def test_ranked_replies_may_stand_in_columns_of_their_own(write) -> None:
    path = write([{"q": f"q{n}", "chosen": [{"content": "good"}], "rejected": [{"content": "bad"}]} for n in range(3)])
    columns = {"prompt": "q", "replies": ["chosen.0.content", "rejected.0.content"]}
    table = load_ranked_replies(DataSettings(ranked_replies={"source": path, "columns": columns})).table
    assert dict(zip(table["text"], table["rank"], strict=True)) == {"good": 0, "bad": 1}


def test_replies_may_be_plain_texts_best_first(write) -> None:
    path = write([{"prompt": f"p{n}", "replies": ["good", "bad"]} for n in range(3)])
    table = load_ranked_replies(DataSettings(ranked_replies=path)).table
    assert dict(zip(table["text"], table["rank"], strict=True)) == {"good": 0, "bad": 1}


def test_missing_column_is_named_with_those_that_are_there(write) -> None:
    path = write([{"instruction": "p", "response": "r"}])
    with pytest.raises(DataError, match=r"prompt: Field required; the row has instruction, response: .*columns"):
        prompts(path)
    with pytest.raises(DataError, match=r"prompt: Field required \(column question\)"):
        prompts({"source": path, "columns": {"prompt": "question"}})


def test_empty_columns_of_a_table_do_not_matter(tmp_path: Path) -> None:
    rows = [{"id": None, "kind": None, "prompt": "p", "response": "r"}, {"id": "x", "kind": "k", **ROWS[0]}]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    table = load_instructions(DataSettings(ift=str(tmp_path / "rows.parquet"))).table
    assert table["kind"].tolist() == ["", "k"]


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
LONG_CHAT = chat(("user", "p"), ("assistant", "r"), ("user", "p2"), ("assistant", None))


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (LONG_CHAT, ("p", "r")),
        (chat(("system", "Be brief. "), ("user", "p"), ("assistant", "r")), ("Be brief.\n\np", "r")),
        (LONG_CHAT | {"prompt": "not this one"}, ("p", "r")),
        (LONG_CHAT | {"prompt": "p3", "response": "r3"}, ("p3", "r3")),
        (chat(("developer", "Be brief."), ("User", "p"), ("Assistant", "r")), ("Be brief.\n\np", "r")),
        (
            chat(("user", [{"type": "text", "text": "p"}, {"type": "text", "text": "q"}]), ("model", "r")),
            ("p\n\nq", "r"),
        ),
        (chat(("user", "p"), ("assistant", "r")) | {"system": "Be brief."}, ("Be brief.\n\np", "r")),
    ],
)
def test_chat_gives_its_first_exchange(write, row: dict[str, Any], pair: tuple[str, str]) -> None:
    table = load_instructions(DataSettings(ift=write([row]))).table
    assert (table["prompt"][0], table["response"][0]) == pair


def test_chat_without_an_answer_gives_an_evaluation_prompt(write) -> None:
    table = load_evaluation_prompts(DataSettings(evaluation_prompts=write([chat(("user", "p"))]))).table
    assert table["prompt"].tolist() == ["p"]


def test_column_of_a_chat_is_named_by_the_settings(write) -> None:
    path = write([{"conversation": LONG_CHAT["messages"]}])
    assert prompts({"source": path, "columns": {"messages": "conversation"}}) == ["p"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(("assistant", "r"), ("user", "p")), "the user's message and the assistant's reply first"),
        (chat(("user", "p")), "the assistant's reply"),
        (chat(("user", "p"), ("user", "p"), ("assistant", "r")), "the assistant's reply"),
        (chat(("system", "s"), ("system", "s"), ("user", "p")), "at most one system message"),
        (chat(), "the assistant's reply"),
        (chat(("user", "p"), ("assistant", [{"type": "text"}])), "parts that are no text"),
        (
            chat(("user", "p"), ("assistant", [{"type": "image_url", "image_url": "x"}])),
            "parts that are no text.*image",
        ),
        (chat(("user", "p"), ("assistant", {"text": "r"})), "content to be text"),
        (chat(("user", "p"), ("assistant", " ")), "a message without text"),
        (chat(("user", "p"), ("assistant", None)), "a message without text"),
        (chat(("user", None), ("assistant", "r")), "a message without text"),
        (chat(("system", None), ("user", "p"), ("assistant", "r")), "a message without text"),
        (chat(("narrator", "p"), ("assistant", "r")), "unknown role 'narrator'"),
        (chat(("user", "p"), ("tool", "r"), ("assistant", "r")), "calls of tools"),
        ({"messages": [{"role": "user", "content": "p"}, CALL, {"role": "tool", "content": "3"}]}, "calls of tools"),
        ({"messages": "user: p"}, "list of objects"),
        ({"messages": ["p", "r"]}, "list of objects"),
    ],
)
def test_chat_that_does_not_begin_with_an_exchange_is_a_broken_row(write, row: dict[str, Any], reason: str) -> None:
    path = write([LONG_CHAT, row])
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        prompts(path)
    assert prompts(path, bad_rows="skip") == ["p"]


def test_chats_are_refused_as_ranked_replies(write) -> None:
    with pytest.raises(DataError, match="no ranked replies"):
        load_ranked_replies(DataSettings(ranked_replies=write([LONG_CHAT])))


def test_format_can_be_told(write) -> None:
    row = LONG_CHAT | {"prompt": "p3", "response": "r3"}
    assert prompts({"source": write([row]), "format": "messages"}) == ["p"]
    with pytest.raises(DataError, match="line 1: message_id: Field required"):
        prompts({"source": write([row]), "format": "open_assistant_messages"})


def blocks(language: str) -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("rows", blocks("json"))
def test_documented_rows_are_read(tmp_path: Path, rows: str) -> None:
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    loaded = load_evaluation_prompts(DataSettings(evaluation_prompts=str(tmp_path / "rows.jsonl")))
    assert len(loaded.table) + ("parent_id" in rows) == len(rows.splitlines()) == 2
    assert loaded.left_out == {}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_documented_settings_are_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert load_settings(tmp_path / "config.yaml").data != DataSettings()
