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

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.config import DpoSettings, ModelSettings
from srlm_pipeline.models.checkpoint import Checkpoint, is_checkpoint, read_checkpoint, save_checkpoint
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.training.common import TrainingJob, TrainingRun


@dataclass(frozen=True)
class DevelopmentFigures:
    """How a model does on development prompts.

    Attributes:
        unfit: Whether something is wrong at first sight with its greedy reply to each prompt, shape (prompts,).
        nats: Surprise at the best human replies, the mean of their means per token.
    """

    unfit: NDArray[np.bool_]
    nats: float


# Measures a model; always on the same prompts.
Measure = Callable[[Checkpoint], DevelopmentFigures]


@dataclass(frozen=True)
class Tried:
    """A ratio, held against the model that training started from.

    Attributes:
        ratio: Share of the trained model.
        unfit: Share of its replies that are unfit.
        unfit_more: By how much that is more, prompt by prompt.
        unfit_error: Standard error of that difference.
        nats: Surprise at the best human replies, per token.
        nats_more: By how much that is more.
        passed: Whether neither is worse by more than is tolerated.
    """

    ratio: float
    unfit: float
    unfit_more: float
    unfit_error: float
    nats: float
    nats_more: float
    passed: bool


def hold_against(entering: DevelopmentFigures, tried: DevelopmentFigures, ratio: float, max_nats_more: float) -> Tried:
    """Decide whether a model has lost nothing that can be seen on the development prompts.

    It passes if its share of unfit replies is not above M_t's by more than one standard error of the difference, and
    the best human replies have not become less likely by more than is tolerated.

    Args:
        entering: Figures of M_t.
        tried: Those of the model.
        ratio: Of the model.
        max_nats_more: Tolerated, per token.
    """
    more = tried.unfit.astype(float) - entering.unfit.astype(float)
    difference, nats_more = float(more.mean()), tried.nats - entering.nats
    error = float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else 0.0
    passed = difference <= error and nats_more <= max_nats_more
    return Tried(ratio, float(tried.unfit.mean()), difference, error, tried.nats, nats_more, passed)


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
        settings: `interpolation` and `interpolation_tolerance` are read.
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
        tried.append(hold_against(before, measure(saved), ratio, settings.interpolation_tolerance))
        if tried[-1].passed:
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
