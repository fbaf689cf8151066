"""`srlm plan`: what a run will take, from a probe of this machine or from stated figures of another."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import ModelError, SrlmError
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.planning.machines import (
    find_gpu,
    parse_devices,
    parse_size,
    remedies,
    shape_of_size,
    stated_basis,
)
from srlm_pipeline.planning.plan import Basis, Plan, Range, StagePlan, make_plan, plan_path, read_record, write_record
from srlm_pipeline.planning.sharding import ModelShape
from srlm_pipeline.planning.texts import TextMeasure, load_data, measure_data, measure_of
from srlm_pipeline.store import ProjectStore, open_store

NONE = "\u2013"


def plan_from_probe(settings: Settings, iterations: int, fresh: bool) -> Plan:
    """Plan for this machine; measured once for each model and machine, and kept for the report.

    Args:
        settings: All settings.
        iterations: How many are planned.
        fresh: Measure everything, training too, even if that was done before for these settings.
    """
    from srlm_pipeline.generation.opening import open_engine
    from srlm_pipeline.models.loading import load_tokenizer
    from srlm_pipeline.planning.probe import Rates, measure_rates, probe_path, quick_basis, rates_path, run_probe

    store = open_store(settings)
    base = store.base_checkpoint(settings)
    data = load_data(settings)
    measure = measure_of(load_tokenizer(base.path, settings.model), data.ift["response"].tolist())
    shape = configured_shape(settings, store)
    probed, rated = (path_of(store.root, settings, base.digest) for path_of in (probe_path, rates_path))

    def open_(checkpoint: Checkpoint, batch_size: int) -> TextEngine:
        return open_engine(checkpoint, settings, batch_size)

    def announce(line: str) -> None:
        console.print(f"  {line}", style="dim")

    basis = None if fresh else read_record(Basis, probed)
    if fresh:
        console.print("Measuring this machine, a minute or more; the next plan answers at once", style="dim")
        basis = run_probe(base, shape, settings, data, measure, open_, probed.parent, announce)
        write_record(basis, probed)
    if basis is None:
        rates = read_record(Rates, rated)
        if rates is None:
            console.print("Measuring this machine for a few seconds; the next plan answers at once", style="dim")
            rates = measure_rates(base, settings, data, measure, open_, announce)
            write_record(rates, rated)
        basis = quick_basis(rates, shape, settings)
    plan = make_plan(settings, measure_data(settings, data, measure), basis, iterations, settings.base_model)
    write_record(plan, plan_path(store.root, settings))
    return plan


def plan_from_figures(
    settings: Settings, iterations: int, device: str, n_gpus: int | None, size: str | None, price: float | None = None
) -> Plan:
    """Plan for a GPU from its maker's figures; nothing is measured and no weights are read.

    Args:
        settings: All settings.
        iterations: How many are planned.
        device: Short name of the GPU, with how many there are: ``8 x h100``.
        n_gpus: How many, unless `device` says.
        size: Of the model, e.g. ``8B``; None: the configured model's shape.
        price: Of one GPU's hour, in any currency.

    Raises:
        SrlmError: If the device is not known, or its number is given twice.
    """
    name, number = parse_devices(device)
    if n_gpus is not None and number not in (1, n_gpus):
        raise SrlmError(f"--device {device!r} and --gpus {n_gpus} are two numbers of devices: leave one out")
    gpu, n_gpus = find_gpu(name), n_gpus or number
    shape = shape_of_size(parse_size(size)) if size else configured_shape(settings, open_store(settings))
    plan = make_plan(
        settings,
        measure_data(settings, load_data(settings), TextMeasure()),
        stated_basis(gpu, n_gpus, shape, settings),
        iterations,
        f"a model of {size}" if size else settings.base_model,
        ((words, other, stated_basis(gpu, n, shape, other)) for words, other, n in remedies(settings, n_gpus)),
    )
    return plan.model_copy(update={"price": price})


def configured_shape(settings: Settings, store: ProjectStore) -> ModelShape:
    """Return the shape of the configured base model, from its configuration alone.

    Raises:
        ModelError: If that cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = store.base_model(settings)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=settings.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(source, "its configuration cannot be read; give --model-size, e.g. 8B") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.model.trust_remote_code)
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        sum(p.numel() for p in model.parameters()),
        text.num_hidden_layers,
        text.hidden_size,
        heads * size,
        text.vocab_size,
    )


def show_plan(plan: Plan) -> RenderableType:
    """Return a plan for people: the bottom line, the stages, what was assumed."""
    table = Table(
        Column("stage", no_wrap=True),
        Column("work", no_wrap=True),
        Column("tokens\nin", justify="right", no_wrap=True),
        Column("tokens\nout", justify="right", no_wrap=True),
        Column("time", justify="right", no_wrap=True),
        Column("range", no_wrap=True),
        Column("mem.\nGiB", justify="right", no_wrap=True),
        Column("disk\nGiB", justify="right", no_wrap=True),
        box=box.SIMPLE,
        padding=(0, 0),
    )
    for phase, title in (("seed", "seed, once"), ("iteration", "each iteration")):
        stages = [stage for stage in plan.stages if stage.phase == phase]
        for stage in stages:
            table.add_row(*_cells(stage))
        total = plan.phase_seconds(stages[0].phase)
        table.add_row(title, "", "", "", duration(total.likely), span(total), "", "", style="bold", end_section=True)
    lines: list[RenderableType] = [Text.from_markup(f"[bold]{escape(plan.project)}[/]: {escape(_subject(plan))}")]
    lines.append(Text(bottom_line(plan), style="bold"))
    lines += [Text(f"Warning: {warning}", style="red") for warning in plan.warnings]
    lines.append(table)
    if plan.basis.ranks:
        lines.append(_ranks_table(plan.basis))
    lines += [Text(f"- {line}", style="dim") for line in (*plan.basis.notes, *plan.assumptions)]
    return Group(*lines)


def bottom_line(plan: Plan) -> str:
    """Return the plan in one sentence."""
    n, basis = plan.iterations, plan.basis
    longest, seconds = plan.longest, plan.seconds
    share = longest.seconds.likely * plan.repeats(longest) / max(seconds.likely, 1e-9)
    beside = f" (and {size(basis.host_memory)} of the host's)" if basis.host_memory else ""
    cost = f"{money(plan.cost(seconds))} in all, {money(plan.cost(plan.phase_seconds('iteration')))} an iteration; "
    return (
        f"About {duration(seconds.likely)} ({span(seconds)}) for the seed and {n} iteration{'' if n == 1 else 's'}; "
        f"peak memory {size(plan.memory)} of {size(basis.available)}{beside}; disk {size(plan.disk)}; "
        f"{cost if plan.price else ''}"
        f"{longest.stage} takes most of the time ({share:.0%})."
    )


def money(cost: Range) -> str:
    """Return a cost with its two ends, in the currency of the price."""
    return f"{_two_digits(cost.likely)} ({_two_digits(cost.low)}-{_two_digits(cost.high)})"


def duration(seconds: float) -> str:
    """Return a time with two digits, in the unit that suits it."""
    unit, name = _time_unit(seconds)
    return f"{_two_digits(seconds / unit)} {name}"


def span(seconds: Range) -> str:
    """Return an estimate's two ends."""
    unit, name = _time_unit(seconds.high)
    return f"{_two_digits(seconds.low / unit)}-{_two_digits(seconds.high / unit)} {name}"


def size(n_bytes: float) -> str:
    """Return bytes with two digits, in the unit that suits it."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= unit:
            return f"{_two_digits(n_bytes / unit)} {name}"
    return f"{n_bytes / 2**10:.0f} KiB"


def count(number: float) -> str:
    """Return a count of tokens, rounded to what can be read at a glance."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{_two_digits(number / unit)} {name}"
    return f"{number:.0f}"


def _ranks_table(basis: Basis) -> Table:
    """Return what each device would hold while DPO is trained, in the ways there are."""
    table = Table(
        Column("GiB on each device,\nwhile DPO is trained", no_wrap=True),
        Column("de-\nvices", justify="right", no_wrap=True),
        Column("\nweights", justify="right", no_wrap=True),
        Column("grads,\nmoments", justify="right", no_wrap=True),
        Column("all: act.\nanew", justify="right", no_wrap=True),
        Column("\nkept", justify="right", no_wrap=True),
        Column("\nfits", no_wrap=True),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for rank in basis.ranks:
        optimizer = "" if rank.optimizer == "adamw" else f", {rank.optimizer}"
        strategy = "" if rank.strategy == "one" else f", {rank.strategy}"
        sizes = (rank.weights, rank.states, rank.checkpointed, rank.kept)
        cells = (f"{rank.method}{optimizer}{strategy}", str(rank.ranks), *map(_gib, sizes))
        table.add_row(*cells, "yes" if rank.fits else "no")
    return table


def _cells(stage: StagePlan) -> tuple[str, ...]:
    return (
        stage.stage,
        f"{stage.items:,} {stage.unit}",
        count(stage.tokens_read) if stage.tokens_read else NONE,
        count(stage.tokens_written) if stage.tokens_written else NONE,
        *((duration(stage.seconds.likely), span(stage.seconds)) if stage.seconds.likely else (NONE, NONE)),
        _gib(stage.memory),
        _gib(stage.disk_kept + stage.disk_meanwhile),
    )


def _subject(plan: Plan) -> str:
    how = "measured" if plan.basis.source == "probe" else "from stated figures"
    return f"{plan.model} on {plan.basis.machine} ({how})"


def _time_unit(seconds: float) -> tuple[int, str]:
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return unit, name
    return 86400, "d"


def _gib(n_bytes: float) -> str:
    return _two_digits(n_bytes / 2**30) if n_bytes >= 0.05 * 2**30 else NONE


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
