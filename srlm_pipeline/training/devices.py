"""Which devices train together: what the settings ask, held against what is here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from srlm_pipeline.config import LauncherSettings, ModelSettings, Settings, Strategy, TrainingSettings, obstacle
from srlm_pipeline.errors import DivisionError
from srlm_pipeline.models.loading import choose_device, cuda_device_name


@dataclass(frozen=True)
class Division:
    """Among what a training is divided.

    Attributes:
        devices: One per process, as torch names them.
        strategy: What each process keeps of the model.
        n_seen: CUDA devices that this process sees.
    """

    devices: tuple[str, ...]
    strategy: Strategy
    n_seen: int = 0

    @property
    def processes(self) -> int:
        """How many train together."""
        return len(self.devices)

    @property
    def apart(self) -> bool:
        """Whether training needs processes of its own.

        One that sees several CUDA devices would be taken to use all of them, by torch's `DataParallel`.
        """
        return self.processes > 1 or (self.on_cuda and self.n_seen > 1)

    @property
    def on_cuda(self) -> bool:
        """Whether it trains on CUDA devices."""
        return self.devices[0].startswith("cuda")

    def visible(self) -> dict[str, str]:
        """Return the environment variable that shows its processes these CUDA devices alone."""
        if not self.on_cuda:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(cuda_device_name(_number(device)) for device in self.devices)}

    def require(self, settings: TrainingSettings) -> None:
        """Refuse a stage that cannot be divided so.

        Raises:
            DivisionError: Saying what to change.
        """
        sentence = obstacle(settings, self.processes, self.strategy)
        if sentence is not None:
            raise DivisionError(sentence)


def divide(launcher: LauncherSettings, model: ModelSettings) -> Division:
    """Choose the devices that train together.

    Args:
        launcher: How many, and how.
        model: `device` is read.

    Raises:
        DivisionError: If there are fewer than are asked for, or none that the strategy takes.
        ModelError: If the device that the settings name is not available.
    """
    import torch

    device = choose_device(model.device)
    kind, _, number = device.partition(":")
    n_seen = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and _number(device) >= n_seen:
        raise DivisionError(
            f"model.device is {device}, and torch sees {n_seen} CUDA devices, of which the first is cuda:0"
        )
    if kind == "cuda" and not number:
        found = [f"cuda:{place}" for place in range(n_seen)]
    else:
        found = [device] * (_cores() if kind == "cpu" else 1)
    if launcher.strategy == "fsdp2" and kind != "cuda":
        raise DivisionError(
            f"training.launcher.strategy fsdp2 needs CUDA devices, and training is on {device}: there Accelerate would "
            "quietly keep the whole model in every process; set it to ddp"
        )
    wanted = (len(found) if kind == "cuda" else 1) if launcher.processes == "auto" else launcher.processes
    if wanted > len(found):
        raise DivisionError(_too_many(wanted, found, model.device))
    return Division(tuple(found[:wanted]), launcher.strategy, n_seen)


def require_division(settings: Settings) -> Division:
    """Choose the devices that train together, and make sure that each stage of the loop can be divided among them.

    Args:
        settings: `training.launcher`, `model.device` and those of the stages are read.

    Raises:
        DivisionError: If there are fewer devices than are asked for, or a stage cannot be divided so.
        ModelError: If the device that the settings name is not available.
    """
    division = divide(settings.training.launcher, settings.model)
    for stage in settings.trained_stages:
        division.require(stage)
    return division


def _too_many(wanted: int, found: Sequence[str], wish: str) -> str:
    here = f"{len(found)} cores" if found[0] == "cpu" else f"only {', '.join(found)}"
    narrowed = f" with model.device {wish}" if wish != "auto" else ""
    return (
        f"training.launcher.processes is {wanted}, and there are {here} to train on{narrowed}: set it to auto, or to "
        f"{len(found)} at most"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)
