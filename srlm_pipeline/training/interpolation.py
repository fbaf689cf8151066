"""A model between M_t and what training made of it: as much of the training as costs nothing that M_t could do.

Averages of the weights of models with a common origin keep what both can do better than either forgets it (model soups,
Wortsman et al. 2022, arXiv 2203.05482); between the starting point and a model trained by preferences they trade reward
for what was there before (the last step of WARP, Ramé et al. 2024, arXiv 2406.16768). How far to go is not guessed:
every ratio is tried on prompts that no stage trains on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from srlm_pipeline.config import DpoSettings, ModelSettings
from srlm_pipeline.models.checkpoint import Checkpoint, is_checkpoint, read_checkpoint, save_checkpoint
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.cost import Cost, Measure, cost_of


@dataclass(frozen=True)
class Tried:
    """A model between M_t and what was trained.

    Attributes:
        ratio: Share of the trained model.
        cost: What it lost.
    """

    ratio: float
    cost: Cost


def interpolate(entering: Path, trained: Path, ratio: float, settings: ModelSettings) -> LoadedModel:
    """Return (1 - ratio) x M_t + ratio x trained, element by element in float32, on the CPU.

    Args:
        entering: Folder of M_t.
        trained: Folder of what was trained from it.
        ratio: In (0, 1]; 1 is the trained model itself.
        settings: How models are loaded.
    """
    import torch

    on_cpu = settings.model_copy(update={"device": "cpu"})
    start, end = (load_model(folder, on_cpu, dtype="float32") for folder in (entering, trained))
    ends = dict(end.model.named_parameters())
    with torch.no_grad():
        # Embeddings that are shared with the output layer are one parameter, and are met once.
        for name, parameter in start.model.named_parameters():
            parameter.lerp_(ends[name], ratio)
    return start


def train_and_interpolate(
    job: TrainingJob, entering: Checkpoint, settings: DpoSettings, train: Callable[[], TrainingRun], measure: Measure
) -> tuple[TrainingRun, list[Tried]]:
    """Train, then go back towards M_t as far as is needed: the largest ratio that passes is taken.

    Ratios are tried from the largest down to the first that passes; if none does, the smallest is taken. A training
    that is done is kept while ratios are tried, and is not repeated after an interruption.

    Args:
        job: The training.
        entering: M_t.
        settings: `interpolation` and `nats_tolerance` are read.
        train: Does the training.
        measure: Measures a model on the development prompts.

    Returns:
        The model that was chosen, with the training's history, and what was tried; the last of it was chosen.
    """
    folder = job.work.with_name(f"{job.work.name}-interpolated")
    trained = _trained(folder / "trained", entering, train)
    before = measure(entering)
    tried: list[Tried] = []
    for ratio in sorted(settings.interpolation, reverse=True):
        between = folder / f"ratio-{ratio:g}"
        for earlier in folder.glob("ratio-*"):
            if earlier != between:
                shutil.rmtree(earlier)
        made = interpolate(entering.path, trained.path, ratio, job.model)
        saved = save_checkpoint(made, between, between.name, entering.digest, {}, job.model.save_dtype)
        del made
        tried.append(Tried(ratio, cost_of(measure(saved), before, settings.nats_tolerance)))
        if tried[-1].cost.tolerable:
            break
    chosen = load_model(between, job.model.model_copy(update={"device": "cpu"}), dtype="float32")
    told = trained.lineage
    return TrainingRun(chosen, told["history"], told["examples"], told["left_out"]), tried


def _trained(folder: Path, entering: Checkpoint, train: Callable[[], TrainingRun]) -> Checkpoint:
    if is_checkpoint(folder):
        return read_checkpoint(folder)
    run = train()
    told = {"history": list(run.history), "examples": run.n_examples, "left_out": run.n_left_out}
    # Rounding would lose most of a small update before it is divided.
    return save_checkpoint(run.loaded, folder, folder.name, entering.digest, told, "float32")
