"""`srlm doctor`: what is installed, which device will be used, is the configuration valid, is there disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape
from rich.table import Table

from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import EMBEDDED_ENCODER, EMBEDDED_MODEL, Settings, load_settings
from srlm_pipeline.errors import DiskSpaceError, SrlmError
from srlm_pipeline.notices import service_names
from srlm_pipeline.store import open_store
from srlm_pipeline.tracking import former_homes

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "dagster", "dagster-webserver", "mlflow", "pandas")
COMFORTABLE_DISK = 8 * 2**30
COMFORTABLE_MEMORY = 6 * 2**30


def diagnose(overrides: dict[str, Any]) -> bool:
    """Print one line per finding; returns whether nothing stands in the way."""
    table = Table("", "what", "finding", show_header=False, box=None)
    healthy = True
    for name, examine in _examinations(overrides):
        try:
            mark, finding = "[green]ok[/]", examine()
        except SrlmError as error:
            mark, finding, healthy = "[red]!![/]", str(error), False
        except metadata.PackageNotFoundError as error:
            mark, finding, healthy = (
                "[red]!![/]",
                f"{error.name} is not installed: run `pip install srlm_pipeline`",
                False,
            )
        table.add_row(mark, name, escape(finding))
    console.print(table)
    console.print("[green]ready[/]" if healthy else "[red]not ready[/]: mend what is marked")
    return healthy


def _examinations(overrides: dict[str, Any]) -> list[tuple[str, Callable[[], str]]]:
    def settings() -> Settings:
        return load_settings(None, overrides)

    return [
        ("machine", _machine),
        ("packages", lambda: ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)),
        (
            "configuration",
            lambda: f"{os.environ.get('SRLM_CONFIG', 'quickstart')} is valid (project {settings().project})",
        ),
        ("device", lambda: _device(settings())),
        ("acceleration", lambda: _acceleration(settings())),
        ("engine", lambda: _engine(settings())),
        ("base model", lambda: _base_model(settings())),
        ("data", lambda: _data(settings())),
        ("arbiters", lambda: _arbiters(settings())),
        ("other answers", lambda: _other_answers(settings())),
        ("encoder", lambda: _encoder(settings())),
        ("notices", lambda: _notices(settings())),
        ("memory", _memory),
        ("disk", lambda: _disk(settings())),
        ("instance", lambda: _instance(settings())),
    ]


def _machine() -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _device(settings: Settings) -> str:
    import torch

    from srlm_pipeline.models.loading import choose_device, choose_dtype

    device = choose_device(settings.model.device)
    dtype = str(choose_dtype(settings.model.dtype, device)).removeprefix("torch.")
    named = f" ({torch.cuda.get_device_name()})" if device.startswith("cuda") else ""
    return f"{device}{named}, computing in {dtype}"


def _acceleration(settings: Settings) -> str:
    from srlm_pipeline.acceleration.allocation import HUGE_PAGES, KEPT_MEMORY
    from srlm_pipeline.acceleration.caches import IN_PLACE, SHARED_BEGINNING
    from srlm_pipeline.acceleration.log_probabilities import LOG_PROBABILITIES
    from srlm_pipeline.models.loading import choose_device

    device_type = choose_device(settings.model.device).partition(":")[0]
    by_obstacle: dict[str | None, list[str]] = {}
    for acceleration in (IN_PLACE, SHARED_BEGINNING, LOG_PROBABILITIES, KEPT_MEMORY, HUGE_PAGES):
        by_obstacle.setdefault(acceleration.obstacle(device_type), []).append(acceleration.name)
    used = ", ".join(by_obstacle.pop(None, ["none"]))
    unused = [f"not in use ({obstacle}): {', '.join(names)}" for obstacle, names in by_obstacle.items()]
    return "; ".join([used, *unused])


def _engine(settings: Settings) -> str:
    from srlm_pipeline.generation.opening import choose_engine
    from srlm_pipeline.generation.server_pool import models_served

    kind, reason = choose_engine(settings)
    if kind == "vllm":
        from srlm_pipeline.generation.vllm_engine import server_devices

        servers = [f"; server {n} on devices {seen}" for n, seen in enumerate(server_devices(settings), 1) if seen]
        return f"{kind}: {reason}{''.join(servers)}"
    if kind != "openai":
        return f"{kind}: {reason}"
    served = models_served(settings.engine)
    found = "; ".join(f"{address} serves {', '.join(names) or 'nothing'}" for address, names in served.items())
    return f"{kind}: {reason}; {found}"


def _base_model(settings: Settings) -> str:
    from srlm_pipeline.models.chat_format import chat_format
    from srlm_pipeline.models.embedded import gguf_path
    from srlm_pipeline.models.loading import load_tokenizer

    if settings.base_model == EMBEDDED_MODEL:
        return f"{settings.base_model}, from {gguf_path().name}"
    if Path(settings.base_model).is_dir():
        known = chat_format(load_tokenizer(settings.base_model, settings.model))
        thinks = f", after a thought ({known.thinking.start})," if known.thinks else ""
        return f"folder {settings.base_model}: by its chat template it replies{thinks} and ends with {known.turn_end}"
    return f"{settings.base_model}, from the model hub when it is first needed"


def _data(settings: Settings) -> str:
    from srlm_pipeline.checks.closed_tasks import load_closed_tasks
    from srlm_pipeline.checks.verifiable import load_verifiable
    from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
    from srlm_pipeline.data.rows import in_words

    ift, ranked, evaluation = (
        load(settings.data) for load in (load_instructions, load_ranked_replies, load_evaluation_prompts)
    )
    counted = (
        ("instruction pairs", len(ift.table), ift),
        ("judging prompts", ranked.table["group_id"].nunique(), ranked),
        ("evaluation prompts", len(evaluation.table), evaluation),
    )
    found = ", ".join(
        f"{count} {what}" + (f" (left out: {in_words(loaded.left_out)})" if loaded.left_out else "")
        for what, count, loaded in counted
    )
    unread = "".join(
        f"; {loaded.warning(name)}"
        for name, loaded in (("ift", ift), ("ranked_replies", ranked), ("evaluation_prompts", evaluation))
        if loaded.unread
    )
    verifiable = load_verifiable(settings.evaluation.verifiable)
    tasks = load_closed_tasks(settings.evaluation.closed_tasks.source, settings.evaluation.closed_tasks.limit)
    with_reference = int(evaluation.table["reference"].notna().sum())
    return (
        f"{found}, {with_reference} of them with a reference reply, {len(verifiable)} verifiable prompts, "
        f"{len(tasks)} closed tasks{unread}"
    )


def _arbiters(settings: Settings) -> str:
    from srlm_pipeline.evaluation.independence import ADVICE, dependences
    from srlm_pipeline.evaluation.opening import juror_names

    names = ", ".join(juror_names(settings.evaluation))
    reasons = dependences(settings)
    if not reasons:
        return f"{names}: independent of the loop"
    return (
        f"{names}: not independent ({'; '.join(reasons)}), so its verdicts are shown as the loop's own opinion and "
        f"promote nothing by themselves; {ADVICE}"
    )


def _other_answers(settings: Settings) -> str:
    from srlm_pipeline.evaluation.other_answers import require_names

    return ", ".join(require_names([Path(path) for path in settings.evaluation.other_answers])) or "none"


def _encoder(settings: Settings) -> str:
    from srlm_pipeline.models.sentence_encoder import encoder_archive, how_to_get_it

    if settings.evaluation.encoder == "none":
        return "off (evaluation.encoder): nearness to reference replies is not measured"
    if encoder_archive() is None:
        # No obstacle: everything else is measured without it.
        return f"nearness to reference replies will not be measured: {how_to_get_it()}"
    return f"{EMBEDDED_ENCODER}, for nearness to reference replies"


def _notices(settings: Settings) -> str:
    names = service_names(settings.notices)
    if not names:
        return f"nobody is told of verdicts and failures: {settings.notices.variable} holds no address"
    return f"{', '.join(names)} ({settings.notices.variable}); `srlm notify` sends a message to try"


def _instance(settings: Settings) -> str:
    former = former_homes(settings)
    moved = f"; it was {' and '.join(former)} before, and MLflow's addresses follow with the next run" if former else ""
    return os.environ["DAGSTER_HOME"] + moved


def _memory() -> str:
    free = psutil.virtual_memory().available
    if free < COMFORTABLE_MEMORY:
        raise SrlmError(f"{free / 2**30:.1f} GiB free; the quickstart wants {COMFORTABLE_MEMORY / 2**30:.0f} GiB")
    return f"{free / 2**30:.1f} GiB free"


def _disk(settings: Settings) -> str:
    folder = open_store(settings).root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < COMFORTABLE_DISK:
        raise DiskSpaceError(folder, COMFORTABLE_DISK, free)
    return f"{free / 2**30:.1f} GiB free at {folder}"
