"""What processes of their own are given to do in tests: they import it by name, and so none of it can be a closure."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from srlm_pipeline.config import (
    DpoSettings,
    EftSettings,
    LoraSettings,
    ModelSettings,
    RewardModelSettings,
    RlhfSettings,
    SftSettings,
)
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import Load, TrainingJob, TrainingRun
from srlm_pipeline.training.devices import Division
from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
from srlm_pipeline.training.early_stopping import EarlyStopping
from srlm_pipeline.training.launching import Launcher
from srlm_pipeline.training.ranking import train_ranking
from srlm_pipeline.training.ranking_items import RankedExample
from srlm_pipeline.training.ranks import is_first, rank
from srlm_pipeline.training.reward_model import train_reward_model
from srlm_pipeline.training.rlhf import train_rlhf
from srlm_pipeline.training.sft import SftExample, train_sft

MODEL = ModelSettings(device="cpu", dtype="float32")
TWO = Launcher(Division(("cpu", "cpu"), "ddp"))
# 13 examples in steps of 8, in micro-batches of 2: an epoch's last step has one example in its last micro-batch, and
# two processes have one place too many for it.
COMMON: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 2, "max_length": 128, "warmup_ratio": 0.0, "epochs": 2}
COMMON |= {"lora": LoraSettings(rank=8, alpha=16)}
RATES = {"lora": 2e-2, "full": 5e-3}
TEXTS = [SftExample(f"say {n} {'x' * n}", f"{n} " * (1 + n % 5)) for n in range(13)]
PAIRS = [PreferenceExample(f"task {n}", "yes " * (1 + n % 4), "no " * (1 + n % 3)) for n in range(13)]
RANKED = [RankedExample(f"task {n}", ("a b", "cc", "d" * (n + 1)), (0, 1, 2), (4.0, 2.5, 1.0)) for n in range(13)]
DEADLY_STEP = 3


class LikesShortReplies:
    """In the place of a reward model."""

    def of_tokens(self, exchanges: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        return [-float(len(reply)) for _, reply in exchanges]


def likes_short_replies(_: ModelSettings) -> Any:
    return LikesShortReplies()


def job(source: Path, work: Path, **changes: Any) -> TrainingJob:
    return replace(TrainingJob(source, MODEL, 1, work, "training", NullProgress()), **changes)


def settings_of(kind: Any, method: str, **changes: Any) -> Any:
    return kind(method=method, learning_rate=RATES[method], **(COMMON | changes))


def stages(given: TrainingJob) -> dict[str, TrainingRun]:
    """Train everything, each in a work folder of its own."""

    def of(name: str) -> TrainingJob:
        return replace(given, work=given.work / name)

    return {
        "sft": train_sft(of("sft"), TEXTS, settings_of(SftSettings, "full")),
        "sft-lora": train_sft(of("sft-lora"), TEXTS, settings_of(SftSettings, "lora")),
        "dpo": train_dpo(of("dpo"), PAIRS, settings_of(DpoSettings, "lora")),
        "dpo-full": train_dpo(of("dpo-full"), PAIRS, settings_of(DpoSettings, "full")),
        "ranking": train_ranking(
            of("ranking"), RANKED, settings_of(EftSettings, "full", ranking=True, retention=2), "short", TEXTS
        ),
        "reward": train_reward_model(of("reward"), PAIRS, settings_of(RewardModelSettings, "full")),
    }


def weights(run: TrainingRun) -> dict[str, Any]:
    return {name: value.detach().float() for name, value in run.loaded.model.named_parameters()}


def everything(given: TrainingJob, folder: Path) -> TrainingRun:
    """Train everything as one of several processes, and leave weights and logs in a folder."""
    import torch

    runs = stages(given)
    rlhf = RlhfSettings(
        learning_rate=1e-3,
        batch_size=8,
        micro_batch_size=2,
        generations=2,
        max_length=64,
        max_new_tokens=8,
        max_steps=2,
    )
    drawn = train_rlhf(
        replace(given, work=given.work / "rlhf"), [f"task {n}" for n in range(8)], likes_short_replies, rlhf
    )
    if is_first():
        torch.save({name: (weights(run), list(run.history)) for name, run in runs.items()}, folder / "trained.pt")
    return drawn


def dying(given: TrainingJob, victim: str, settings: SftSettings) -> TrainingRun:
    """Fine-tune, until `victim` is killed in the midst of it."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    plain = SFTTrainer.__init__

    class Kill(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step != DEADLY_STEP:
                return
            if victim == "rank" and rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if victim == "launcher" and rank() == 0:
                # torchrun, and what has started it.
                os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
            if victim == "launcher":
                signal.pause()

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> None:
        plain(trainer, *args, **kwargs)
        trainer.add_callback(Kill())

    SFTTrainer.__init__ = watched
    return train_sft(given, TEXTS, settings)


def looked_at(given: TrainingJob, stopping: EarlyStopping) -> TrainingRun:
    """Train with early stopping, then make a mistake that a person can mend."""
    run = train_dpo(given, PAIRS, settings_of(DpoSettings, "full", batch_size=4, epochs=2), stopping)
    if is_first():
        (given.work / "history.txt").write_text(repr(run.history), encoding="utf-8")
    return train_sft(given, TEXTS, settings_of(SftSettings, "full", max_length=16))


def load_nothing(folder: Path, given: TrainingJob) -> Any:
    return folder


def launch(stage: Any, given: TrainingJob, *rest: Any, load: Load = load_nothing) -> TrainingRun:
    """Let two processes do something."""
    return TWO(stage, load, given, *rest)


def launch_and_die(source: str, work: str) -> None:
    """Let two processes train, of which one kills this one."""
    launch(dying, job(Path(source), Path(work)), "launcher", settings_of(SftSettings, "full", save_every=1))
