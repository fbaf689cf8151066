"""A model between M_t and what was trained from it: how it is made, and how far it goes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srlm_pipeline.config import DpoSettings, ModelSettings
from srlm_pipeline.models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.cost import Cost, DevelopmentFigures, cost_of
from srlm_pipeline.training.interpolation import Tried, interpolate, train_and_interpolate

MODEL = ModelSettings(device="cpu", dtype="float32", save_dtype="float32")
SIGNS = st.lists(st.booleans(), min_size=2, max_size=60).map(np.array)


def figures(unfit: list[bool], nats: float = 2.0) -> DevelopmentFigures:
    return DevelopmentFigures(np.array(unfit), nats)


@given(SIGNS, st.floats(0.1, 9))
def test_a_model_that_does_as_well_has_cost_nothing(unfit: np.ndarray, nats: float) -> None:
    found = cost_of(DevelopmentFigures(unfit, nats), DevelopmentFigures(unfit, nats), 0.0)
    assert found == Cost(float(unfit.mean()), 0.0, 0.0, nats, 0.0, True)


@given(SIGNS, st.data())
def test_more_unfit_replies_than_chance_explains_do_not_pass(before: np.ndarray, data: st.DataObject) -> None:
    after = np.array(data.draw(st.lists(st.booleans(), min_size=len(before), max_size=len(before))))
    found = cost_of(DevelopmentFigures(after, 2.0), DevelopmentFigures(before, 2.0), 0.0)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    assert found.unfit_more == pytest.approx((gained - lost) / len(before))
    # Changed both ways alike, nothing is worse.
    assert found.tolerable or gained > lost
    if found.unfit_more > found.unfit_error:
        assert not found.tolerable


def test_the_standard_error_is_that_of_the_replies_that_changed() -> None:
    found = cost_of(figures([True, False, False, False]), figures([False] * 4), 0.0)
    assert found.unfit_more == pytest.approx(0.25)
    assert found.unfit_error == pytest.approx(0.25), "0.5 / sqrt(4)"
    assert found.tolerable
    assert not cost_of(figures([True, True, False, False]), figures([False] * 4), 0.0).tolerable


def test_human_replies_may_become_less_likely_as_far_as_is_tolerated() -> None:
    before = figures([False] * 9)
    assert cost_of(figures([False] * 9, 2.05), before, 0.06).tolerable
    assert not cost_of(figures([False] * 9, 2.07), before, 0.06).tolerable


@pytest.mark.parametrize("ratios", [(0.0,), (1.2,), (-0.5, 0.5), (0.5, 0.5)])
def test_ratios_are_different_shares_of_the_trained_model(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="share"):
        DpoSettings(interpolation=ratios)


def saved(loaded: LoadedModel, folder: Path, name: str) -> Checkpoint:
    return save_checkpoint(loaded, folder, name, None, {}, "float32")


def moved(source: Path, by: float) -> LoadedModel:
    """Return a model whose every weight is another one than the source's."""
    import torch

    loaded = load_model(source, MODEL)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return loaded


def tied(tiny_model: Path, folder: Path) -> Path:
    """Return the tiny model with one matrix for what goes in and what comes out."""
    loaded = load_model(tiny_model, MODEL)
    loaded.model.config.tie_word_embeddings = True
    loaded.model.tie_weights()
    saved(loaded, folder, "tied")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("is_tied", [False, True])
def test_weights_lie_between_element_by_element(tiny_model: Path, tmp_path: Path, is_tied: bool) -> None:
    import torch

    source = tied(tiny_model, tmp_path / "tied") if is_tied else tiny_model
    start = saved(load_model(source, MODEL), tmp_path / "start", "start")
    end = saved(moved(source, 0.1), tmp_path / "end", "end")
    ours = {ratio: interpolate(start.path, end.path, ratio, MODEL).model.state_dict() for ratio in (0.25, 1.0)}
    starts, ends = (load_model(one.path, MODEL).model.state_dict() for one in (start, end))
    assert is_tied == torch.equal(ends["lm_head.weight"], ends["model.embed_tokens.weight"])
    for name, first in starts.items():
        torch.testing.assert_close(ours[0.25][name], 0.75 * first + 0.25 * ends[name])
        assert torch.equal(ours[1.0][name], ends[name])
        assert ours[0.25][name].dtype == torch.float32
    assert read_checkpoint(start.path) == start


class Bench:
    """Trains once for real, and measures as a test says; `trainings` counts."""

    def __init__(self, tiny_model: Path, folder: Path) -> None:
        self.entering = saved(load_model(tiny_model, MODEL), folder / "M1", "M1")
        self.job = TrainingJob(self.entering.path, MODEL, 1, folder / "work" / "M2", "training", NullProgress())
        self.trainings = 0
        self.measured: list[str] = []

    def train(self) -> TrainingRun:
        self.trainings += 1
        return TrainingRun(moved(self.entering.path, 0.1), [{"step": 1, "loss": 0.5}], 7, 1)

    def run(self, ratios: tuple[float, ...], worse: set[float], dies_at: str = "") -> tuple[TrainingRun, list[Tried]]:
        def measure(model: Checkpoint) -> DevelopmentFigures:
            if model.name == dies_at:
                raise KeyboardInterrupt
            self.measured.append(model.name)
            return figures([model.name.removeprefix("ratio-") in {f"{ratio:g}" for ratio in worse}] * 9)

        settings = DpoSettings(interpolation=ratios)
        return train_and_interpolate(self.job, self.entering, settings, self.train, measure)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_model, tmp_path)


@pytest.mark.slow
def test_the_largest_ratio_that_passes_is_taken_and_smaller_ones_are_not_tried(bench: Bench) -> None:
    import torch

    run, tried = bench.run((0.25, 1.0, 0.5), worse={1.0})
    assert bench.measured == ["M1", "ratio-1", "ratio-0.5"]
    assert [(one.ratio, one.cost.tolerable) for one in tried] == [(1.0, False), (0.5, True)]
    assert (run.history, run.n_examples, run.n_left_out) == ([{"step": 1, "loss": 0.5}], 7, 1)
    start, end = load_model(bench.entering.path, MODEL).model, moved(bench.entering.path, 0.1).model
    for ours, first, last in zip(run.loaded.model.parameters(), start.parameters(), end.parameters(), strict=True):
        torch.testing.assert_close(ours, (first + last) / 2)
    # Until the model is saved, nothing that it was made of goes.
    again, _ = bench.run((0.25, 1.0, 0.5), worse={1.0})
    assert bench.trainings == 1
    assert again.history == run.history


@pytest.mark.slow
def test_where_no_ratio_passes_the_smallest_is_taken(bench: Bench) -> None:
    _, tried = bench.run((0.25, 0.5), worse={0.25, 0.5})
    assert [(one.ratio, one.cost.tolerable) for one in tried] == [(0.5, False), (0.25, False)]


@pytest.mark.slow
def test_an_interruption_while_ratios_are_tried_does_not_repeat_the_training(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.run((0.25, 0.5), worse={0.5}, dies_at="ratio-0.25")
    run, tried = bench.run((0.25, 0.5), worse={0.5})
    assert bench.trainings == 1
    assert tried[-1].ratio == 0.25
    assert run.final("loss") == 0.5
