"""Data in the layouts that people have: every recipe of docs/data.md on a few rows of its layout."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from srlm_pipeline.config import DataSettings, SourceSettings
from srlm_pipeline.data.conversations import join_turns, split_turns, transcript
from srlm_pipeline.data.loaders import LoadedTable, load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import DataError, EmptyDataError

DOCS = Path(__file__).parent.parent / "docs"
RECIPES = dict(
    re.findall(r"^### ([^\n]+)\n(?:(?!^### ).)*?```yaml\n(.*?)```", (DOCS / "data.md").read_text("utf-8"), re.M | re.S)
)

LOADS = {
    "ift": load_instructions,
    "ranked_replies": load_ranked_replies,
    "evaluation_prompts": load_evaluation_prompts,
}


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def shared(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": who, "value": text} for who, text in turns]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(loaded: LoadedTable) -> list[tuple[str, str]]:
    return list(zip(loaded.table["prompt"].map(transcript), loaded.table["response"], strict=True))


def rankings(loaded: LoadedTable) -> dict[str, list[str]]:
    ordered = loaded.table.sort_values("rank", kind="stable")
    return {transcript(prompt): own["text"].tolist() for prompt, own in ordered.groupby("prompt", sort=False)}


TURNS = (("human", "Name a prime."), ("gpt", "Seven."), ("human", "Another."), ("gpt", "Eleven."))
HISTORY = "User: Name a prime.\n\nAssistant: Seven.\n\nUser: Another."
IFT: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]], dict[str, int]]] = {
    "Alpaca": (
        [
            {"instruction": "Add.", "input": "2, 3", "output": "5", "text": "Below is an instruction ... 5"},
            {"instruction": "Name a prime.", "input": "", "output": "Seven.", "text": "Below is ..."},
        ],
        [("Add.\n\n2, 3", "5"), ("Name a prime.", "Seven.")],
        {},
    ),
    "Dolly": (
        [
            {"instruction": "Who won?", "context": "Ann beat Bo.", "response": "Ann.", "category": "closed_qa"},
            {"instruction": "Name a prime.", "context": "", "response": "Seven.", "category": "open_qa"},
        ],
        [("Who won?\n\nAnn beat Bo.", "Ann."), ("Name a prime.", "Seven.")],
        {},
    ),
    "ShareGPT": (
        [
            {"id": "a_0", "conversations": shared(*TURNS)},
            {"id": "a_1", "conversations": shared(("system", "Be brief."), ("human", "Why salt?"), ("gpt", "Taste."))},
            {"id": "a_2", "conversations": shared(("gpt", "Where was I?"), ("human", "Here."))},
            {"id": "a_3", "conversations": shared(("human", "2+3?"), ("function_call", "add(2, 3)"), ("gpt", "5"))},
        ],
        [("Name a prime.", "Seven."), (HISTORY, "Eleven."), ("Be brief.\n\nWhy salt?", "Taste.")],
        {
            "bad row: messages: expected the user's message and the assistant's reply first, "
            "after at most one system message": 1,
            "bad row: messages: calls of tools cannot be learned": 1,
        },
    ),
    "OpenAI fine-tuning": (
        [
            {
                "messages": said(
                    ("developer", "Be brief."),
                    ("user", [{"type": "text", "text": "Name a prime."}]),
                    ("assistant", "Seven."),
                    ("user", "Another."),
                    ("assistant", "Eleven."),
                )
            },
            {
                "messages": [
                    *said(("user", "2+3?")),
                    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                ]
            },
            {"messages": said(("user", "p"), ("assistant", None))},
        ],
        [(HISTORY.replace("Name", "Be brief.\n\nName"), "Eleven.")],
        {
            "bad row: messages: calls of tools cannot be learned": 1,
            "bad row: messages: a message without text": 1,
        },
    ),
    "TRL prompt and completion": (
        [
            {"prompt": "Why salt?", "completion": "Taste."},
            {"prompt": said(("user", "Name a prime.")), "completion": said(("assistant", "Seven."))},
            {"prompt": "Another.", "history": [["Name a prime.", "Seven."]], "completion": "Eleven."},
        ],
        [("Why salt?", "Taste."), ("Name a prime.", "Seven."), (HISTORY, "Eleven.")],
        {},
    ),
}
HH = "\n\nHuman: Name a prime.\n\nAssistant: Seven.\n\nHuman: Another.\n\nAssistant: "
CHAT = (("user", "Name a prime."), ("assistant", "Seven."))
RANKED: dict[str, tuple[list[dict[str, Any]], dict[str, list[str]], dict[str, int]]] = {
    "TRL chosen and rejected": (
        [
            {"prompt": "Why salt?", "chosen": "Taste.", "rejected": "Because."},
            {"chosen": said(*CHAT), "rejected": said(CHAT[0], ("assistant", "Eight."))},
            {
                "prompt": said(*CHAT, ("user", "Another.")),
                "chosen": said(("assistant", "Eleven.")),
                "rejected": said(("assistant", "Nine.")),
            },
            {"prompt": "p", "chosen": "the same", "rejected": "the same"},
            {"prompt": "p", "chosen": "something", "rejected": None},
        ],
        {"Why salt?": ["Taste.", "Because."], "Name a prime.": ["Seven.", "Eight."], HISTORY: ["Eleven.", "Nine."]},
        {
            "reply with the text of a better one": 1,
            "reply without text": 1,
            "prompt with fewer than two different replies": 2,
        },
    ),
    "UltraFeedback": (
        [
            {
                "source": "evol_instruct",
                "instruction": prompt,
                "completions": [
                    {"model": "b", "response": "bad", "overall_score": 2.0, "critique": "no"},
                    {"model": "g", "response": "good", "overall_score": 8.5, "critique": "yes"},
                    {"model": "o", "response": "ok", "overall_score": 5.0, "critique": "so"},
                ],
            }
            for prompt in ("Why salt?", "Name a prime.")
        ],
        {prompt: ["good", "ok", "bad"] for prompt in ("Why salt?", "Name a prime.")},
        {},
    ),
    "UltraFeedback, binarized": (
        [
            {
                "prompt": prompt,
                "prompt_id": f"{place:064x}",
                "chosen": said(("user", prompt), ("assistant", "good")),
                "rejected": said(("user", prompt), ("assistant", "bad")),
                "messages": said(("user", prompt), ("assistant", "good")),
                "score_chosen": 8.0,
                "score_rejected": 6.0,
            }
            for place, prompt in enumerate(("Why salt?", "Name a prime."))
        ],
        {"Why salt?": ["good", "bad"], "Name a prime.": ["good", "bad"]},
        {},
    ),
    "HelpSteer2": (
        [
            {"prompt": "Why salt?", "response": "bad", "helpfulness": 1, "correctness": 1, "verbosity": 4},
            {"prompt": "Why salt?", "response": "good", "helpfulness": 4, "correctness": 4, "verbosity": 1},
            {
                "prompt": "Name a prime.\n<extra_id_1>Assistant\nSeven.\n<extra_id_1>User\nAnother.",
                "response": "Eleven.",
                "helpfulness": 3,
            },
            {
                "prompt": "Name a prime.\n<extra_id_1>Assistant\nSeven.\n<extra_id_1>User\nAnother.",
                "response": "Nine.",
                "helpfulness": 0,
            },
            {"prompt": "Alone.", "response": "single", "helpfulness": 3},
        ],
        {"Why salt?": ["good", "bad"], HISTORY: ["Eleven.", "Nine."]},
        {"prompt with fewer than two different replies": 1},
    ),
    "HelpSteer2, preferences": (
        [
            {"prompt": "Why salt?", "response_1": "Because.", "response_2": "Taste.", "preference_strength": 2},
            {
                "prompt": "Name a prime.\n<extra_id_1>Assistant\nSeven.\n<extra_id_1>User\nAnother.",
                "response_1": "Eleven.",
                "response_2": "Nine.",
                "preference_strength": -1,
                "preference_statement": None,
            },
            {"prompt": "Alike.", "response_1": "one", "response_2": "other", "preference_strength": 0},
        ],
        {"Why salt?": ["Taste.", "Because."], HISTORY: ["Eleven.", "Nine."]},
        {"prompt with replies of which neither is preferred": 1},
    ),
    "HelpSteer3": (
        [
            {
                "domain": "general",
                "context": said(("user", "Name a prime.")),
                "response1": "Eight.",
                "response2": "Seven.",
                "overall_preference": 3,
            },
            {
                "domain": "stem",
                "context": said(*CHAT, ("user", "Another.")),
                "response1": "Eleven.",
                "response2": "Nine.",
                "overall_preference": -2,
            },
        ],
        {"Name a prime.": ["Seven.", "Eight."], HISTORY: ["Eleven.", "Nine."]},
        {},
    ),
    "Arena votes": (
        [
            {
                "question_id": f"q{place}",
                "model_a": "vicuna",
                "model_b": "koala",
                "winner": winner,
                "conversation_a": said(("user", prompt), ("assistant", "Eight.")),
                "conversation_b": said(("user", prompt), ("assistant", "Seven.")),
                "turn": 1,
                "language": "English",
            }
            for place, (prompt, winner) in enumerate(
                [("Name a prime.", "model_b"), ("Why salt?", "model_a"), ("Alike.", "tie (bothbad)")]
            )
        ]
        + [
            {
                "question_id": "q9",
                "winner": "model_a",
                "conversation_a": said(*CHAT, ("user", "Another."), ("assistant", "Eleven.")),
                "conversation_b": said(CHAT[0], ("assistant", "Eight."), ("user", "Another."), ("assistant", "Nine.")),
                "turn": 2,
            }
        ],
        {"Name a prime.": ["Seven.", "Eight."], "Why salt?": ["Eight.", "Seven."]},
        {
            "prompt with replies of which neither is preferred": 1,
            "bad row: replies: their conversations differ before the last message": 1,
        },
    ),
    "Nectar": (
        [
            {
                "prompt": f"\n\nHuman: {prompt}\n\nAssistant: ",
                "answers": [
                    {"answer": "bad", "model": "b", "rank": 3.0},
                    {"answer": "good", "model": "g", "rank": 1.0},
                    {"answer": "ok", "model": "o", "rank": 2.0},
                ],
                "turns": 1,
            }
            for prompt in ("Why salt?", "Name a prime.")
        ],
        {prompt: ["good", "ok", "bad"] for prompt in ("Why salt?", "Name a prime.")},
        {},
    ),
    "SHP": (
        [
            {
                "post_id": f"p{place}",
                "domain": "askscience_train",
                "history": prompt,
                "human_ref_A": "worse",
                "human_ref_B": "better",
                "labels": 0,
                "score_A": 3,
                "score_B": 120,
            }
            for place, prompt in enumerate(("Why salt?", "Name a prime."))
        ],
        {prompt: ["better", "worse"] for prompt in ("Why salt?", "Name a prime.")},
        {},
    ),
    "hh-rlhf": (
        [
            {"chosen": f"{HH}Eleven.", "rejected": f"{HH}Nine."},
            {
                "chosen": "\n\nHuman: Why salt?\n\nAssistant: Taste.",
                "rejected": "\n\nHuman: Why salt?\n\nAssistant: No.",
            },
            {"chosen": f"{HH}Eleven.", "rejected": "\n\nHuman: Something else.\n\nAssistant: Nine."},
            {"chosen": "\n\nHuman: Bye.", "rejected": "\n\nHuman: Bye.\n\nAssistant: Bye."},
        ],
        {HISTORY: ["Eleven.", "Nine."], "Why salt?": ["Taste.", "No."]},
        {
            "bad row: replies: their conversations differ before the last message": 1,
            "bad row: reply: the conversation does not end with the assistant's message": 1,
        },
    ),
    "A table": (
        [
            {"question": "Why salt?", "better": "Taste,\nsays she.", "worse": 'It is "so".'},
            {"question": "Name a prime.", "better": "Seven.", "worse": "Eight."},
        ],
        {"Why salt?": ["Taste,\nsays she.", 'It is "so".'], "Name a prime.": ["Seven.", "Eight."]},
        {},
    ),
}


def recipe(name: str, folder: Path, rows: list[dict[str, Any]]) -> DataSettings:
    """A recipe's settings, with a file of rows in place of its source."""
    data = yaml.safe_load(RECIPES[name])["data"]
    table = "ift" if name in IFT else "ranked_replies"
    source = data[table] if isinstance(data[table], dict) else {"source": data[table]}
    if str(source["source"]).endswith(".csv"):
        path = folder / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            table_writer = csv.DictWriter(file, list(rows[0]))
            table_writer.writeheader()
            table_writer.writerows(rows)
    else:
        path = Path(write(folder / "rows.jsonl", rows))
    return DataSettings.model_validate(data | {table: source | {"source": str(path)}})


def test_every_recipe_is_tried() -> None:
    assert set(RECIPES) == {*IFT, *RANKED}


@pytest.mark.parametrize("name", IFT)
def test_recipe_gives_pairs(name: str, tmp_path: Path) -> None:
    rows, expected, left_out = IFT[name]
    loaded = load_instructions(recipe(name, tmp_path, rows))
    assert pairs(loaded) == expected
    assert loaded.left_out == left_out
    assert loaded.table["id"].is_unique


@pytest.mark.parametrize("name", RANKED)
def test_recipe_gives_rankings(name: str, tmp_path: Path) -> None:
    rows, expected, left_out = RANKED[name]
    loaded = load_ranked_replies(recipe(name, tmp_path, rows))
    assert rankings(loaded) == expected
    assert loaded.left_out == left_out
    assert loaded.unread == ()


def test_parquet_gives_what_json_lines_do(tmp_path: Path) -> None:
    for name in ("UltraFeedback", "UltraFeedback, binarized", "Nectar"):
        rows, expected, _ = RANKED[name]
        data = recipe(name, tmp_path, rows)
        pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
        source = data.ranked_replies.model_copy(update={"source": str(tmp_path / "rows.parquet")})
        assert rankings(load_ranked_replies(data.model_copy(update={"ranked_replies": source}))) == expected


def test_scores_are_what_their_range_says_and_else_an_order_alone(tmp_path: Path) -> None:
    rows, _, _ = RANKED["UltraFeedback"]
    data = recipe("UltraFeedback", tmp_path, rows)
    scores = load_ranked_replies(data).table.set_index("text")["score"]
    assert scores["bad"].tolist() == pytest.approx([5 / 9, 5 / 9])
    source = data.ranked_replies.model_copy(update={"score_range": None})
    loaded = load_ranked_replies(data.model_copy(update={"ranked_replies": source}))
    assert rankings(loaded)["Why salt?"] == ["good", "ok", "bad"]
    assert loaded.table["score"].isna().all()
    narrow = source.model_copy(update={"score_range": (1.0, 8.0)})
    with pytest.raises(DataError, match=r"line 1: score: not between 1 and 8: 8\.5"):
        load_ranked_replies(data.model_copy(update={"ranked_replies": narrow}))


@pytest.mark.parametrize(
    ("turns", "asked", "learned"),
    [
        ("first", ["Name a prime."], [("Name a prime.", "Seven.")]),
        ("last", [HISTORY], [(HISTORY, "Eleven.")]),
        ("each", ["Name a prime.", HISTORY], [("Name a prime.", "Seven."), (HISTORY, "Eleven.")]),
    ],
)
def test_turns_are_chosen(tmp_path: Path, turns: str, asked: list[str], learned: list[tuple[str, str]]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"id": 1, "conversations": shared(*TURNS)}])
    source = {"source": path, "turns": turns}
    assert pairs(load_instructions(DataSettings(ift=source))) == learned
    assert load_instructions(DataSettings(ift=source)).left_out == (
        {"later reply of a chat (turns: first)": 1} if turns == "first" else {}
    )
    prompts = load_evaluation_prompts(DataSettings(evaluation_prompts=source)).table["prompt"]
    assert prompts.map(transcript).tolist() == asked


PAIR = {"chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}
# What public reports tell of, with what becomes of it: pairs or rankings, and what is left out and why.
REPORTED: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]], Any, dict[str, int]]] = {
    "the system prompt is lost (AngelSlim 345)": (
        "ift", {}, [{"system": "Be brief.", "conversations": shared(("human", "p"), ("gpt", "r"))}],
        [("Be brief.\n\np", "r")], {},
    ),
    "every chat is cut to its first two turns (aiperf 798)": (
        "ift", {"turns": "last"}, [{"conversations": shared(*TURNS)}], [(HISTORY, "Eleven.")], {},
    ),
    "an entry that is no object stops the whole file (aiperf 828)": (
        "ift", {},
        [{"conversations": ["x", *shared(*TURNS)]}, {"conversations": shared(("human", "p"), ("gpt", "r"))}],
        [("p", "r")],
        {"bad row: messages: expected a list of objects with role and content, or from and value": 1},
    ),
    "a chat ends with the user (ComparIA 285)": (
        "ift", {"turns": "last"}, [{"conversations": shared(("human", "p"), ("gpt", "r"), ("human", "open"))}],
        [("p", "r")], {},
    ),
    "roles with names of their own (LlamaFactory 2381)": (
        "ift", {},
        [{"conversations": shared(("hummany", "p"), ("gpt", "r"))},
         {"conversations": shared(("Human", "p"), ("GPT", "r"))}],
        [("p", "r")], {"bad row: messages: unknown role": 1},
    ),
    "one speaker twice in a row (LlamaFactory 2962)": (
        "ift", {"turns": "each"},
        [{"conversations": shared(("human", "p"), ("gpt", "r"), ("gpt", "and"), ("human", "q"))},
         {"conversations": shared(("human", "one"), ("human", "two"), ("gpt", "r"))},
         {"conversations": shared(("human", "q"), ("gpt", "r"))}],
        [("q", "r")],
        {"bad row: messages: user and assistant do not take turns": 1,
         "bad row: messages: expected the user's message and the assistant's reply first, "
         "after at most one system message": 1},
    ),
    "calls of tools (LlamaFactory 2529)": (
        "ift", {},
        [{"conversations": shared(("human", "p"), ("function_call", "f"), ("observation", "1"), ("gpt", "r"))},
         {"conversations": shared(("human", "p"), ("gpt", "r")), "tools": "[]"}],
        [("p", "r")], {"bad row: messages: calls of tools cannot be learned": 1},
    ),
    "thoughts in some replies of a chat (axolotl 3098)": (
        "ift", {"turns": "each"},
        [{"messages": said(("user", "p"), ("assistant", "r"), ("user", "q"), ("assistant", "<think>hm</think>s"))}],
        [("p", "r"), ("User: p\n\nAssistant: r\n\nUser: q", "<think>hm</think>s")], {},
    ),
    "a column for every part of a pair (LlamaFactory 4108)": (
        "ranked_replies", {"columns": {"prompt": "instruction"}},
        [{"instruction": p, "chosen": "good", "rejected": "bad"} for p in "pq"],
        {"p": ["good", "bad"], "q": ["good", "bad"]}, {},
    ),
    "a chat, and the two replies apart (LlamaFactory's ranked ShareGPT)": (
        "ranked_replies", {},
        [{"conversations": shared(("human", "p")), **PAIR}, {"conversations": shared(*TURNS[:3]), **PAIR}],
        {"p": ["good", "bad"], HISTORY: ["good", "bad"]}, {},
    ),
    "a chat that ends with a reply, and two others apart": (
        "ranked_replies", {},
        [{"conversations": shared(("human", p)), **PAIR} for p in "pq"] + [{"conversations": shared(*TURNS), **PAIR}],
        {"p": ["good", "bad"], "q": ["good", "bad"]},
        {"bad row: prompt: the conversation does not end with the user's message": 1},
    ),
    "a judge that calls a tie (langwatch 5100)": (
        "ranked_replies", {},
        [{"prompt": p, "replies": ["good", "bad"], "winner": w} for p, w in zip("pqt", ["A", "B", "tie"], strict=True)],
        {"p": ["good", "bad"], "q": ["bad", "good"]}, {"prompt with replies of which neither is preferred": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("report", REPORTED)
def test_data_as_in_public_reports(tmp_path: Path, report: str) -> None:
    table, source, rows, expected, left_out = REPORTED[report]
    path = write(tmp_path / "rows.jsonl", rows)
    loaded = LOADS[table](DataSettings.model_validate({table: {"source": path, **source}, "bad_rows": "skip"}))
    assert (pairs(loaded) if table == "ift" else rankings(loaded)) == expected
    assert loaded.left_out == left_out


def test_replies_that_were_left_out_of_a_training_are_history(tmp_path: Path) -> None:
    messages = said(*CHAT, ("user", "Another."), ("assistant", "Eleven."))
    messages[1]["weight"] = 0
    path = write(tmp_path / "rows.jsonl", [{"messages": messages}])
    assert pairs(load_instructions(DataSettings(ift={"source": path, "turns": "each"}))) == [(HISTORY, "Eleven.")]


def test_column_that_leads_to_someone_elses_message_is_refused(tmp_path: Path) -> None:
    rows = [{"conversations": shared(("system", "Be brief."), *TURNS)}]
    source = {
        "source": write(tmp_path / "rows.jsonl", rows),
        "columns": {"prompt": "conversations.0.value", "response": "conversations.1.value"},
    }
    with pytest.raises(DataError, match=r"line 1: column conversations\.0\.value: this is the system's message"):
        load_instructions(DataSettings(ift=source))
    source["columns"] = {"prompt": "conversations.1.value", "response": "conversations.2.value"}
    assert pairs(load_instructions(DataSettings(ift=source))) == [("Name a prime.", "Seven.")]


def test_paragraph_without_content_is_left_out_of_a_template(tmp_path: Path) -> None:
    rows = [{"q": "Add.", "c": text, "a": "5"} for text in ("2, 3", " ", None)]
    columns = {"prompt": r"{q}\n\nGiven:\n{c}", "response": "a"}
    source = {"source": write(tmp_path / "rows.jsonl", rows), "columns": columns}
    assert [prompt for prompt, _ in pairs(load_instructions(DataSettings(ift=source)))] == [
        "Add.\n\nGiven:\n2, 3",
        "Add.",
        "Add.",
    ]
    source["source"] = write(tmp_path / "rows.jsonl", [*rows, {"q": "Add.", "a": "5"}])
    with pytest.raises(DataError, match="line 4: columns: a template names a column that the row does not have: c"):
        load_instructions(DataSettings(ift=source))


def test_text_that_nothing_reads_is_named(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Who won?", "context": None, "response": "Ann.", "category": "closed_qa"},
        {"instruction": "Who won?", "context": "Ann beat Bo.", "response": "Ann.", "category": "closed_qa"},
    ]
    source = {"source": write(tmp_path / "rows.jsonl", rows), "columns": {"prompt": "instruction"}}
    loaded = load_instructions(DataSettings(ift=source))
    assert loaded.unread == ("context",)
    assert "column context of data.ift" in loaded.warning("ift")
    source["columns"] = {"prompt": "{instruction}\n\n{context}"}
    assert load_instructions(DataSettings(ift=source)).unread == ()


@pytest.mark.parametrize(
    ("table", "row", "advice"),
    [
        (
            "ift",
            {"instruction": "Add.", "input": "2", "output": "2"},
            r'prompt: "{instruction}\n\n{input}", response: o',
        ),
        ("ift", {"instruction": "Who?", "context": "", "response": "Ann."}, r'prompt: "{instruction}\n\n{context}"'),
        (
            "evaluation_prompts",
            {"instruction": "Add.", "input": "2", "output": "2"},
            r'{prompt: "{instruction}\n\n{input}"}',
        ),
        ("ranked_replies", {"instruction": "p", "completions": [{"response": "r"}]}, "completions.*.overall_score"),
        ("ranked_replies", {"prompt": "p", "answers": [{"answer": "r", "rank": 1}]}, "answers.*.rank"),
        ("ranked_replies", {"prompt": "p", "response": "r", "helpfulness": 1}, "{score: helpfulness}"),
        ("ranked_replies", {"history": "p", "human_ref_A": "a", "human_ref_B": "b"}, "[human_ref_A, human_ref_B]"),
        (
            "ranked_replies",
            {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 1},
            "preference: preference_strength",
        ),
        (
            "ranked_replies",
            {"context": [], "response1": "a", "response2": "b", "overall_preference": 1},
            "preference: overall_preference",
        ),
        ("ranked_replies", {"instruction": "p", "chosen": "a", "rejected": "b"}, "{prompt: instruction}"),
        ("ranked_replies", {"question": "p", "chosen": "a", "rejected": "b"}, "{prompt: question}"),
        (
            "ranked_replies",
            {"conversation_a": [], "conversation_b": [], "winner": "model_a"},
            "[conversation_a, conversation_b]",
        ),
    ],
)
def test_well_known_layout_without_a_recipe_gets_advice(
    tmp_path: Path, table: str, row: dict[str, Any], advice: str
) -> None:
    for bad_rows, error in (("fail", DataError), ("skip", EmptyDataError)):
        with pytest.raises(error, match=f"line 1: .*{re.escape(advice)}"):
            LOADS[table](DataSettings(**{table: write(tmp_path / "rows.jsonl", [row])}, bad_rows=bad_rows))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": ["instruction", "input"]}, "prompt: a list is for replies, ranks and scores; .* joins columns"),
        (
            {"replies": "completions.*.response"},
            "nothing says which is better; name ranks or scores",
        ),
        ({"winner": "vote", "ranks": ["a", "b"]}, "winner or preference orders replies alone"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SourceSettings.model_validate({"source": "x", "columns": columns})


def test_scores_order_replies_that_have_no_ranks(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "replies": [{"text": "bad", "score": 1}, {"text": "good", "score": 5}]},
        {
            "prompt": "b",
            "replies": [{"text": "one", "score": 3}, {"text": "other", "score": 3}, {"text": "x", "score": 0}],
        },
        {"prompt": "c", "replies": [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}]},
    ]
    table = load_ranked_replies(DataSettings(ranked_replies=write(tmp_path / "rows.jsonl", rows))).table
    assert dict(zip(table["prompt"] + table["text"], table["rank"], strict=True)) == {
        **{"abad": 1, "agood": 0},
        **{"bone": 0, "bother": 0, "bx": 1},
        **{"cgood": 0, "cbad": 1},
    }


@pytest.mark.parametrize("score_range", [None, [0, 10]])
@pytest.mark.parametrize(
    "columns",
    [
        {"scores": ["score_chosen", "score_rejected"]},
        {"replies": ["chosen", "rejected"], "ranks": ["first", "second"], "scores": ["score_chosen", "score_rejected"]},
    ],
)
def test_scores_that_contradict_what_was_chosen_break_a_row(
    tmp_path: Path, columns: dict[str, Any], score_range: Any
) -> None:
    row = {"chosen": "good", "rejected": "bad", "first": 1, "second": 2}
    scores = [(8, 6), (5, 5), (4, 7)]
    rows = [{"prompt": f"p{x}", **row, "score_chosen": x, "score_rejected": y} for x, y in scores]
    source = {"source": write(tmp_path / "rows.jsonl", rows), "columns": columns, "score_range": score_range}
    with pytest.raises(DataError, match="line 3: replies: one has a higher score than another that is ranked above it"):
        load_ranked_replies(DataSettings(ranked_replies=source))
    loaded = load_ranked_replies(DataSettings(ranked_replies=source, bad_rows="skip"))
    assert rankings(loaded) == {"p8": ["good", "bad"], "p5": ["good", "bad"]}


@pytest.mark.parametrize(
    ("column", "said_of_them", "expected"),
    [
        *(("winner", name, "one") for name in ("model_a", "A", "response_1", "Assistant A", "left", "first")),
        *(("winner", name, "two") for name in ("model_b", "b", "response 2", "assistant_b", "right", "Second")),
        *(("winner", name, None) for name in ("tie", "tie (bothbad)", "both_bad", "neither", "", None)),
        *(("winner", name, "expected model_a, model_b or tie") for name in (1, 0, "1", "gpt-4", "about", ["model_a"])),
        *(("preference", strength, "one") for strength in (-3, "-1", -0.5)),
        *(("preference", strength, "two") for strength in (1, "2", 0.5)),
        *(("preference", strength, None) for strength in (0, "0", None)),
        *(("preference", strength, "expected a number") for strength in ("model_a", True, float("nan"))),
    ],
)
def test_of_two_replies_a_column_says_which_is_better(
    tmp_path: Path, column: str, said_of_them: Any, expected: str | None
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "replies": [f"one {n}", f"two {n}"]} for n in range(2)]
    verdicts = [{column: "model_a" if column == "winner" else -1}, {column: said_of_them}]
    path = write(tmp_path / "rows.jsonl", [row | verdict for row, verdict in zip(rows, verdicts, strict=True)])
    chosen = DataSettings(ranked_replies=path, bad_rows="skip")
    if expected in ("one", "two"):
        assert rankings(load_ranked_replies(chosen))["p1"][0] == f"{expected} 1"
    else:
        with pytest.raises(EmptyDataError, match=expected or "1 prompt with replies of which neither is preferred"):
            load_ranked_replies(chosen)


def test_a_winner_says_nothing_of_three_replies_nor_of_ranked_ones(tmp_path: Path) -> None:
    ranked = [{"prompt": f"p{n}", "winner": "model_a", "chosen": "good", "rejected": "bad"} for n in range(2)]
    loaded = load_ranked_replies(DataSettings(ranked_replies=write(tmp_path / "rows.jsonl", ranked)))
    assert rankings(loaded) == {"p0": ["good", "bad"], "p1": ["good", "bad"]}
    three = write(tmp_path / "rows.jsonl", [{"prompt": "p", "winner": "model_a", "replies": ["a", "b", "c"]}])
    with pytest.raises(DataError, match="line 1: winner: says which of two replies is better, found 3"):
        load_ranked_replies(DataSettings(ranked_replies=three))


def test_equal_and_empty_replies_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "replies": ["good", " good ", "bad"]},
        {"prompt": "b", "replies": [{"text": "good"}, {"text": " "}, {"text": "bad"}]},
        {"prompt": "c", "replies": ["same", "same"]},
    ]
    loaded = load_ranked_replies(DataSettings(ranked_replies=write(tmp_path / "rows.jsonl", rows)))
    assert rankings(loaded) == {"a": ["good", "bad"], "b": ["good", "bad"]}
    assert loaded.left_out == {
        "reply with the text of a better one": 2,
        "reply without text": 1,
        "prompt with fewer than two different replies": 1,
    }


def test_ids_of_every_type_are_texts_and_made_ones_differ_from_them(tmp_path: Path) -> None:
    given_ids: list[Any] = [None, 2, 3.0, "x", float("nan"), "ift-00001"]
    rows = [{"id": key, "prompt": f"p{place}", "response": "r"} for place, key in enumerate(given_ids)]
    pairs_path = write(tmp_path / "rows.jsonl", rows)
    ids = load_instructions(DataSettings(ift=pairs_path)).table["id"].tolist()
    assert ids == ["ift-00001-2", "2", "3", "x", "ift-00005", "ift-00001"]
    write(tmp_path / "rows.jsonl", [*rows, {"id": "2", "prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match="line 7: id occurs more than once: '2'"):
        load_instructions(DataSettings(ift=pairs_path))


def test_evaluation_prompt_that_is_repeated_counts_once(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("How are you?", "how  are you?", "Why?")]
    loaded = load_evaluation_prompts(DataSettings(evaluation_prompts=write(tmp_path / "rows.jsonl", rows)))
    assert loaded.table["prompt"].tolist() == ["How are you?", "Why?"]
    assert loaded.left_out == {"prompt that occurs more than once": 1}


WORDS = st.text("ab \n\x1e", max_size=6)
CONTENT = st.one_of(
    *(st.none(), WORDS, st.integers(), st.floats(), st.booleans()),
    st.lists(st.one_of(WORDS, st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": WORDS}))),
)
MESSAGE = st.one_of(
    CONTENT,
    st.fixed_dictionaries(
        {
            "role": st.one_of(CONTENT, st.sampled_from(["user", "assistant", "system", "tool", "gpt"])),
            "content": CONTENT,
        },
        optional={"tool_calls": st.lists(WORDS), "from": WORDS, "weight": CONTENT},
    ),
)
TRANSCRIPT = st.lists(st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "<extra_id_1>User\n", "a", "\n"])).map("".join)
CHATS = st.lists(MESSAGE, max_size=4)
REPLY = st.one_of(CONTENT, TRANSCRIPT, CHATS, st.fixed_dictionaries({"text": CONTENT}, optional={"score": CONTENT}))
ROW = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.one_of(CONTENT, TRANSCRIPT, CHATS) for name in ("prompt", "response", "chosen", "rejected")},
        **dict.fromkeys(("messages", "conversations"), CHATS),
        **{name: st.one_of(CONTENT, st.lists(REPLY, max_size=3)) for name in ("replies", "ranks", "scores", "history")},
        **dict.fromkeys(("id", "kind", "score", "system", "reference", "preference"), CONTENT),
        "winner": st.one_of(CONTENT, st.sampled_from(["model_a", "model_b", "tie"])),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(
    st.lists(ROW, min_size=1, max_size=3),
    st.sampled_from(list(LOADS)),
    st.sampled_from(["first", "last", "each"]),
    st.sampled_from(["auto", "plain", "messages", "preferences", "rated_replies"]),
    st.sampled_from(
        [
            {},
            {"prompt": "{prompt}\n\n{system}"},
            {"replies": "messages.*.content", "scores": "messages.*.weight"},
            {"id": "prompt.0", "replies": ["chosen", "messages.0"], "ranks": ["score", "id"]},
        ]
    ),
    st.sampled_from([None, (1.0, 10.0)]),
)
def test_whatever_a_row_holds_it_is_read_or_named(
    tmp_path_factory: Any, rows: Any, table: str, turns: Any, written: Any, columns: Any, score_range: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSettings(source=str(path), format=written, turns=turns, columns=columns, score_range=score_range)
    try:
        loaded = LOADS[table](DataSettings(**{table: source}))
    except EmptyDataError as error:
        assert "fuzzed.jsonl" in str(error)
    except DataError as error:
        chats_cannot_be_ranked = error.line is None and "no ranked replies" in str(error)
        assert chats_cannot_be_ranked or error.line in range(1, len(rows) + 1)
        assert re.search(r"fuzzed\.jsonl(, line \d)?: .*\w", str(error))
    else:
        for prompt in loaded.table["prompt"]:
            assert len(split_turns(prompt)) % 2 == 1
            assert all(turn.strip() for turn in split_turns(prompt))


@given(st.lists(st.text(min_size=1).filter(lambda text: text.replace("\x1e", " ").strip()), min_size=1, max_size=7))
def test_turns_come_back_from_a_prompt_with_history(turns: list[str]) -> None:
    whole = turns if len(turns) % 2 else turns[:-1]
    if whole:
        assert split_turns(join_turns(whole)) == [turn.replace("\x1e", " ").strip() for turn in whole]
