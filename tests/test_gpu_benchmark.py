"""The script for GPUs in its tiny form on a CPU: every part comes to its end, and says what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parent.parent
# What the pipeline needs and a machine with torch and transformers alone does not have.
ABSENT = ("trl", "peft", "datasets", "dagster", "mlflow", "pandas", "pyarrow", "scipy", "rapidfuzz", "psutil", "rich")


@pytest.mark.slow
def test_every_part_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SMOKE_RESULTS", tmp_path)
    assert gpu.main(["--smoke", "--steps", "2"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == {}
    parts = {part for part, *_ in found["figures"]}
    assert parts == {"limits", "stages", "training"}
    assert all(value > 0 for _, _, value, *_ in found["figures"])
    assert any("FSDP2" in what for what, *_ in found["checks"])
    assert "| stages | reading" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_torch_and_transformers_are_enough_for_what_is_not_training(tmp_path: Path) -> None:
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in ABSENT)
    code = (
        f"import sys, importlib.util; {absent}; found = importlib.util.find_spec; "
        f"importlib.util.find_spec = lambda name, *a: None if name in {ABSENT} else found(name, *a); "
        f"from pathlib import Path; from benchmarks import gpu; gpu.SMOKE_RESULTS = Path({str(tmp_path)!r}); "
        "sys.exit(gpu.main(['--smoke']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"] == {"training": "not installed here: trl, peft, datasets, pandas"}


def test_a_part_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: gpu.Scene) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "SMOKE_RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "sharding", fail)
    assert gpu.main(["--smoke", "--part", "sharding"]) == 1
    ((what, holds, note),) = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert (what, holds) == ("sharding comes to its end", False)
    assert "illegal memory access" in note


def test_no_part_begins_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SMOKE_RESULTS", tmp_path)
    assert gpu.main(["--smoke", "--seconds", "0"]) == 0
    assert set(json.loads((tmp_path / "gpu.json").read_text())["left_out"]) == set(gpu.PARTS)
