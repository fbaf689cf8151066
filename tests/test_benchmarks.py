"""What the benchmarks rest on: baselines that compute the same, work counted right, tables rendered right."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import corpus
from benchmarks.__main__ import BENCHMARKS
from benchmarks.baselines import PlainGenerator, plain_nearest, plain_rouge_l, words
from benchmarks.common import Bench, StepClock, Verdict, number, options, parse, ratios, spread
from benchmarks.judging import needed
from benchmarks.judging_rubrics import (
    TOLD,
    CountingEngine,
    Record,
    contenders,
    distinct_tokens,
    in_turn,
    judged,
    kinds_measured,
    render,
)
from benchmarks.loss_curves import mean_difference
from benchmarks.table import DOCUMENT, MISSING, fill, markdown_table
from benchmarks.work import Limits, ModelSize
from srlm_pipeline.judging.kinds import ToldKind
from srlm_pipeline.prompting.filters import NoveltyIndex

ROOT = Path(__file__).parent.parent
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "Straße", "d,"]), min_size=1, max_size=9).map(" ".join)


@given(TEXTS, st.lists(TEXTS, max_size=5))
def test_the_plain_rouge_l_agrees_with_the_novelty_index(text: str, known: list[str]) -> None:
    assert plain_nearest(text, known) == pytest.approx(NoveltyIndex(known).nearest(text))


def test_rouge_l_of_a_known_example_and_of_nothing() -> None:
    assert plain_rouge_l(words("The cat sat on the mat."), words("The dog sat on a mat.")) == pytest.approx(8 / 12)
    assert plain_rouge_l([], ["word"]) == 0.0


@pytest.mark.slow
def test_the_forward_formula_counts_what_torch_counts(tiny_model: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = PlainGenerator(tiny_model, "float32", "cpu").model
    size = ModelSize.of(model)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.ones(3, 7, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"]
    # Products of matrices with weights; those of attention are batched, and left out of the formula.
    assert counted[torch.ops.aten.mm] == size.forward_flops(tokens=21, predictions=21)


@pytest.mark.slow
def test_the_training_formula_counts_what_torch_counts(tiny_model: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    model = PlainGenerator(tiny_model, "float32", "cpu").model
    size = ModelSize.of(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    # As in training with gradient checkpointing: otherwise the lowest layer need not pass anything down.
    adapted.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        adapted(torch.ones(3, 7, dtype=torch.long)).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    assert counted[torch.ops.aten.mm] == size.training_flops(tokens=21, predictions=21, rank=4)


@pytest.mark.slow
def test_plain_generation_counts_each_row_up_to_its_own_end(tiny_model: Path) -> None:
    generator = PlainGenerator(tiny_model, "float32", "cpu")
    prompts = ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>assistant\n"]
    replies = generator.generate(prompts, 8, 12, 8, seed=1, temperature=1.0)
    assert [len(own) for own in replies] == [8, 8]
    counts = {reply.n_tokens for own in replies for reply in own}
    assert max(counts) == 12
    assert min(counts) < 12
    for reply in (reply for own in replies for reply in own):
        # Every token is one byte; the end token, which is counted, leaves no text.
        assert len(reply.text.encode()) == reply.n_tokens - (reply.n_tokens < 12) or reply.n_tokens == 12


SIZE = ModelSize(body=100, head=50, cached=4, linear=30)


def test_weights_are_read_once_for_the_rows_of_a_batch_and_the_cache_for_each_row() -> None:
    weights = 2 * (100 + 50) * 3
    cache = 2 * 4 * (10 + 11 + 12)
    assert SIZE.decoding_bytes([(10, 3)], batch_size=2) == weights + cache
    assert SIZE.decoding_bytes([(10, 3), (10, 3)], batch_size=2) == weights + 2 * cache
    assert SIZE.decoding_bytes([(10, 3), (10, 3)], batch_size=1) == 2 * weights + 2 * cache


def test_the_limit_is_whichever_of_arithmetic_and_memory_takes_longer() -> None:
    limits = Limits(bf16_flops=100.0, f32_flops=1.0, bandwidth=10.0)
    assert limits.seconds(200.0) == 2.0
    assert limits.seconds(200.0, moved=10.0) == 2.0
    assert limits.seconds(200.0, moved=50.0) == 5.0
    rows = [(10, 3)]
    reading = 2 * 100 * 10 / 100
    writing = max(2 * 150 * 3 / 100, SIZE.decoding_bytes(rows, 1) / 10)
    assert SIZE.writing_seconds(rows, 10, 1, limits) == reading + writing


def test_what_all_prompts_begin_with_is_read_once() -> None:
    assert needed([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]]) == 2 + 2 + 1 + 1
    assert needed([[7], [8, 9]]) == 3


def test_verdicts_hold_the_median_against_the_target() -> None:
    assert Verdict("", [4.0, 5.0, 9.0], 5.0).met
    assert not Verdict("", [4.0, 4.9, 9.0], 5.0).met
    assert Verdict("", [4.0, 4.9, 9.0], 5.0, "%", at_least=False).met


def test_figures_are_rounded_for_people() -> None:
    assert [number(value) for value in (12345.6, 45.67, 3.456, 0.01234)] == ["12,346", "45.7", "3.46", "0.0123"]
    assert spread([2.0]) == "2"
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert ratios([6.0, 8.0], [3.0, 2.0]) == [2.0, 4.0]
    assert mean_difference([1.0, 2.0], [1.5, 1.0]) == 0.75


def test_steps_after_the_warm_up_are_timed_and_the_whole_from_the_call() -> None:
    clock = StepClock(started=0.0, ends=[10.0, 15.0, 17.0, 19.0])
    assert clock.step_seconds(warm_up=2) == 2.0
    assert clock.whole_seconds == 19.0


def test_recombined_prompts_are_as_many_as_asked_for_and_all_different(tmp_path: Path) -> None:
    made = corpus.prompts(tmp_path, 500, seed=1)
    assert len(set(made)) == len(made) == 500
    assert made == corpus.prompts(tmp_path, 500, seed=1)
    assert set(corpus.real_prompts(tmp_path)) <= set(made)


def test_replies_are_longer_than_what_they_are_cut_to(tmp_path: Path) -> None:
    folder = tmp_path / "oasst"
    folder.mkdir()
    rows = [{"prompt": f"prompt {n}", "response": f"reply {n}"} for n in range(3)]
    (folder / "ift_pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = corpus.exchanges(tmp_path, 5, tokens=100, seed=1)
    assert len(made) == 5
    assert all(len(exchange.reply) > 100 * 4 for exchange in made)


def result(name: str = "generation", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "date": "2025-01-02T03:04:05+00:00",
        "commit": "abc",
        "arguments": {"repetitions": "3"},
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "threads": 2,
            "memory_gib": 24,
            "system": "Linux",
            "python": "3.11",
            "device": "cpu",
            "load_average": 0.1,
        },
        "limits": {"bf16_flops": 4e11, "f32_flops": 1e11, "bandwidth": 3e10},
        "versions": {"torch": "2"},
        "measurements": [{"name": "ours", "unit": "t/s", "values": [3.0, 1.0, 2.0], "limit_share": 0.5, "note": "a|b"}],
        "verdicts": [
            {"what": "ratio", "values": [6.0], "target": 5.0, "unit": "x", "at_least": True, "met": True},
            {"what": "share", "values": [7.0], "target": 5.0, "unit": "%", "at_least": False, "met": False},
        ],
        "notes": ["a note"],
        "series": {"columns": ["step", "loss"], "rows": [["1", "0.5"]]},
        **changes,
    }


TEMPLATE = "before\n<!-- begin:{0} -->\nold\n<!-- end:{0} -->\nafter\n"


def test_a_block_is_filled_and_what_is_around_it_is_kept() -> None:
    filled = fill(TEMPLATE.format("generation"), [result()])
    assert filled.startswith("before\n<!-- begin:generation -->\n")
    assert filled.endswith("<!-- end:generation -->\nafter\n")
    assert "old" not in filled
    assert "| ours | 2 (1 to 3) | t/s | 50% | a\\|b |" in filled
    assert "| 1 | 0.5 |" in filled
    assert "a note" in filled
    assert fill(filled, [result()]) == filled, "filling again changes nothing"


def test_a_block_without_a_result_says_so() -> None:
    assert MISSING in fill(TEMPLATE.format("judging"), [result()])
    assert MISSING in fill(TEMPLATE.format("ratios"), [])


def test_the_overview_says_what_was_met_and_what_was_missed() -> None:
    filled = fill(TEMPLATE.format("ratios"), [result("loss_curves")])
    assert "| [loss_curves](#loss-curves) | ratio | 6 x | ≥ 5 x | met |" in filled
    assert "| [loss_curves](#loss-curves) | share | 7 % | ≤ 5 % | **missed** |" in filled


def test_the_machine_is_described_once_and_its_limits_for_each_benchmark() -> None:
    filled = fill(TEMPLATE.format("machine"), [result("one"), result("two")])
    assert filled.count("a processor") == 1
    assert filled.count("400 GFLOP/s in bfloat16") == 2


def test_tables_have_a_line_for_columns_and_one_for_each_row() -> None:
    assert markdown_table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_the_document_has_a_block_and_a_heading_for_every_benchmark() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (*BENCHMARKS, "ratios", "machine"):
        assert text.count(f"<!-- begin:{name} -->") == text.count(f"<!-- end:{name} -->") == 1, name
    for name in BENCHMARKS:
        assert f"\n## {name.replace('_', '-')}\n" in text, "the overview links there"


@pytest.mark.slow
def test_a_finished_benchmark_can_be_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.common.SMOKE_RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.common.measure_limits", lambda device: Limits(2.0, 1.0, 1.0))
    bench = Bench("novelty", "A title", parse(options("A title"), ["--smoke"], {}))
    bench.finish([], [Verdict("ratio", [2.0], 1.0)])
    (written,) = tmp_path.glob("*.json")
    loaded = json.loads(written.read_text(encoding="utf-8"))
    assert loaded["smoke"]
    assert "| ratio | 2 x | ≥ 1 x | met |" in fill(TEMPLATE.format("ratios"), [loaded])


@pytest.mark.parametrize("name", [*BENCHMARKS, "judging_rubrics", "table"])
def test_help_needs_no_heavy_import(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    heavy = {"torch", "transformers", "trl", "dagster", "mlflow", "pandas"}
    assert not heavy & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_what_any_texts_begin_with_is_read_once() -> None:
    assert distinct_tokens([[1, 2, 3], [1, 2, 4], [5], [1, 2, 3]]) == 5
    assert distinct_tokens([[1, 2], [1, 2, 3]]) == 3
    assert distinct_tokens([]) == 0


def test_prompts_are_taken_of_all_kinds_in_turn() -> None:
    prompts = pd.DataFrame({"kind": list("aaabbc"), "group_id": list("uvwxyz")})
    assert list(in_turn(prompts, 4)["group_id"]) == ["u", "x", "z", "v"]
    assert sorted(in_turn(prompts, None)["group_id"]) == list("uvwxyz")


def test_kinds_are_measured_with_the_most_frequent_errors() -> None:
    told = [ToldKind("code", {}), ToldKind("code", {}), ToldKind("translation", {}), ToldKind(None, {})]
    found = kinds_measured(["code", "planning", "rewriting", "rewriting"], told)
    # Rewriting and translation share a rubric; no kind has the general one.
    assert (found["right"], found["right_rubric"], found["prompts"]) == (1, 2, 4)
    assert {"label": "rewriting", "told": "none", "prompts": 1} in found["errors"]


def weigh_grades(prefix: str) -> list[float]:
    """Answers whatever is asked by the grade that stands in the reply; by the short rubric the other way round."""
    if "letter of the kind" in prefix:
        return [0.9, *[0.0] * 13]
    grade = int(prefix.split("grade=")[1][0])
    if "Yes or No" in prefix:
        return [grade / 5, 1 - grade / 5]
    likely = 5 - grade if "Grade the response to the question from 0" in prefix else grade
    return [float(score == likely) for score in range(6)]


def test_rubrics_are_compared_by_the_same_replies_and_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.judging_rubrics.SMOKE_RESULTS", tmp_path)
    columns = ["group_id", "prompt", "kind", "rank", "text"]
    groups = [("g1", "prompt 1", "code"), ("g2", "prompt 2", "planning")]
    rows = [(*group, rank, f"grade={3 - rank}") for group in groups for rank in range(3)]
    ranked = pd.DataFrame(rows, columns=columns)

    def engine() -> CountingEngine:
        return CountingEngine(FakeEngine(lambda _: " say why?", weigh_grades), lambda text: text.encode())

    record = Record(argparse.Namespace(smoke=True, model=None, device="cpu", split="all"), 2, 6)
    for name, make in contenders().items():
        record.add(name, judged(make, engine(), ranked, with_kinds=name != TOLD, device="cpu"), ranked)
    record.add_kinds([("a", "code"), ("b", "planning")], engine())
    found = json.loads(record.path.read_text(encoding="utf-8"))
    rubrics = found["rubrics"]
    pairwise = {name: r["accuracy"]["pairwise_accuracy"] for name, r in rubrics.items()}
    assert pairwise == {name: float(name != "short") for name in contenders()}
    assert rubrics["checklist"]["beyond_short"]["value"] == 1.0
    assert rubrics["checklist"]["tokens_written"] == 5 * 2 / 6
    assert rubrics[TOLD]["tokens_read"] > rubrics["by kind, as labelled"]["tokens_read"]
    assert rubrics["additive"]["by_kind"] == {"code": 1.0, "planning": 1.0}
    assert 0 < rubrics["checklist"]["general_share"] < 1
    text = render(found)
    assert "| checklist | 100.0% (100.0% to 100.0%) |" in text
    assert "planning taken for" in text
    unfinished = render({**found, "kinds": {}, "rubrics": {"short": rubrics["short"]}})
    assert "| short | 0.0%" in unfinished
    assert "Kinds: " not in unfinished
