"""Ways round slow code of other libraries: what they lean on, and what happens where that is no longer there."""

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import masking_utils
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations import sdpa_attention
from trl.trainer import utils

from srlm_pipeline.acceleration import in_place, log_probabilities, shared_beginning
from srlm_pipeline.acceleration.allocation import HUGE_PAGES, KEPT_MEMORY
from srlm_pipeline.acceleration.caches import IN_PLACE, SHARED_BEGINNING
from srlm_pipeline.acceleration.log_probabilities import LOG_PROBABILITIES
from srlm_pipeline.acceleration.switch import SWITCH, Acceleration, _warn_once
from srlm_pipeline.commands.diagnosis import _acceleration
from srlm_pipeline.config import DpoSettings, LoraSettings, ModelSettings, SftSettings, load_settings
from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models import loading
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
from srlm_pipeline.training.sft import SftExample, train_sft

OF_LIBRARIES = (IN_PLACE, SHARED_BEGINNING, LOG_PROBABILITIES)
CPU = ModelSettings(device="cpu", dtype="float32")
TrlFunction = utils._ChunkedLogProbFunction
Upgrade = Callable[[pytest.MonkeyPatch], None]


class NewerTrlFunction(TrlFunction):  # type: ignore[misc]
    """TRL's function as another version might have it: with one parameter more."""

    @staticmethod
    def forward(ctx: Any, *args: Any, reduction: str = "none") -> Any:
        return TrlFunction.forward(ctx, *args)


def gone(owner: Any, name: str) -> Upgrade:
    return lambda patch: patch.delattr(owner, name)


def changed(owner: Any, name: str, value: Any) -> Upgrade:
    return lambda patch: patch.setattr(owner, name, value)


# What another version might be like, which ways it bars, and the name that the warning gives.
TRANSFORMERS_UPGRADES: dict[str, tuple[Upgrade, tuple[Acceleration, ...], str]] = {
    "no eager mask": (gone(masking_utils, "eager_mask"), (IN_PLACE,), "has no transformers.masking_utils.eager_mask"),
    "other attention": (
        changed(sdpa_attention, "sdpa_attention_forward", lambda module, queries, keys, values: None),
        (IN_PLACE,),
        "has another transformers.integrations.sdpa_attention.sdpa_attention_forward",
    ),
    "masks by positions": (
        changed(CacheLayerMixin, "get_mask_sizes", lambda self, cache_position: (0, 0)),
        (IN_PLACE, SHARED_BEGINNING),
        "has another transformers.cache_utils.CacheLayerMixin",
    ),
    "layers that can do more": (
        changed(CacheLayerMixin, "__abstractmethods__", CacheLayerMixin.__abstractmethods__ | {"rewind"}),
        (IN_PLACE, SHARED_BEGINNING),
        "has another transformers.cache_utils.CacheLayerMixin",
    ),
}
TRL_UPGRADES: dict[str, tuple[Upgrade, tuple[Acceleration, ...], str]] = {
    "no function": (
        gone(utils, "_ChunkedLogProbFunction"),
        (LOG_PROBABILITIES,),
        "has no trl.trainer.utils._ChunkedLogProbFunction",
    ),
    "other function": (
        changed(utils, "_ChunkedLogProbFunction", NewerTrlFunction),
        (LOG_PROBABILITIES,),
        "has another trl.trainer.utils._ChunkedLogProbFunction",
    ),
    "no choice": (gone(utils, "_use_triton"), (LOG_PROBABILITIES,), "has no trl.trainer.utils._use_triton"),
    "other choice": (
        changed(utils, "_use_triton", lambda device, dtype: False),
        (LOG_PROBABILITIES,),
        "has another trl.trainer.utils._use_triton",
    ),
}


@pytest.fixture(autouse=True)
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    _warn_once.cache_clear()


@pytest.mark.parametrize("acceleration", OF_LIBRARIES, ids=lambda acceleration: acceleration.name)
def test_the_installed_version_has_all_that_is_leant_on(acceleration: Acceleration) -> None:
    assert acceleration.obstacle("cpu") is None


@pytest.mark.parametrize("upgrade", [*TRANSFORMERS_UPGRADES, *TRL_UPGRADES])
def test_another_version_is_named_once_and_its_own_way_taken(
    upgrade: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    apply, barred, named = (TRANSFORMERS_UPGRADES | TRL_UPGRADES)[upgrade]
    apply(monkeypatch)
    for acceleration in [*OF_LIBRARIES, *OF_LIBRARIES]:
        assert acceleration.in_use("cpu") == (acceleration not in barred)
    library = barred[0].library
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(barred)
    for acceleration, record in zip(barred, caplog.records, strict=True):
        said = record.getMessage()
        assert said.startswith(f"{library} {metadata.version(library)} {named}")
        assert acceleration.name in said


def test_by_wish_and_on_other_devices_nothing_is_asked_of_a_library_and_nothing_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(utils, "_use_triton")
    assert not LOG_PROBABILITIES.in_use("cuda")
    monkeypatch.setenv(SWITCH, "1")
    assert not LOG_PROBABILITIES.in_use("cpu")
    assert not caplog.records


def written_and_judged(folder: Path) -> tuple[list[str], list[float]]:
    """What an engine makes of texts with a long common beginning: words, and probabilities of two options."""
    loaded = load_model(folder, CPU)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, "digest", batch_size=3)
    prompts = [engine.render(f"a beginning that is long enough to be shared, and {end}") for end in ("a", "bc", "def")]
    requests = [GenerationRequest(str(place), prompt, place) for place, prompt in enumerate(prompts * 2)]
    words = [completion.text for completion in engine.generate(requests, Sampling(1.0, 1.0, 70))]
    return words, engine.next_token_distribution(prompts, ["a", "b"]).ravel().tolist()


@pytest.mark.parametrize("upgrade", TRANSFORMERS_UPGRADES)
def test_with_another_transformers_the_engine_gives_the_same(
    tiny_model: Path, upgrade: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, probabilities = written_and_judged(tiny_model)
    apply, barred, _ = TRANSFORMERS_UPGRADES[upgrade]
    apply(monkeypatch)
    for acceleration, module in ((IN_PLACE, in_place), (SHARED_BEGINNING, shared_beginning)):
        if acceleration in barred:
            # Importing it would fail, as it might with that version.
            monkeypatch.setitem(sys.modules, module.__name__, None)
    own_words, own_probabilities = written_and_judged(tiny_model)
    assert own_words == words
    assert own_probabilities == pytest.approx(probabilities, rel=1e-4)


def trained(stage: str, method: str, folder: Path, work: Path) -> list[float]:
    """Losses and norms of the gradients, step by step."""
    common: dict[str, Any] = {
        "method": method,
        "lora": LoraSettings(rank=8, alpha=16),
        "learning_rate": 1e-3,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_length": 256,
        "epochs": 2,
    }
    words = ("ab", "cd", "ef", "gh")
    job = TrainingJob(folder, CPU, 1, work, "", NullProgress())
    if stage == "sft":
        examples = [SftExample(f"say {word}", word * n) for n, word in enumerate(words, 2)]
        run = train_sft(job, examples, SftSettings(**common))
    else:
        pairs = [PreferenceExample(f"say {word}", word * n, "no " * n) for n, word in enumerate(words, 2)]
        run = train_dpo(job, pairs, DpoSettings(**common))
    return [entry[name] for entry in run.history if "loss" in entry for name in ("loss", "grad_norm")]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_training_has_the_same_losses_and_gradients_in_every_way(
    tiny_model: Path, tmp_path: Path, stage: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[int] = []
    ours = log_probabilities.token_log_probabilities
    monkeypatch.setattr(log_probabilities, "token_log_probabilities", lambda *args: replaced.append(1) or ours(*args))
    quick = trained(stage, method, tiny_model, tmp_path / "quick")
    assert replaced
    replaced.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        plain = trained(stage, method, tiny_model, tmp_path / "plain")
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", NewerTrlFunction)
    upgraded = trained(stage, method, tiny_model, tmp_path / "upgraded")
    assert not replaced
    assert plain == pytest.approx(quick, rel=1e-3)
    assert upgraded == pytest.approx(plain, rel=1e-6)


def test_the_doctor_says_what_is_in_use_and_what_is_not_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("quickstart", {"model": {"device": "cpu"}})
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    said = _acceleration(settings)
    assert said.startswith(", ".join(acceleration.name for acceleration in OF_LIBRARIES))
    assert said.endswith("; not in use (THP_MEM_ALLOC_ENABLE is not 1): huge pages")
    monkeypatch.delattr(utils, "_use_triton")
    assert (
        f"not in use (trl {metadata.version('trl')} has no trl.trainer.utils._use_triton): {LOG_PROBABILITIES.name}"
        in _acceleration(settings)
    )
    monkeypatch.setattr(loading, "choose_device", lambda wish: "cuda:1")
    others = ", ".join(a.name for a in (IN_PLACE, LOG_PROBABILITIES, KEPT_MEMORY, HUGE_PAGES))
    assert _acceleration(settings) == f"{SHARED_BEGINNING.name}; not in use (models run on cuda): {others}"
    monkeypatch.setenv(SWITCH, "1")
    assert _acceleration(settings).startswith(f"none; not in use (switched off by {SWITCH}): {IN_PLACE.name}")
