"""What all trainings share: the job, trainer arguments, adapters, progress, resumption, merging."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from srlm_pipeline.acceleration.allocation import keep_freed_memory
from srlm_pipeline.config import ModelSettings, Strategy, TrainingSettings
from srlm_pipeline.errors import DivergedError, DivisionError, EmptyDataError
from srlm_pipeline.generation.opening import release_engines
from srlm_pipeline.models.loading import LoadedModel, choose_device, load_model
from srlm_pipeline.models.saving import require_savable
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.training.fitting import checkpoints_activations, require_libraries
from srlm_pipeline.training.ranks import agreeing_callback, decided, is_first, n_ranks
from srlm_pipeline.training.resumption import marking_callback, newest_whole

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, Trainer

Function = TypeVar("Function", bound=Callable[..., "TrainingRun"])
# Loads the model that a stage returns, from its folder.
Load = Callable[[Path, "TrainingJob"], LoadedModel]
# One state for all processes, so that another number of them can go on from it.
_FSDP = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class TrainingJob:
    """A training, apart from its examples and its settings.

    Attributes:
        source: Model to start from.
        model: How models are loaded.
        seed: Of data order, adapter initialisation and whatever else is drawn.
        work: Folder for resumable checkpoints; a later job with the same one continues. It stays until the model is
            saved, or an interruption in between would cost the training.
        description: Shown with the progress.
        progress: Where progress is shown.
        launch: Trains in processes of their own; None: this one trains, alone or as one of several.
        strategy: What of the model each of several processes keeps.
    """

    source: str | Path
    model: ModelSettings
    seed: int
    work: Path
    description: str
    progress: ProgressReporter
    launch: Launch | None = None
    strategy: Strategy = "ddp"


class Launch(Protocol):
    """Trains a stage in processes of their own."""

    def __call__(self, stage: Callable[..., TrainingRun], load: Load, job: TrainingJob, *rest: Any) -> TrainingRun:
        """Train, and return what the stage would have returned here.

        Args:
            stage: The function to be called in each process, at the top of its module.
            load: Loads the model that it returns.
            job: The training, which has this launch.
            rest: Further arguments of the stage.
        """
        ...


@dataclass(frozen=True)
class TrainingRun:
    """A trained model and how the training went.

    Attributes:
        loaded: Model with adapters merged, float32, and tokenizer.
        history: The trainer's log, one mapping per logged step.
        n_examples: Training examples.
        n_left_out: Examples that did not fit into the training's length.
        n_cut: Examples whose reply did not fit, and was cut.
    """

    loaded: LoadedModel
    history: Sequence[dict[str, float]] = field(default_factory=list)
    n_examples: int = 0
    n_left_out: int = 0
    n_cut: int = 0

    def first(self, name: str) -> float | None:
        """Return the first logged value of a metric, or None."""
        return next((float(entry[name]) for entry in self.history if name in entry), None)

    def final(self, name: str) -> float | None:
        """Return the last logged value of a metric, or None."""
        return next((float(entry[name]) for entry in reversed(self.history) if name in entry), None)


def load_trained(folder: Path, job: TrainingJob) -> LoadedModel:
    """Load a model that other processes have trained, on the CPU in float32, as `trained_model` returns it."""
    return load_model(folder, job.model.model_copy(update={"device": "cpu"}), dtype="float32")


def launchable(load: Load = load_trained) -> Callable[[Function], Function]:
    """Let a stage's function be called in other processes, where its job says so.

    Args:
        load: Loads the model that it returns.
    """

    def decorate(stage: Function) -> Function:
        @functools.wraps(stage)
        def here_or_there(job: TrainingJob, *rest: Any, **named: Any) -> TrainingRun:
            if job.launch is None:
                return stage(job, *rest, **named)
            given = inspect.signature(stage).bind(job, *rest, **named)
            given.apply_defaults()
            return job.launch(here_or_there, load, *given.args)

        return cast("Function", here_or_there)

    return decorate


def load_for_training(job: TrainingJob, settings: TrainingSettings) -> LoadedModel:
    """Load a model in the type that its training method needs; engines that still hold memory give it back first.

    Randomness is seeded, so that everything drawn from here on is the job's.

    Adapters are trained in float32 over weights in the compute type; full fine-tuning keeps float32 weights, because
    small updates vanish in bfloat16.

    Raises:
        ModelError: If the model cannot be loaded, or could not be saved afterwards.
        SrlmError: If a library that the settings need is missing.
    """
    from transformers import set_seed

    device = choose_device(job.model.device)
    require_libraries(settings, device)
    release_engines()
    set_seed(job.seed)
    loaded = load_model(
        job.source,
        job.model,
        None if settings.keeps_weights else "float32",
        training_attention(job.model),
        quantized=settings.method == "qlora",
    )
    require_savable(job.source, loaded.model, loaded.tokenizer)
    return loaded


def training_attention(model: ModelSettings) -> str | None:
    """Return the attention to train with; None: what the settings say of all models.

    On a CPU the fused attention's backward pass is slower than plain matrix products.
    """
    return "eager" if model.attention == "auto" and choose_device(model.device) == "cpu" else None


def trainer_arguments(job: TrainingJob, settings: TrainingSettings, loaded: LoadedModel) -> dict[str, Any]:
    """Return the arguments that every trainer takes."""
    on_cpu, micro_batch = loaded.model.device.type == "cpu", settings.micro_batches()[0]
    return {
        "output_dir": str(job.work),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": settings.final_learning_rate_ratio},
        "warmup_steps": settings.warmup_ratio,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings.batch_size // (micro_batch * n_ranks()),
        "bf16": _autocasts(settings, loaded),
        "gradient_checkpointing": checkpoints_activations(settings, on_cpu),
        **({} if settings.optimizer == "adamw" else {"optim": settings.optimizer}),
        "use_cpu": on_cpu,
        "logging_steps": 1,
        # Or a loss that is no number would be logged as the one before.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        # None is removed by the trainer: an older one goes when the new one is whole (`marking_callback`).
        "save_total_limit": None,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "seed": job.seed,
        # Every stage's loss depends on all that is trained; and a stage may ask the model several times in a step.
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        **({"fsdp": True, "fsdp_config": dict(_FSDP)} if job.strategy == "fsdp2" else {}),
    }


def _autocasts(settings: TrainingSettings, loaded: LoadedModel) -> bool:
    """Adapters in float32 over bfloat16 weights multiply in bfloat16; full float32 weights do so on a GPU."""
    import torch

    if settings.method == "full":
        return loaded.model.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return bool(loaded.model.dtype == torch.bfloat16)


def adapter_config(settings: TrainingSettings, model: PreTrainedModel) -> LoraConfig | None:
    """Return the LoRA configuration, or None for full fine-tuning.

    Args:
        settings: Rank, scale, and how many of the layers are adapted.
        model: Whose linear layers get adapters.
    """
    if settings.method == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=linear_layers(model, settings.lora.top_layers),
        task_type="CAUSAL_LM",
    )


def linear_layers(model: PreTrainedModel, top_share: float) -> list[str]:
    """Return the names of the linear modules in the upper part of a model's layers.

    Args:
        model: With its layers in one numbered list, as transformers writes all decoders.
        top_share: Of the layers, counted from the output, in (0, 1].
    """
    from torch import nn

    numbered = {
        name: int(found[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (found := _LAYER_NUMBER.search(name))
    }
    n_layers = max(numbered.values()) + 1
    return [name for name, layer in numbered.items() if layer >= n_layers - max(1, round(n_layers * top_share))]


def run_trainer(job: TrainingJob, trainer: Trainer) -> list[dict[str, float]]:
    """Train, continuing from the newest whole checkpoint in the work folder, and return the trainer's log.

    Args:
        job: Whose arguments the trainer has.
        trainer: Built, not started.

    Raises:
        DivergedError: At the first loss or gradient norm that is not finite.
        DivisionError: If processes were to divide the model, and do not.
    """
    from transformers import PrinterCallback

    from srlm_pipeline.acceleration.log_probabilities import cheap_log_probabilities

    trainer.remove_callback(PrinterCallback)
    _require_strategy(job, trainer)
    steps = _planned_steps(trainer)
    if steps == 1:
        # A warm-up begins with a step at rate 0, and there would be no other.
        trainer.args.warmup_steps = 0
    newest, done = decided(lambda: newest_whole(job.work)) or (None, 0)
    with job.progress.task(job.description, steps, "steps", done) as task:
        trainer.add_callback(_progress_callback(task.advance))
        trainer.add_callback(marking_callback())
        trainer.add_callback(_finite_callback(job.description))
        trainer.add_callback(agreeing_callback())
        device = trainer.model.device.type
        with keep_freed_memory(device), cheap_log_probabilities(device), _no_double_casts(trainer):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return [dict(entry) for entry in trainer.state.log_history]


def _require_strategy(job: TrainingJob, trainer: Trainer) -> None:
    """Refuse to train where Accelerate has made something else of an FSDP2 training, as it does on a CPU."""
    state = trainer.accelerator.state
    kind, version = state.distributed_type.value, getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", None)
    if job.strategy == "fsdp2" and (kind != "FSDP" or version != 2):
        raise DivisionError(f"training.launcher.strategy is fsdp2, and Accelerate has made {kind} of it: set it to ddp")


def _no_double_casts(trainer: Trainer) -> AbstractContextManager[None]:
    """Spare adapters a detour: under autocast PEFT's cast of every input to float32 is undone at once."""
    from peft import PeftModel
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(trainer.model, isinstance(trainer.model, PeftModel) and trainer.args.bf16)


def trained_model(job: TrainingJob, settings: TrainingSettings, trainer: Trainer, tokenizer: Any) -> LoadedModel:
    """Return the model as it is trained so far, on the CPU in float32, adapters merged.

    Merging is done on freshly loaded float32 weights: adding an adapter to bfloat16 weights would round it away. Full
    fine-tuning's weights are the trainer's own where it has ended, and a copy of them while it goes on; divided ones
    are gathered. Of several processes all call this, and the first one's is the model.
    """
    if job.strategy == "fsdp2":
        gathered = trainer.accelerator.get_state_dict(trainer.model)
        if not is_first():
            return LoadedModel(trainer.model, tokenizer)
        whole = load_model(job.source, job.model.model_copy(update={"device": "cpu"}), dtype="float32")
        whole.model.load_state_dict(gathered)
        return LoadedModel(whole.model, tokenizer)
    if not is_first():
        return LoadedModel(trainer.model, tokenizer)
    if settings.method == "full":
        network = trainer.accelerator.unwrap_model(trainer.model)
        return LoadedModel(_copy_on_cpu(network) if trainer.is_in_train else network.to("cpu"), tokenizer)
    from peft import PeftModel

    adapter = job.work / "adapter"
    trainer.model.save_pretrained(str(adapter))
    base = load_model(job.source, job.model.model_copy(update={"device": "cpu"}), dtype="float32")
    return LoadedModel(PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload(), tokenizer)


def _copy_on_cpu(network: Any) -> Any:
    """Return a copy on the CPU; beside what is trained, the device has no room for a second one."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach().to("cpu", copy=True), parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(network, memo)


def require_rows(rows: Sequence[object], what: str, remedy: str) -> None:
    """Refuse to train on nothing.

    Raises:
        EmptyDataError: If there are no rows.
    """
    if not rows:
        raise EmptyDataError(f"there are no {what} to train on: {remedy}")


def _planned_steps(trainer: Trainer) -> int:
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * n_ranks()
    per_epoch = -(-len(trainer.train_dataset) // per_step)
    return max(1, round(per_epoch * arguments.num_train_epochs))


def _finite_callback(description: str) -> Any:
    from transformers import TrainerCallback

    class Finite(TrainerCallback):
        """Ends training at the first figure that is no number, before the step is saved."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            for name in ("loss", "grad_norm"):
                value = (logs or {}).get(name)
                if value is not None and not math.isfinite(float(value)):
                    raise DivergedError(description, state.global_step, name, float(value), args.learning_rate)

    return Finite()


def _progress_callback(advance: Callable[[int, str], None]) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Advances a progress task by one per optimiser step, with the latest loss."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            advance(1, f"loss {losses[-1]:.3f}" if losses else "")

    return Progress()
