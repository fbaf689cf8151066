"""A model's digest is held against its files, and weights that are no numbers are never kept."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from srlm_pipeline.config import LoraSettings, ModelSettings, SftSettings
from srlm_pipeline.errors import DivergedError, ModelError
from srlm_pipeline.models import integrity
from srlm_pipeline.models.checkpoint import Checkpoint, copy_checkpoint, read_checkpoint, save_checkpoint
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.resumption import newest_whole
from srlm_pipeline.training.sft import SftExample, train_sft

pytestmark = pytest.mark.slow

MODEL = ModelSettings(device="cpu", dtype="float32")


@pytest.fixture
def saved(tiny_model: Path, tmp_path: Path) -> Checkpoint:
    return save_checkpoint(load_model(tiny_model, MODEL), tmp_path / "M2", "M2", None, {}, "float32")


def flip_a_byte(file: Path, keep_time: bool = False) -> None:
    content, times = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_flipped_byte_is_found_where_the_model_is_opened(saved: Checkpoint, tmp_path: Path) -> None:
    load_model(saved.path, MODEL)
    flip_a_byte(saved.path / "model.safetensors")
    for use in (lambda: load_model(saved.path, MODEL), lambda: copy_checkpoint(saved, tmp_path / "copy", "copy")):
        with pytest.raises(ModelError, match=r"not those that were saved.*makes the model again"):
            use()
    assert not (tmp_path / "copy").exists()


def test_a_declared_digest_is_not_believed(saved: Checkpoint) -> None:
    marker = saved.path / "srlm.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"digest": "0" * 16}))
    with pytest.raises(ModelError, match="not those that were saved"):
        load_model(saved.path, MODEL)


def test_what_has_not_changed_is_read_once_in_a_process(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read = integrity.digest_files, []
    monkeypatch.setattr(integrity, "digest_files", lambda files: read.append(files) or whole(files))
    for _ in range(3):
        integrity.verify(saved.path)
    assert len(read) == 1
    os.utime(saved.path / "model.safetensors", (1, 1))
    integrity.verify(saved.path)
    assert len(read) == 2


def test_a_folder_that_the_pipeline_did_not_make_is_opened_as_it_is(tiny_model: Path) -> None:
    integrity.verify(tiny_model)
    integrity.verify(Path("organisation/model-on-the-hub"))


@pytest.mark.parametrize("keep", [0.5, 0.001, 0.0])
def test_weights_cut_short_are_named_in_a_sentence(tiny_model: Path, tmp_path: Path, keep: float) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    os.truncate(weights, int(weights.stat().st_size * keep))
    with pytest.raises(ModelError, match="weights could not be loaded"):
        load_model(folder, MODEL)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"\xff",
        b'{"name": "M2"}',
        b'{"name": 1, "digest": 2, "parent": null}',
        b"[" * 9999,
    ],
)
def test_a_damaged_marker_is_named_in_a_sentence(saved: Checkpoint, content: bytes) -> None:
    (saved.path / "srlm.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"srlm\.json cannot be read"):
        read_checkpoint(saved.path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_kept(tiny_model: Path, tmp_path: Path, value: float) -> None:
    loaded = load_model(tiny_model, MODEL)
    next(loaded.model.parameters()).data[0, 0] = value
    with pytest.raises(ModelError, match=r"not finite.*learning_rate"):
        save_checkpoint(loaded, tmp_path / "M2", "M2", None, {}, "float32")
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_their_type_on_disk_are_not_kept(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model, MODEL)
    next(loaded.model.parameters()).data[0, 0] = 1e6
    with pytest.raises(ModelError, match="save_dtype"):
        save_checkpoint(loaded, tmp_path / "M2", "M2", None, {}, "float16")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_that_goes_astray_ends_at_its_step_and_keeps_nothing_of_it(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    chosen: dict[str, Any] = {"batch_size": 2, "micro_batch_size": 2, "max_length": 64, "warmup_ratio": 0.0}
    settings = SftSettings(
        method=method, learning_rate=1e38, epochs=9, save_every=1, lora=LoraSettings(rank=4, alpha=8), **chosen
    )
    job = TrainingJob(tiny_model, MODEL, 1, tmp_path / "work", "training M2", NullProgress())
    with pytest.raises(DivergedError, match=r"training M2: at step \d+ .* learning_rate, now 1e\+38") as caught:
        train_sft(job, [SftExample("say", "yes"), SftExample("tell", "no")], settings)
    newest = newest_whole(tmp_path / "work")
    assert newest is None or newest[1] < caught.value.step
