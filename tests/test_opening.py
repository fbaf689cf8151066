"""Which engine is chosen, and what `srlm doctor` says of it."""

from pathlib import Path
from typing import Any

import pytest
from chat_server import Trouble, chatting
from completion_server import serving

from srlm_pipeline.commands.diagnosis import _arbiters, _encoder, _engine, _other_models
from srlm_pipeline.config import EngineSettings, ModelSettings, Settings, load_settings
from srlm_pipeline.errors import ModelError, ServerError
from srlm_pipeline.generation.openai_engine import OpenAIEngine
from srlm_pipeline.generation.opening import choose_engine, open_engine
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.generation.vllm_engine import VllmEngine
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_model


@pytest.mark.parametrize(
    ("device", "installed", "engine", "kind", "reason"),
    [
        ("cuda", True, {}, "vllm", "vLLM is installed"),
        ("cuda", False, {"vllm_python": "/envs/vllm/bin/python"}, "vllm", "engine.vllm_python is set"),
        ("cuda", False, {}, "transformers", "vLLM is not installed here"),
        ("cpu", True, {"vllm_python": "/envs/vllm/bin/python"}, "transformers", "the device is cpu"),
        ("cpu", True, {"kind": "vllm"}, "vllm", "engine.kind is vllm"),
        ("cuda", True, {"kind": "transformers"}, "transformers", "engine.kind is transformers"),
    ],
)
def test_the_engine_suits_the_machine_unless_the_settings_name_one(
    monkeypatch: pytest.MonkeyPatch, device: str, installed: bool, engine: dict[str, Any], kind: str, reason: str
) -> None:
    monkeypatch.setattr("srlm_pipeline.models.loading.choose_device", lambda _: device)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "found" if installed else None)
    chosen, why = choose_engine(Settings(engine=EngineSettings(**engine)))
    assert chosen == kind
    assert reason in why


@pytest.mark.parametrize(
    ("kind", "expected"), [("transformers", TransformersEngine), ("vllm", VllmEngine), ("openai", OpenAIEngine)]
)
def test_the_chosen_engine_is_opened(tiny_model: Path, kind: Any, expected: type) -> None:
    settings = Settings(engine=EngineSettings(kind=kind, base_url="http://127.0.0.1:9/v1"))
    engine = open_engine(Checkpoint(tiny_model, "tiny", "digest", None), settings, 4)
    assert isinstance(engine, expected)
    assert engine.digest == "digest"
    assert engine.render("hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_doctor_says_what_a_server_serves(tiny_model: Path) -> None:
    with serving(load_model(tiny_model, ModelSettings(device="cpu")), "M3") as server:
        settings = Settings(engine=EngineSettings(kind="openai", base_url=server.address))
        assert _engine(settings) == f"openai: engine.kind is openai; {server.address} serves M3"
    with pytest.raises(ServerError, match="no server answers"):
        _engine(settings)


def test_the_doctor_says_why_an_engine_was_chosen() -> None:
    settings = Settings(model=ModelSettings(device="cpu"))
    assert _engine(settings) == "transformers: the device is cpu; vLLM is chosen on CUDA devices"


def test_the_doctor_says_whether_the_arbiters_can_be_believed() -> None:
    assert _arbiters(load_settings("quickstart", {"evaluation": {"arbiters": ["verifiers", "some/model"]}})) == (
        "verifiers, model: comparison: independent of the loop"
    )
    said = _arbiters(load_settings("quickstart", {"evaluation": {"arbiters": ["self"]}}))
    assert said.startswith("M1: comparison: not independent (M1, ")
    assert "promote nothing by themselves; name a judge that takes no part in choosing pairs" in said


def test_the_doctor_tries_every_model_that_judges_beside_the_project_s_own(tiny_model: Path, tmp_path: Path) -> None:
    def said(*judges: Any) -> str:
        judged = {"panel": ["self", *judges]}
        return _other_models(
            load_settings("quickstart", {"judge": judged, "evaluation": {"arbiters": list(judges) or ["self"]}})
        )

    with chatting() as server:
        outside = {"model": "big", "server": {"base_url": server.address}}
        here = {"model": str(tiny_model)}
        assert said(outside, here, "some/judge").split("; ") == [
            f"big at {server.address} answers",
            f"folder {tiny_model}: by its chat template it replies and ends with <|im_end|>",
            "some/judge, from the model hub when it is first needed",
        ]
        assert len(server.requests) == 1, "who sits on the panel and decides too is asked once"
        server.say = lambda _: ""
        assert said(outside).endswith("answers, but says nothing")
        server.always = Trouble(404, '{"error": {"message": "no model big"}}')
        with pytest.raises(ServerError, match="no model big"):
            said(outside)
    assert said() == "none"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        said({"model": str(tmp_path / "empty")})


def test_the_doctor_says_whether_there_is_a_sentence_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings("quickstart")
    monkeypatch.setattr("srlm_pipeline.models.sentence_encoder.encoder_archive", lambda: None)
    assert "will not be measured: the wheel with the sentence encoder is missing: run `pip" in _encoder(settings)
    monkeypatch.setattr("srlm_pipeline.models.sentence_encoder.encoder_archive", lambda: tmp_path)
    assert _encoder(settings) == "all-MiniLM-L6-v2, for nearness to reference replies"
    assert _encoder(load_settings("quickstart", {"evaluation": {"encoder": "none"}})).startswith("off ")
