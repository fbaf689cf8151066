"""Every row of docs/compatibility.md goes through a seed, an iteration and the reports, several rows in each loop."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from chat_server import ChatServer, chatting
from families import FAMILIES, Family, make_family
from test_layouts import IFT, RANKED, recipe
from test_server_manners import MANNERS

from srlm_pipeline.config import load_settings
from srlm_pipeline.data.conversations import transcript
from srlm_pipeline.definitions import defs
from srlm_pipeline.models.chat_format import chat_format
from srlm_pipeline.resources.table_io import SCHEMAS
from srlm_pipeline.store import ProjectStore, open_store
from srlm_pipeline.tables import read_table

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parent.parent / "docs" / "compatibility.md"
WINDOW = 2048
COPIES = 5
FILES = "JSON Lines, JSON, CSV, TSV, also `.gz` and `.zst`; Parquet"
TREES = "Open Assistant messages and trees"
# Rows of the page whose recipe in docs/data.md is called otherwise.
RECIPES = {
    "ShareGPT: `conversations` of `from`, `value`": "ShareGPT",
    "OpenAI: `messages` of `role`, `content`": "OpenAI fine-tuning",
    "TRL `prompt`, `completion`": "TRL prompt and completion",
    "TRL `prompt`, `chosen`, `rejected`": "TRL chosen and rejected",
}
SHAREGPT, OPENAI, COMPLETIONS, CHOSEN = RECIPES


@dataclass(frozen=True)
class Rows:
    """Rows of the page that one loop holds.

    Attributes:
        instructions: Layout of `ift`, and of `evaluation_prompts` where that can hold chats.
        ranked: Layout of `ranked_replies`.
        manner: Of the server that scores the candidates and decides the matches.
    """

    instructions: str
    ranked: str
    manner: str


LOOPS: dict[str, Rows] = {
    "Llama 2": Rows("Alpaca", "UltraFeedback", "TGI"),
    "Llama 3": Rows(SHAREGPT, "hh-rlhf", "OpenAI"),
    "Qwen2.5": Rows(OPENAI, "Nectar", "vLLM"),
    "Qwen3": Rows(COMPLETIONS, CHOSEN, "a reasoning model"),
    "Gemma": Rows("Dolly", "SHP", "Ollama"),
    "Mistral": Rows(TREES, TREES, "Mistral"),
    "Phi-3": Rows(FILES, FILES, "llama.cpp server"),
    "DeepSeek-R1": Rows(COMPLETIONS, "HelpSteer2", "TGI"),
    "SmolLM2": Rows("Alpaca", "UltraFeedback, binarized", "vLLM"),
    "SmolLM3": Rows(OPENAI, "HelpSteer2, preferences", "Ollama"),
    "GPT-OSS": Rows(SHAREGPT, "Arena votes", "OpenAI"),
    "ChatML on a base model": Rows("Dolly", "HelpSteer3", "llama.cpp server"),
}
# Run whenever the tests are: among them are one that thinks, one that insists on turns, and every manner but vLLM's.
ALWAYS = ("Llama 2", "Qwen3", "Gemma", "Mistral", "Phi-3", "GPT-OSS")
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "micro_batch_size": 2, "max_length": 256}
OVERRIDES: dict[str, Any] = {
    "model": {"device": "cpu", "dtype": "float32"},
    "sft": {**TRAINING, "enabled": True},
    "eft": {**TRAINING, "targets": "ranks", "min_prompts": 1, "max_length": 512, "mismatched_negatives": 0,
            "corrupted_negatives": 0},
    "prompt_generation": {
        "count": 4, "seed_examples": 1, "generated_examples": 1, "temperature": 1.0, "max_new_tokens": 24,
        "novelty_rouge_l": 1.0, "min_words": 1, "banned_words": [], "max_attempts_factor": 200, "batch_size": 16,
        "evolution": {"given": 0.5},
    },
    "candidates": {"per_prompt": 3, "temperature": 1.0, "max_new_tokens": 24, "batch_size": 16},
    "judge": {"mode": "distribution", "rubric": "short", "samples": 1, "batch_size": 16},
    "pairs": {"min_margin": 0.0, "length_control": 0.0, "unfit": "scored"},
    "dpo": TRAINING,
    "evaluation": {
        "max_new_tokens": 12, "bootstrap_samples": 100, "encoder": "none",
        "verifiable": {"limit": 2, "max_new_tokens": 8}, "closed_tasks": {"limit": 2, "max_new_tokens": 4},
    },
}  # fmt: skip


def rows_of_the_page() -> dict[str, list[str]]:
    """First cells of the page's tables, by what their columns are called."""
    found: dict[str, list[str]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *rows = (line.strip("|").split(" | ")[0].strip() for line in table.splitlines())
        found[head] = rows
    return found


def test_every_row_of_the_page_is_held_by_a_loop() -> None:
    rows, loops = rows_of_the_page(), LOOPS.values()
    assert set(rows["family"]) == set(LOOPS)
    assert set(rows["layout"]) == {layout for loop in loops for layout in (loop.instructions, loop.ranked)}
    assert set(rows["manner"]) == {loop.manner for loop in loops}


def write_words(family: Family) -> Callable[[Any, Any], None]:
    """Have a random model write short words: the first dimension, the same in every state, acts as a bias."""

    def change(model: Any, tokenizer: Any) -> None:
        import torch

        model.config.max_position_embeddings = WINDOW
        wanted = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1.5)
        wanted |= {"\u0120": 1.9, "\u2581": 1.9, family.turn_end: 1.9}
        wanted |= {"</think>": 2.1} if chat_format(tokenizer).opens_thought else {}
        known = tokenizer.get_vocab()
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[:, 0] = 0.1
                for token, weight in wanted.items():
                    if token in known:
                        layer.weight[known[token], 0] = weight

    return change


def thinking(family: Family) -> dict[str, Any]:
    """Settings; a random model that would have to write a header of seven tokens is told not to think."""
    silent = {"enabled": False} if len(family.thinking.end) > len("</think>") else {}
    return family.thinking.model_dump() | silent


def numbered(value: Any, n: int) -> Any:
    """A row as a data set would have it once more, about something else."""
    if isinstance(value, dict):
        ids = ("id", "prompt_id", "post_id", "question_id")
        return {key: f"{v}{n}" if key in ids else numbered(v, n) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(numbered(one, n) for one in value)
    return re.sub(r"Name a prime|Why salt|Add\.|Who won", rf"\g<0> {n}", value) if isinstance(value, str) else value


def from_recipe(layout: str, folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    """Settings of one source after its recipe, and what its rows shall give."""
    known = IFT if name == "ift" else RANKED
    rows, expected, _ = known[RECIPES.get(layout, layout)]
    folder.mkdir()
    copies = [numbered(row, n) for n in range(COPIES) for row in rows]
    source = getattr(recipe(RECIPES.get(layout, layout), folder, copies), name).model_dump(mode="json")
    if name == "ift":
        return source, [numbered(pair, n) for n in range(COPIES) for pair in expected]
    return source, {numbered(prompt, n): replies for n in range(COPIES) for prompt, replies in expected.items()}


def trees(folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    """Open Assistant's messages for instructions, its trees for ranked replies."""
    folder.mkdir()
    lines: list[Any] = []
    for n in range(2 * COPIES):
        common = {"lang": "en", "deleted": False, "review_result": True}
        said = [{**common, "message_id": f"{name}{n}-{rank}", "role": "assistant", "rank": rank, "text": text}
                for rank, text in enumerate(("Seven.", "Eight."))]  # fmt: skip
        asked = {**common, "message_id": f"{name}{n}", "role": "prompter", "text": f"{name}: a prime, no. {n}?"}
        if name == "ift":
            state = {"tree_state": "ready_for_export"}
            lines += [{**asked, **state, "parent_id": None, "rank": None}]
            lines += [{**reply, **state, "parent_id": asked["message_id"]} for reply in said]
        else:
            replies = [{**reply, "replies": []} for reply in said]
            lines += [{"message_tree_id": asked["message_id"], "tree_state": "ready_for_export",
                       "prompt": {**asked, "replies": replies}}]  # fmt: skip
    path = folder / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    prompts = [f"{name}: a prime, no. {n}?" for n in range(2 * COPIES)]
    expected = [(p, "Seven.") for p in prompts] if name == "ift" else {p: ["Seven.", "Eight."] for p in prompts}
    return {"source": str(path)}, expected


def files(folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    """A Parquet file of instructions, a table of ranked replies."""
    if name == "ranked_replies":
        return from_recipe("A table", folder, name)
    folder.mkdir()
    pairs = [(f"Name prime {n}.", "Seven.") for n in range(8)]
    pd.DataFrame(pairs, columns=["prompt", "response"]).to_parquet(folder / "rows.parquet")
    return {"source": str(folder / "rows.parquet")}, pairs


SPECIAL = {TREES: trees, FILES: files}


def read_source(layout: str, folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    return SPECIAL[layout](folder / name, name) if layout in SPECIAL else from_recipe(layout, folder / name, name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch) -> Path:
    """Where all loops keep what they make, each as a project of its own; one store of MLflow serves all."""
    path = tmp_path_factory.mktemp("home")
    environment.setenv("DAGSTER_HOME", str(path))
    return path


def run_loop(overrides: dict[str, Any], home: Path) -> ProjectStore:
    """Materialize a seed and one iteration; returns what it left."""
    with dg.DagsterInstance.ephemeral(str(home)) as instance:
        for job, partition in (("seed", None), ("iteration", "iter_001")):
            done = defs.resolve_job_def(job).execute_in_process(
                run_config={
                    "resources": {"project": {"config": {"overrides": overrides}}},
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                instance=instance,
                partition_key=partition,
                raise_on_error=False,
            )
            events = [event for event in done.all_events if event.is_failure]
            assert done.success, [str(event.event_specific_data)[:2000] for event in events]
    return open_store(load_settings(None, overrides))


def table(store: ProjectStore, asset: str) -> pd.DataFrame:
    once = store.table_path(asset)
    return read_table(SCHEMAS[asset], once if once.is_file() else store.table_path(asset, 1))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.exhaustive) for name in LOOPS]
)
def test_rows_of_the_page_go_through_a_loop(name: str, home: Path, tmp_path: Path) -> None:
    family, loop = FAMILIES[name], LOOPS[name]
    ift, pairs = read_source(loop.instructions, tmp_path, "ift")
    ranked, rankings = read_source(loop.ranked, tmp_path, "ranked_replies")
    asked = [{"prompt": f"What is {n} and {n}?"} for n in range(3)]
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    data = {"ift": ift, "ranked_replies": ranked, "evaluation_prompts": str(tmp_path / "asked.json"),
            "bad_rows": "skip", "ranked_share": 0.5}  # fmt: skip
    with chatting() as server:
        server.reply = MANNERS[loop.manner]
        outside = {"model": "judge", "server": {"base_url": server.address}}
        overrides = {
            **OVERRIDES,
            "model": {**OVERRIDES["model"], "thinking": thinking(family)},
            "project": re.sub(r"\W", "-", name),
            "base_model": str(make_family(family, tmp_path / "base", write_words(family))),
            "data": data,
            "judge": {**OVERRIDES["judge"], "panel": [outside]},
            "evaluation": {**OVERRIDES["evaluation"], "arbiters": [outside]},
        }
        store = run_loop(overrides, home)
    check_tables(store, pairs, rankings)
    check_models(store)
    check_reports(store, server)


def check_tables(store: ProjectStore, pairs: list[tuple[str, str]], rankings: dict[str, list[str]]) -> None:
    read = table(store, "ift_dataset")
    # A prompt that both could use is in one of the tables.
    assert set(zip(read["prompt"].map(transcript), read["response"], strict=True)) <= set(pairs)
    ordered = table(store, "ranked_replies").sort_values("rank", kind="stable")
    found = {transcript(prompt): own["text"].tolist() for prompt, own in ordered.groupby("prompt", sort=False)}
    assert found.items() <= rankings.items()
    assert {prompt for prompt, _ in pairs} | set(rankings) == set(found) | set(read["prompt"].map(transcript))
    written = table(store, "candidates")
    assert (written["completion"].str.strip() != "").any()
    assert not written["completion"].str.match(r"\s*<think>").any(), "no thought is in a reply"
    assert not written["completion"].str.contains("<|", regex=False).any(), "nor is a control token"
    assert table(store, "judged_scores")["score"].notna().any()
    assert len(table(store, "preference_pairs"))


def check_models(store: ProjectStore) -> None:
    m1, m2 = store.checkpoint("M1"), store.checkpoint("M2")
    assert m2.parent == m1.digest != m2.digest


def check_reports(store: ProjectStore, server: ChatServer) -> None:
    wins = table(store, "win_rates")
    assert wins["preference"].notna().any()
    page = (store.root / "reports" / "iter_001.html").read_text(encoding="utf-8")
    replies = (store.root / "reports" / "iter_001_replies.html").read_text(encoding="utf-8")
    assert "M2" in page and "judge: comparison" in page
    assert "What is 2 and 2?" in replies
    assert not any("<think>" in message for message in server.messages)
