"""Memory that fits: micro-batches are halved without changing what is learned, and too little names a setting."""

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import (
    DpoSettings,
    LoraSettings,
    ModelSettings,
    RewardModelSettings,
    SftSettings,
    load_settings,
)
from srlm_pipeline.config.training import obstacle
from srlm_pipeline.errors import DeviceMemoryError, SrlmError
from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
from srlm_pipeline.training.fitting import require_installed
from srlm_pipeline.training.sft import SftExample, train_sft

MODEL = ModelSettings(device="cpu", dtype="float32")
EXAMPLES = [SftExample(f"say {word}", word * 3) for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]
PAIRS = [PreferenceExample(f"task {n}", "yes yes yes", "no no no") for n in range(4)]
FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-2, "batch_size": 4, "warmup_ratio": 0.0, "epochs": 2}


def job(source: Path, work: Path, **model: Any) -> TrainingJob:
    return TrainingJob(source, MODEL.model_copy(update=model), 1, work, "training", NullProgress())


def sft(source: Path, work: Path, **changes: Any) -> TrainingRun:
    return train_sft(job(source, work), EXAMPLES, SftSettings(**FULL | changes))


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.loaded.model.named_parameters()}


def assert_same(one: TrainingRun, other: TrainingRun, tolerance: float = 1e-5) -> None:
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], rtol=0, atol=tolerance)


def run_out(patch: pytest.MonkeyPatch, when: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Let a trainer's memory run out at a step with so many rows; returns the steps that went well."""
    from transformers import Trainer

    plain, went_well = Trainer.training_step, []

    def step(trainer: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        done, rows = trainer.state.global_step, len(inputs["input_ids"])
        if when(done, rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        loss = plain(trainer, model, inputs, *more)
        went_well.append((done, rows))
        return loss

    patch.setattr(Trainer, "training_step", step)
    return went_well


@given(batch=st.integers(1, 4096))
def test_sizes_to_try_divide_the_batch_and_come_down_to_one(batch: int) -> None:
    sizes = SftSettings(batch_size=batch, micro_batch_size="auto").micro_batches()
    assert sizes[0] == batch and sizes[-1] == 1
    assert all(batch % size == 0 for size in sizes)
    assert all(2 * smaller <= larger for larger, smaller in pairwise(sizes))


@pytest.mark.parametrize("wrong", [0, -1, 3, "most", 1.5])
def test_a_micro_batch_is_a_divisor_or_auto(wrong: Any) -> None:
    with pytest.raises(ValueError, match="micro_batch_size"):
        SftSettings(batch_size=4, micro_batch_size=wrong)


@pytest.mark.slow
def test_auto_halves_until_it_fits_and_learns_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sft(tiny_model, tmp_path / "fixed", micro_batch_size=1)
    # The first step alone fits with two rows: what it made is kept, and the rest goes on with one.
    went_well = run_out(monkeypatch, lambda done, rows: rows > 2 or (rows == 2 and done == 2))
    found = sft(tiny_model, tmp_path / "auto", micro_batch_size="auto", save_every=1)
    assert went_well == [(0, 2)] * 2 + [(1, 2)] * 2 + [(2, 1)] * 4 + [(3, 1)] * 4
    assert_same(found, expected)
    assert [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()] == [
        f"training: the memory ran out with {size} examples per forward pass; going on with fewer" for size in (4, 2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, "auto"])
def test_too_little_memory_names_the_settings(
    size: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, lambda *_: True)
    with pytest.raises(DeviceMemoryError) as caught:
        sft(tiny_model, tmp_path, micro_batch_size=size)
    assert ("sft.micro_batch_size, now 2" in str(caught.value)) == (size == 2)
    for name in ("sft.gradient_checkpointing", "sft.method to lora", "sft.max_length, now 1024"):
        assert name in str(caught.value)


@pytest.mark.slow
def test_other_errors_are_left_alone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        sft(tiny_model, tmp_path, micro_batch_size="auto")


def test_writing_and_judging_name_their_setting(tiny_model: Path) -> None:
    loaded = load_model(tiny_model, MODEL)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, "digest", 3)
    text = engine.render("hello")

    def run_out(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    loaded.model.forward = run_out
    with pytest.raises(DeviceMemoryError, match=r"candidates.*now 3.*max_new_tokens"):
        engine.generate([GenerationRequest("a", text, 1)], Sampling(1.0, 1.0, 4))
    with pytest.raises(DeviceMemoryError, match=r"batch_size.*judge.*now 3"):
        engine.next_token_distribution([text], ["1", "2"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_changes_no_result(method: str, tiny_model: Path, tmp_path: Path) -> None:
    kept, again = (
        sft(tiny_model, tmp_path / str(chosen), method=method, gradient_checkpointing=chosen, lora=LoraSettings(rank=4))
        for chosen in (False, True)
    )
    assert_same(kept, again)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(attention: Any, tiny_model: Path, tmp_path: Path) -> None:
    def trained(name: str, **changes: Any) -> TrainingRun:
        settings = SftSettings(**FULL | {"epochs": 1, "max_length": 512} | changes)
        return train_sft(job(tiny_model, tmp_path / name, attention=attention), EXAMPLES, settings)

    # One step of all eight examples, each in a row of its own or all in one.
    apart = trained("apart", batch_size=8, micro_batch_size=8)
    packed = trained("packed", batch_size=1, micro_batch_size=1, packing=True)
    assert len([entry for entry in packed.history if "loss" in entry]) == 1
    assert packed.first("loss") == pytest.approx(apart.first("loss"), rel=1e-4)
    assert packed.first("grad_norm") == pytest.approx(apart.first("grad_norm"), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (SftSettings(optimizer="adamw_8bit"), r"sft\.optimizer: adamw_8bit needs .*bitsandbytes.*set it to adamw"),
        (DpoSettings(method="qlora"), r"dpo\.method: qlora needs .*bitsandbytes.*set it to lora"),
    ],
)
def test_a_missing_library_is_named_before_anything_is_loaded(
    settings: Any, sentence: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    train: Any = train_sft if isinstance(settings, SftSettings) else train_dpo
    examples: Any = EXAMPLES if isinstance(settings, SftSettings) else PAIRS
    with pytest.raises(SrlmError, match=sentence):
        train(job(tiny_model, tmp_path), examples, settings)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dpo": {"optimizer": "paged_adamw_8bit"}}, r"dpo\.optimizer: paged_adamw_8bit needs"),
        ({"model": {"attention": "flash_attention_2"}}, r"model\.attention: flash_attention_2 needs"),
    ],
)
def test_what_is_missing_is_said_before_a_run_begins(changes: dict[str, Any], sentence: str) -> None:
    require_installed(load_settings("quickstart"))
    with pytest.raises(SrlmError, match=sentence):
        require_installed(load_settings("quickstart", {"model": {"device": "cpu"}} | changes))


def test_flash_attention_is_refused_where_it_cannot_work(tiny_model: Path) -> None:
    with pytest.raises(SrlmError, match=r"model\.attention: flash_attention_2 needs .*set it to sdpa"):
        load_model(tiny_model, ModelSettings(device="cpu", attention="flash_attention_2"))


def test_settings_that_cannot_go_together() -> None:
    for alone in ({"packing": True}, {"micro_batch_size": "auto"}):
        assert obstacle(SftSettings(**alone), 1, "ddp") is None
        assert next(iter(alone)) in (obstacle(SftSettings(**alone), 2, "ddp") or "")
    with pytest.raises(ValueError, match=r"dpo\.reference seed"):
        DpoSettings(method="qlora", reference="seed")
    with pytest.raises(ValueError, match="the reward model"):
        RewardModelSettings(method="qlora")


@pytest.mark.slow
def test_adapters_learn_over_weights_in_four_bits(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # Its products on a CPU want widths of 64.
    wide = tmp_path / "wide"
    config = LlamaConfig.from_pretrained(
        tiny_model, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=64
    )
    LlamaForCausalLM(config).save_pretrained(wide)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(wide)
    settings = DpoSettings(
        method="qlora", learning_rate=2e-2, epochs=4, batch_size=4, micro_batch_size=2, lora=LoraSettings(rank=8)
    )
    run = train_dpo(job(wide, tmp_path), PAIRS, settings)
    assert run.loaded.model.dtype == torch.float32
    assert (run.final("rewards/margins") or 0) > 0.1
