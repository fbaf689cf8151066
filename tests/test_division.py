"""How training is divided among devices: what the settings ask, held against what is there, and whose turn it is."""

from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.commands.diagnosis import _training
from srlm_pipeline.config import LauncherSettings, ModelSettings, RewardModelSettings, SftSettings, load_settings
from srlm_pipeline.errors import DivisionError, SettingsError
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training import common
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.devices import divide, require_division
from srlm_pipeline.training.divided import Rounds, places
from srlm_pipeline.training.launching import launch_for

AUTO = ModelSettings()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def launcher(processes: Any = "auto", strategy: Any = "ddp") -> LauncherSettings:
    return LauncherSettings(processes=processes, strategy=strategy)


def test_on_a_cpu_one_process_trains_unless_more_are_asked_for() -> None:
    cpu = ModelSettings(device="cpu")
    assert not divide(launcher(), cpu).apart
    assert launch_for(load_settings("quickstart", {"model": {"device": "cpu"}})) is None
    two = divide(launcher(2), cpu)
    assert (two.processes, two.apart, two.visible()) == (2, True, {})


@pytest.mark.usefixtures("gpus")
def test_every_cuda_device_gets_a_process_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert divide(launcher(), AUTO).visible() == {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert divide(launcher(2), AUTO).visible() == {"CUDA_VISIBLE_DEVICES": "0,1"}
    named = divide(launcher(), ModelSettings(device="cuda:2"))
    assert (named.processes, named.apart, named.visible()) == (1, True, {"CUDA_VISIBLE_DEVICES": "2"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert divide(launcher(2), AUTO).visible() == {"CUDA_VISIBLE_DEVICES": "4,5"}


def test_a_single_cuda_device_is_trained_on_without_further_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not divide(launcher(), AUTO).apart


@pytest.mark.usefixtures("gpus")
def test_more_processes_than_devices_are_refused() -> None:
    with pytest.raises(DivisionError, match=r"processes is 5, and there are only cuda:0, .*cuda:3 .* 4 at most"):
        divide(launcher(5), AUTO)
    with pytest.raises(DivisionError, match=r"only cuda:1 to train on with model.device cuda:1"):
        divide(launcher(2), ModelSettings(device="cuda:1"))
    with pytest.raises(DivisionError, match=r"model.device is cuda:4, and torch sees 4 CUDA devices"):
        divide(launcher(), ModelSettings(device="cuda:4"))
    with pytest.raises(DivisionError, match=r"10000, and there are \d+ cores"):
        divide(launcher(10000), ModelSettings(device="cpu"))


def test_what_would_silently_be_ddp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DivisionError, match="fsdp2 needs CUDA devices, and training is on cpu"):
        divide(launcher(2, "fsdp2"), ModelSettings(device="cpu"))

    class State:
        distributed_type = DistributedType.MULTI_CPU

    accelerator = type("Accelerator", (), {"state": State})
    trainer = type("Trainer", (), {"accelerator": accelerator, "remove_callback": lambda _: None})
    job = TrainingJob("model", AUTO, 0, tmp_path, "training", NullProgress(), strategy="fsdp2")
    with pytest.raises(DivisionError, match="Accelerate has made MULTI_CPU of it"):
        common.run_trainer(job, trainer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("launcher", "sections", "said"),
    [
        ({"processes": 3}, {}, r"sft.batch_size \(16\) cannot be divided among 3 processes"),
        ({"processes": 8}, {}, r"sft.batch_size \(16\) .* set sft.micro_batch_size to 2"),
        ({"strategy": "fsdp2"}, {"dpo": {"method": "lora"}}, "dpo.method is lora, and .* fsdp2 divides full weights"),
        ({"processes": 0}, {}, "must be auto, or a number from 1"),
    ],
)
def test_what_no_machine_could_do_is_refused_with_the_settings(
    launcher: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings("single-gpu", {"training": {"launcher": launcher}, **sections})


@pytest.mark.usefixtures("gpus")
def test_the_stages_are_held_against_the_devices_that_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("single-gpu", {})
    assert require_division(settings).processes == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(DivisionError, match=r"sft.batch_size \(16\) cannot be divided among 8"):
        require_division(settings)


def test_a_run_that_could_not_train_is_refused_before_it_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srlm_pipeline.commands.launch import run_loop
    from srlm_pipeline.definitions import defs

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    asked = {"model": {"device": "cpu"}, "sft": {"enabled": False}, "eft": {"enabled": False}}
    asked |= {"dpo": {"batch_size": 100000}, "training": {"launcher": {"processes": 50000}}}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        with pytest.raises(DivisionError, match="processes is 50000, and there are"):
            run_loop(defs, instance, 1, asked, print)
        assert instance.get_runs() == []


@pytest.mark.usefixtures("gpus")
def test_the_doctor_says_who_trains() -> None:
    assert _training(load_settings("single-gpu")) == "4 processes (ddp) on cuda:0, cuda:1, cuda:2, cuda:3"
    assert _training(load_settings("quickstart", {"model": {"device": "cpu"}})) == "one process on cpu"


@pytest.mark.usefixtures("gpus")
def test_baselines_are_not_sharded() -> None:
    division = divide(launcher(2, "fsdp2"), AUTO)
    division.require(SftSettings(method="full"))
    with pytest.raises(DivisionError, match=r"baselines.reward_model is trained with .* ddp only"):
        division.require(RewardModelSettings(method="full"))


@given(n=st.integers(1, 60), size=st.integers(1, 5), places=st.integers(1, 4))
def test_rounds_are_the_micro_batches_of_one_process_and_end_together(n: int, size: int, places: int) -> None:
    rounds = Rounds(range(n), size, places)  # type: ignore[arg-type]
    batches = list(rounds)
    real = [list(range(n))[start : start + size] for start in range(0, n, size)]
    assert batches[: len(real)] == real
    assert len(batches) == len(rounds)
    assert len(batches) % places == 0
    assert len(batches) - len(real) < places
    assert set(chain.from_iterable(batches[len(real) :])) <= {0}


@given(data=st.data(), size=st.integers(1, 4), n_places=st.integers(1, 4), n_rounds=st.integers(1, 4))
def test_every_micro_batch_weighs_what_it_weighs_in_one_process(
    data: st.DataObject, size: int, n_places: int, n_rounds: int
) -> None:
    most = size * n_places * n_rounds
    n_examples = data.draw(st.integers(most - size * n_places + 1, most))
    n_real = -(-n_examples // size)
    step = [places(n_examples, size, n_rounds, n_places, own) for own in range(n_places)]
    # Process by process in each round, as micro-batches are dealt out.
    dealt = [process[number] for number in range(n_rounds) for process in step]
    assert [place.counts for place in dealt] == [number < n_real for number in range(n_rounds * n_places)]
    assert [1 / place.divisor / n_places for place in dealt[:n_real]] == pytest.approx([1 / n_real] * n_real)
    assert all(1 / place.divisor == 0 for place in dealt[n_real:])
    assert sum(process.weight for process in step[0]) == pytest.approx(n_rounds)
    assert all(place.even for place in dealt) == (n_examples == most)
