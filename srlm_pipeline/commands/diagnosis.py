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

from srlm_pipeline.archive import open_archive
from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import (
    EMBEDDED_ENCODER,
    EMBEDDED_MODEL,
    PROGRAMS,
    ArbiterSettings,
    PanelMember,
    ServerSettings,
    Settings,
    load_settings,
)
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
        ("training", lambda: _training(settings())),
        ("acceleration", lambda: _acceleration(settings())),
        ("engine", lambda: _engine(settings())),
        ("base model", lambda: _base_model(settings())),
        ("data", lambda: _data(settings())),
        ("arbiters", lambda: _arbiters(settings())),
        ("other models", lambda: _other_models(settings())),
        ("other answers", lambda: _other_answers(settings())),
        ("encoder", lambda: _encoder(settings())),
        ("notices", lambda: _notices(settings())),
        ("archive", lambda: _archive(settings())),
        ("memory", _memory),
        ("what fits", lambda: _what_fits(settings())),
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


def _training(settings: Settings) -> str:
    from srlm_pipeline.training.devices import require_division
    from srlm_pipeline.training.fitting import require_installed

    require_installed(settings)
    division = require_division(settings)
    if division.processes == 1:
        return f"one process on {division.devices[0]}"
    devices = f"{division.processes} cores" if division.devices[0] == "cpu" else ", ".join(division.devices)
    return f"{division.processes} processes ({division.strategy}) on {devices}"


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
    from srlm_pipeline.models.embedded import gguf_path

    if settings.base_model == EMBEDDED_MODEL:
        return f"{settings.base_model}, from {gguf_path().name}"
    return _model_here(settings.base_model, settings)


def _model_here(model: str, settings: Settings) -> str:
    """Return what is found out of a model that is loaded here: that of a folder by its chat template."""
    from srlm_pipeline.models.chat_format import chat_format
    from srlm_pipeline.models.loading import load_tokenizer

    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"{model}, from the model hub when it is first needed"
    known = chat_format(load_tokenizer(folder, settings.model))
    thinks = f", after a thought ({known.thinking.start})," if known.thinks else ""
    return f"folder {model}: by its chat template it replies{thinks} and ends with {known.turn_end}"


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


def _other_models(settings: Settings) -> str:
    """Return what is found out of the models that judge beside the project's own; a server is asked one short thing."""
    judges: tuple[ArbiterSettings | PanelMember, ...] = (*settings.judge.panel, *settings.evaluation.arbiters)
    own = ("self", *PROGRAMS)
    different = {(judge.model, judge.server.base_url): judge for judge in judges if judge.model not in own}
    found = [
        _server_answers(judge.model, judge.server) if judge.server.base_url else _model_here(judge.model, settings)
        for judge in different.values()
    ]
    return "; ".join(found) or "none"


def _server_answers(model: str, server: ServerSettings) -> str:
    from srlm_pipeline.generation.chat_engine import ChatClient
    from srlm_pipeline.generation.engine import Sampling

    # One try; fields that the server does not know are left out one by one. It may load the model only now.
    quick = server.model_copy(
        update={"timeout_seconds": min(60.0, server.timeout_seconds), "max_retries": 0, "max_requests": 5}
    )
    answer = ChatClient(quick).chat(model, "Say yes.", Sampling(max_new_tokens=16, temperature=0.0))
    spoke = "answers" if answer.text or answer.finish_reason == "length" else "answers, but says nothing"
    return f"{model} at {server.base_url} {spoke}"


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


def _archive(settings: Settings) -> str:
    archive = open_archive(settings)
    if archive is None:
        return "none: what is finished is in the Dagster home alone (archive.url)"
    archive.remote.probe()
    return f"{archive.remote.address} can be written; {archive.standing()}"


def _instance(settings: Settings) -> str:
    former = former_homes(settings)
    moved = f"; it was {' and '.join(former)} before, and MLflow's addresses follow with the next run" if former else ""
    return os.environ["DAGSTER_HOME"] + moved


def _memory() -> str:
    free = psutil.virtual_memory().available
    if free < COMFORTABLE_MEMORY:
        raise SrlmError(f"{free / 2**30:.1f} GiB free; the quickstart wants {COMFORTABLE_MEMORY / 2**30:.0f} GiB")
    return f"{free / 2**30:.1f} GiB free"


def _what_fits(settings: Settings) -> str:
    """Hold what each stage needs at most, by formula, against the devices found, and name the strategy to take."""
    from srlm_pipeline.commands.planning import configured_shape
    from srlm_pipeline.planning.machines import most_held, trainers
    from srlm_pipeline.planning.probe import devices_here, memory_here
    from srlm_pipeline.planning.sharding import choose_strategy

    store = open_store(settings)
    converted = settings.base_model != EMBEDDED_MODEL or (store.shared / EMBEDDED_MODEL).is_dir()
    if not converted or not Path(store.base_model(settings)).is_dir():
        return "not looked at: the base model is not here yet"
    shape = configured_shape(settings, store)
    memory, available = memory_here(shape, settings)
    sections: dict[str, str] = {"engine": "writing"}
    sections.update({trainer: chosen.key for trainer, chosen in trainers(settings).items()})
    needed = {kind: memory[kind].fixed + memory[kind].per_token * held for kind, held in most_held(settings).items()}
    listed = ", ".join(f"{sections[kind]} {n / 2**30:.1f}" for kind, n in needed.items())
    whole = f"{listed} of {available / 2**30:.1f} GiB with texts as long as may be"
    devices, strategies = devices_here(settings), ""
    if devices > 1:
        chosen = {t.key: choose_strategy(shape, t, devices, available) for t in trainers(settings).values()}
        strategies = "; strategy to take: " + ", ".join(f"{n} {how} on {ranks}" for n, (how, ranks) in chosen.items())
    large = [sections[kind] for kind, n in needed.items() if n > available]
    if not large:
        return f"{whole}: all fit{strategies}"
    way_out = "lower micro_batch_size, set gradient_checkpointing or method: lora; `srlm plan` says more"
    return f"{whole}: {', '.join(large)} may not fit: {way_out}{strategies}"


def _disk(settings: Settings) -> str:
    folder = open_store(settings).root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < COMFORTABLE_DISK:
        raise DiskSpaceError(folder, COMFORTABLE_DISK, free)
    return f"{free / 2**30:.1f} GiB free at {folder}"
