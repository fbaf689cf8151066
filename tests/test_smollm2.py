"""The real embedded model: converted without a change, and once through generate, judge, pair and a DPO step."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from srlm_pipeline.config import DpoSettings, ModelSettings
from srlm_pipeline.generation.engine import GenerationRequest, Sampling, derive_seed
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.judging.judges import DistributionJudge, JudgeItem
from srlm_pipeline.models.checkpoint import read_checkpoint, save_checkpoint
from srlm_pipeline.models.embedded import convert_embedded_model, gguf_path
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.preference.pairs import select_best_worst
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.tables import JUDGED_SCORES, PREFERENCE_PAIRS, check_table
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.dpo import preference_examples, train_dpo

pytestmark = pytest.mark.slow

MODEL = ModelSettings(device="cpu")
PROMPTS = [
    "Name three things that float on water.",
    "Rewrite in the past tense: the ferry leaves at nine and arrives at noon.",
    "What is 17 plus 26?",
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_embedded_model(tmp_path_factory.mktemp("embedded") / "smollm2")


def test_the_converted_model_has_the_logits_of_the_file_in_the_wheel(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = gguf_path()
    original = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, original(ids).logits)


def test_a_converted_model_is_not_converted_again(smollm2: Path) -> None:
    weights = smollm2 / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert convert_embedded_model(smollm2) == smollm2
    assert weights.stat().st_mtime_ns == before


def test_once_through_generate_judge_pair_and_a_dpo_step(smollm2: Path, tmp_path: Path) -> None:
    loaded = load_model(smollm2, MODEL)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, "smollm2", 12)

    greedy = engine.generate([GenerationRequest("sum", engine.render(PROMPTS[0]), 1)], Sampling(max_new_tokens=48))
    assert greedy[0].finish_reason in ("stop", "length")
    assert len(greedy[0].text.split()) > 5, "it writes words"

    rows = [
        {"prompt_id": f"p{place}", "sample": sample, "prompt": prompt}
        for place, prompt in enumerate(PROMPTS)
        for sample in range(4)
    ]
    requests = [
        GenerationRequest(
            f"{row['prompt_id']}#{row['sample']}",
            engine.render(str(row["prompt"])),
            derive_seed(3, "test", str(row["prompt_id"]), int(str(row["sample"]))),
        )
        for row in rows
    ]
    completions = engine.generate(requests, Sampling(1.0, 0.95, 32))
    assert len({c.text for c in completions}) > len(PROMPTS), "samples of one prompt differ"

    judge = DistributionJudge(engine, "short")
    judged = judge.judge(
        [JudgeItem(c.key, str(row["prompt"]), c.text) for c, row in zip(completions, rows, strict=True)],
        NullProgress(),
    )
    assert all(j.score is not None and 0 < j.score < 5 for j in judged)
    scored = pd.DataFrame(rows).assign(
        completion=[c.text for c in completions],
        n_tokens=[c.n_tokens for c in completions],
        finish_reason=[c.finish_reason for c in completions],
        signs="",
        judge=judge.name,
        score=[j.score for j in judged],
        n_valid=[j.n_valid for j in judged],
        n_invalid=[j.n_invalid for j in judged],
        spread=[j.spread for j in judged],
        disagreement=None,
        passed=None,
        opinion=None,
        raw=[j.raw for j in judged],
    )
    pairs = select_best_worst(check_table(scored, JUDGED_SCORES)).pairs
    check_table(pairs, PREFERENCE_PAIRS)
    assert len(pairs) == len(PROMPTS)

    settings = DpoSettings(
        learning_rate=1e-3, warmup_ratio=0.0, epochs=1, batch_size=4, micro_batch_size=2, max_length=256
    )
    job = TrainingJob(smollm2, MODEL, 1, tmp_path / "work", "one step", NullProgress())
    run = train_dpo(job, preference_examples(pairs), settings)
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses == [pytest.approx(0.6931, abs=0.01)], "one step, from the reference itself"
    saved = save_checkpoint(run.loaded, tmp_path / "M2", "M2", "smollm2", {}, "float32")
    assert read_checkpoint(saved.path) == saved
    again = load_model(saved.path, ModelSettings(device="cpu", dtype="float32")).model
    before = load_model(smollm2, ModelSettings(device="cpu", dtype="float32")).model
    moved = (again.model.layers[0].mlp.up_proj.weight - before.model.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < moved.item() < 0.1
