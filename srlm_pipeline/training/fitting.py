"""Trainings that fit into the memory: how many examples a forward pass takes, and what helps where it is too little."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from srlm_pipeline.config import Settings, TrainingSettings
from srlm_pipeline.errors import DeviceMemoryError, SrlmError
from srlm_pipeline.models.loading import choose_attention, choose_device
from srlm_pipeline.models.memory import free_memory, is_out_of_memory
from srlm_pipeline.models.quantization import bitsandbytes_obstacle

log = logging.getLogger(__name__)

# Where there is no error to learn from: a system whose memory runs out ends the process.
MOST_ON_CPU = 4
_BY_TORCH_ALONE = {("lora", "adamw"), ("full", "adamw")}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fits_memory(train: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a training halve its micro-batches until they fit, or say what to change.

    An optimiser step is made of as many examples as before, in more forward passes. What was trained until then goes
    on from the newest whole checkpoint, if there is one, as after any other interruption.

    Args:
        train: With parameters `job` and `settings`; it always sees a number as `micro_batch_size`.
    """
    signature = inspect.signature(train)

    @wraps(train)
    def fitted(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        call = signature.bind(*args, **kwargs)
        job, settings = call.arguments["job"], call.arguments["settings"]
        on_cpu = choose_device(job.model.device) == "cpu"
        sizes = settings.micro_batches(MOST_ON_CPU if on_cpu else None)
        for size in sizes:
            call.arguments["settings"] = settings.model_copy(update={"micro_batch_size": size})
            try:
                return train(*call.args, **call.kwargs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == sizes[-1]:
                    raise DeviceMemoryError(job.description, remedy(settings, size, on_cpu)) from error
            # Only now does nothing hold the trainer any more: the error held the frames that did.
            free_memory()
            log.warning(
                "%s: the memory ran out with %d examples per forward pass; going on with fewer", job.description, size
            )
        raise AssertionError("there is always a size to try")

    return fitted


def require_libraries(settings: TrainingSettings, device: str) -> None:
    """Refuse settings for which a library is missing, or that the device cannot do.

    Raises:
        SrlmError: Naming the setting, and what to set instead.
    """
    wanted = {
        f"{settings.key}.method: qlora": (settings.method == "qlora", "lora"),
        f"{settings.key}.optimizer: {settings.optimizer}": (settings.optimizer != "adamw", "adamw"),
    }
    for name, (is_wanted, instead) in wanted.items():
        obstacle = bitsandbytes_obstacle(device, on_gpu_alone=instead == "adamw") if is_wanted else None
        if obstacle:
            raise SrlmError(f"{name} {obstacle}; or set it to {instead}")


def require_installed(settings: Settings) -> None:
    """Refuse settings of any stage for which a library or a device is missing, before anything is computed.

    Raises:
        SrlmError: Naming the setting, and what to set instead.
    """
    unusual = [stage for stage in settings.trained_stages if (stage.method, stage.optimizer) not in _BY_TORCH_ALONE]
    if unusual or settings.model.attention == "flash_attention_2":
        # Asking costs the import of torch.
        device = choose_device(settings.model.device)
        choose_attention(settings.model, device)
        for stage in unusual:
            require_libraries(stage, device)


def remedy(settings: TrainingSettings, micro_batch: int, on_cpu: bool) -> str:
    """Return a sentence that names the settings to change, those that change no result first.

    Args:
        settings: Of the training that did not fit.
        micro_batch: Examples per forward pass that were tried last.
        on_cpu: Whether it was trained on a CPU.
    """
    section, choices = settings.key, []
    if micro_batch > 1:
        choices.append(f"lower {section}.micro_batch_size, now {micro_batch}, or set it to auto")
    if not checkpoints_activations(settings, on_cpu):
        choices.append(f"set {section}.gradient_checkpointing to true")
    if settings.method == "full":
        choices.append(f"set {section}.method to lora")
        if not on_cpu and settings.optimizer == "adamw":
            choices.append(f"set {section}.optimizer to adamw_8bit")
    elif settings.method == "lora" and not on_cpu and section != "baselines.reward_model":
        choices.append(f"set {section}.method to qlora")
    choices.append(f"lower {section}.max_length, now {settings.max_length}")
    first, *others = choices
    return f"{first[0].upper()}{first[1:]}{''.join(f'; or {other}' for other in others)}"


def checkpoints_activations(settings: TrainingSettings, on_cpu: bool) -> bool:
    """Whether activations are computed again for the backward pass.

    It saves memory that a small model on a CPU does not lack, for a third more time.
    """
    return not on_cpu if settings.gradient_checkpointing is None else settings.gradient_checkpointing
