"""Training by two processes: the same weights as by one, whoever dies meanwhile; nothing is left running."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import launched
import psutil
import pytest
import torch
from launched import SftSettings, everything, job, launch, settings_of, stages, weights

from srlm_pipeline.errors import DivisionError, SrlmError
from srlm_pipeline.models.checkpoint import Checkpoint, read_checkpoint
from srlm_pipeline.training.agent import PARENT
from srlm_pipeline.training.common import TrainingRun
from srlm_pipeline.training.early_stopping import LOST, EarlyStopping, Outcome
from srlm_pipeline.training.launching import TrainingProcessError
from srlm_pipeline.training.resumption import newest_whole
from srlm_pipeline.training.sft import train_sft

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))


def at_work(folder: Path) -> list[psutil.Process]:
    """Return what still trains in a folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in word for word in p.info["cmdline"] or [])]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_processes_train_what_one_trains(tiny_model: Path, tmp_path: Path) -> None:
    alone = stages(job(tiny_model, tmp_path / "one"))
    drawn = launch(everything, job(tiny_model, tmp_path / "two"), tmp_path)
    together = torch.load(tmp_path / "trained.pt")
    assert together.keys() == alone.keys()
    for stage, run in alone.items():
        others_weights, others_log = together[stage]
        assert distance(weights(run), others_weights) < 1e-5, stage
        steps = [entry for entry in run.history if "loss" in entry]
        others_steps = [entry for entry in others_log if "loss" in entry]
        assert len(steps) == len(others_steps) == 4
        for figure in ("loss", "learning_rate", "kl", "rewards/margins", "mean_reward", "margin"):
            mine, theirs = ([entry.get(figure, 0.0) for entry in log] for log in (steps, others_steps))
            assert theirs == pytest.approx(mine, abs=2e-5), (stage, figure)
    assert len([entry for entry in drawn.history if "reward" in entry]) == 2
    assert not (tmp_path / "two" / "processes").exists()


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Let the only process that trains fail at the end of a step."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    plain = SFTTrainer.__init__

    class Fail(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise RuntimeError("the machine went down")

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> None:
        plain(trainer, *args, **kwargs)
        trainer.add_callback(Fail())

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="went down"):
        patch.setattr(SFTTrainer, "__init__", watched)
        yield


def test_whoever_is_killed_nobody_is_left_and_any_number_of_processes_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    settings = settings_of(SftSettings, "full", save_every=1)
    undisturbed = train_sft(job(tiny_model, tmp_path / "undisturbed"), launched.TEXTS, settings)
    work = tmp_path / "work"

    def finished(by: Callable[[], TrainingRun], newest: int) -> None:
        assert not at_work(work)
        assert (newest_whole(work) or (None, 0))[1] == newest
        assert distance(weights(undisturbed), weights(by())) < 1e-5

    # The launcher, by whom two train: one goes on, in the middle of the second epoch.
    code = "import sys, launched; launched.launch_and_die(*sys.argv[1:])"
    killed = subprocess.run([sys.executable, "-c", code, str(tiny_model), str(work)], check=False)
    assert killed.returncode == -signal.SIGKILL
    gone, alive = psutil.wait_procs(at_work(work), timeout=10)
    assert not alive, gone
    finished(lambda: train_sft(job(tiny_model, work), launched.TEXTS, settings), launched.DEADLY_STEP - 1)

    # One of two, which takes up what one has begun: a crash, worth another try; one goes on.
    work = tmp_path / "again"
    with interrupted(2):
        train_sft(job(tiny_model, work), launched.TEXTS, settings)
    with pytest.raises(TrainingProcessError, match="was killed, as for lack of memory"):
        launch(launched.dying, job(tiny_model, work), "rank", settings)
    finished(lambda: train_sft(job(tiny_model, work), launched.TEXTS, settings), launched.DEADLY_STEP - 1)

    # One, in the middle of the second epoch: two go on.
    work = tmp_path / "two"
    with interrupted(4):
        train_sft(job(tiny_model, work), launched.TEXTS, settings)
    finished(lambda: train_sft(job(tiny_model, work, launch=launched.TWO), launched.TEXTS, settings), 3)


def test_a_process_whose_parent_is_gone_before_it_looks_ends_at_once(tmp_path: Path) -> None:
    orphan = {**os.environ, PARENT: "1", "RANK": "0"}
    worker = [sys.executable, "-m", "srlm_pipeline.training.worker", str(tmp_path)]
    assert subprocess.run(worker, env=orphan, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_looks_are_taken_where_the_stage_is_and_a_mistake_keeps_its_sentence(tiny_model: Path, tmp_path: Path) -> None:
    met: list[tuple[str, str]] = []

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        met.append((now.name, before.name))
        assert read_checkpoint(now.path).digest == now.digest
        return Outcome(len(met) == 2, {"win_rate": 0.5})

    stopping = EarlyStopping(2, Checkpoint(tiny_model, "M1", "digest", None), compare)
    with pytest.raises(SrlmError, match=r"^there are no examples to train on: none fits into sft.max_length \(16"):
        launch(launched.looked_at, job(tiny_model, tmp_path), stopping)
    assert met == [("M1-step-2", "M1"), ("M1-step-4", "M1-step-2")]
    history = eval((tmp_path / "history.txt").read_text())
    assert [entry[LOST] for entry in history if LOST in entry] == [0.0, 1.0]
    assert max(entry["step"] for entry in history) == 4
    assert not at_work(tmp_path)


def test_what_cannot_be_divided_is_refused_before_any_process_starts(tiny_model: Path, tmp_path: Path) -> None:
    given = replace(job(tiny_model, tmp_path / "work"), launch=launched.TWO)
    with pytest.raises(DivisionError, match=r"sft.batch_size \(3\) cannot be divided among 2 processes"):
        train_sft(given, launched.TEXTS, SftSettings(batch_size=3, micro_batch_size=1))
    assert not (tmp_path / "work").exists()
