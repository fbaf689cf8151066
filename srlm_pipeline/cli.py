"""The command line: srlm run | plan | status | report | chat | read | export | ui | doctor | ..."""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from srlm_pipeline.commands.home import prepare_home, require_writable
from srlm_pipeline.commands.stopping import STATUS, StoppedError, stoppable
from srlm_pipeline.commands.terminal import console, terminal_reporter
from srlm_pipeline.config import OVERRIDES_VARIABLE, load_settings, merge_overrides
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.files import disk_trouble

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Self-Rewarding Language Models: a model that learns from its own judgement, round after round.",
    pretty_exceptions_show_locals=False,
)

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="Preset name or YAML file; default: SRLM_CONFIG, else quickstart.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override one setting, e.g. --set dpo.beta=0.2; repeatable.")
]


@app.command()
def run(
    iterations: Annotated[int, typer.Option("--iterations", "-n", min=0, help="How many iterations.")] = 2,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Train the seed model and run iterations; what is already done is not done again."""
    prepare(config)
    require_writable()
    overrides = merge_overrides(set_ or [])
    os.environ[OVERRIDES_VARIABLE] = json.dumps(overrides)
    settings = load_settings()
    quiet_libraries()
    import dagster as dg

    from srlm_pipeline.commands.launch import run_loop
    from srlm_pipeline.commands.overview import overview_table
    from srlm_pipeline.definitions import defs
    from srlm_pipeline.progress import show_in_terminal

    console.print(f"[bold]{settings.project}[/]: {settings.base_model}, {iterations} iterations")
    show_in_terminal(terminal_reporter())

    def announce(line: str) -> None:
        console.print(f"[cyan]{escape(line)}[/]")

    with stoppable(announce), dg.DagsterInstance.get() as instance:
        times = run_loop(defs, instance, iterations, overrides, announce)
        if times.seconds:
            console.print(times_table(times.seconds))
            console.print(f"Peak memory {peak_memory_gib():.1f} GiB")
        console.print(overview_table(instance, settings))
    console.print("Browse it all with [bold]srlm ui[/]")


@app.command()
def plan(
    iterations: Annotated[int, typer.Option("--iterations", "-n", min=0, help="How many iterations.")] = 2,
    config: ConfigOption = None,
    set_: SetOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure this machine again, training too.")] = False,
    prompts: Annotated[int | None, typer.Option(min=1, help="Invented prompts per iteration.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="GPUs instead of this machine: h200, h100, a100, l40s, rtx4090, or e.g. '8 x h100'."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many of them.")] = None,
    model_size: Annotated[str | None, typer.Option(help="Instead of the configured model's: 8B, 135M, ...")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU's hour, in any currency.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Estimate time, tokens, memory and disk before a run."""
    if device is None and (gpus or model_size or price is not None):
        raise SrlmError(
            "--gpus, --model-size and --price belong to stated figures: name a --device too, e.g. --device h200"
        )
    if device and config is None and "SRLM_CONFIG" not in os.environ:
        config = "single-gpu"
    prepare(config)
    quiet_libraries()
    from srlm_pipeline.commands.planning import plan_from_figures, plan_from_probe, show_plan

    named = [] if prompts is None else [f"prompt_generation.count={prompts}"]
    settings = load_settings(None, merge_overrides([*(set_ or []), *named]))
    planned = (
        plan_from_figures(settings, iterations, device, gpus, model_size, price)
        if device
        else plan_from_probe(settings, iterations, fresh)
    )
    if json_:
        print(planned.model_dump_json(indent=2))
    else:
        console.print(show_plan(planned), highlight=False)


@app.command()
def status(config: ConfigOption = None) -> None:
    """Show models, iterations, their key figures, and what is running, refused or out of date."""
    prepare(config)
    require_writable()
    settings = load_settings()
    import dagster as dg

    from srlm_pipeline.commands.overview import overview_table
    from srlm_pipeline.commands.standing import standing
    from srlm_pipeline.definitions import defs

    with dg.DagsterInstance.get() as instance:
        console.print(overview_table(instance, settings))
        for line in standing(defs, instance, settings) or ["Everything is up to date."]:
            console.print(escape(line), highlight=False)


@app.command()
def report(
    iteration: Annotated[int | None, typer.Argument(help="Which iteration; default: the newest.")] = None,
    config: ConfigOption = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the whole report in a browser.")] = False,
) -> None:
    """Print the head of an iteration's report and where the whole of it is; with --open, show it in a browser."""
    prepare(config)
    import webbrowser

    from rich.markdown import Markdown

    from srlm_pipeline.store import open_store, partition_key

    folder = open_store(load_settings()).root / "reports"
    # Of the pages of an iteration the report alone has a head for terminals.
    newest = max(folder.glob("iter_*.md"), default=folder / "none").with_suffix(".html")
    page = folder / f"{partition_key(iteration)}.html" if iteration else newest
    if not page.is_file():
        raise SrlmError(f"there is no report yet at {page}: run `srlm run` or materialize iteration_report")
    console.print(Markdown(page.with_suffix(".md").read_text(encoding="utf-8")))
    console.print(f"The whole report: {page}\nAll iterations: {folder / 'index.html'}", soft_wrap=True)
    if open_:
        webbrowser.open(page.as_uri())


@app.command()
def chat(
    models: Annotated[
        list[str] | None, typer.Argument(help="One model or two side by side: base, sft_baseline, M1, M2, ...")
    ] = None,
    config: ConfigOption = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 256,
) -> None:
    """Talk to a model, or to two of them side by side."""
    prepare(config)
    quiet_libraries()
    from srlm_pipeline.commands.talk import talk

    talk(load_settings(), models or [], temperature, max_new_tokens)


@app.command()
def read(
    models: Annotated[
        list[str] | None, typer.Argument(help="The two models to compare: base, sft_baseline, M1, M2, ...")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts, of all kinds in turn.")] = 30,
    reader: Annotated[str | None, typer.Option(help="Who reads; default: the user's name on this machine.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, order and sides.")] = 0,
    results: Annotated[bool, typer.Option("--results", help="Only show what the kept votes add up to.")] = False,
    config: ConfigOption = None,
) -> None:
    """Read two models' replies side by side, without names, and say by one key which is better.

    a, 1 or the left arrow: the left or upper reply; b, 2 or the right arrow:
    the other; t, = or the space bar: equally good; s: skip; u: undo; q: stop.
    Votes are kept, and the same command goes on where it stopped.
    """
    prepare(config)
    quiet_libraries()
    from srlm_pipeline.commands.reading import read_pairs, show_results

    if results:
        show_results(load_settings(), models or [])
    else:
        read_pairs(load_settings(), models or [], prompts, seed, reader)


@app.command()
def ui(
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    dagster_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name by which others call this machine; repeatable.")
    ] = None,
) -> None:
    """Start Dagster (web server and daemon) and MLflow together; Ctrl-C ends all."""
    prepare(config)
    require_writable()
    from srlm_pipeline.commands.servers import serve

    serve(load_settings(), host, dagster_port, mlflow_port, allowed_host or ())


@app.command()
def doctor(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Check what is installed, which device will be used, whether the configuration is valid and the disk suffices."""
    from srlm_pipeline.commands.diagnosis import diagnose

    if config:
        os.environ["SRLM_CONFIG"] = config
    prepare_home()
    healthy = diagnose(merge_overrides(set_ or []))
    raise typer.Exit(0 if healthy else 1)


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without, it is only shown.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show what takes up disk and is needed no more, and why the rest is; with --delete, delete it."""
    prepare(config)
    require_writable()
    quiet_libraries()
    from srlm_pipeline.commands.cleaning import clean

    clean(load_settings(), delete)


@app.command()
def notify(
    text: Annotated[str, typer.Argument(help="What to say.")] = "Notices of srlm_pipeline arrive here.",
    config: ConfigOption = None,
) -> None:
    """Send a message to everybody who is told of verdicts and failures, to see whether it arrives."""
    prepare(config)
    from srlm_pipeline.notices import addresses, deliver

    settings = load_settings()
    told = addresses(settings.notices)
    if not told:
        raise SrlmError(f"{settings.notices.variable} holds no address; docs/usage.md has examples")
    deliver(told, settings.project, text, settings.notices)
    console.print(f"{len(told)} told")


export_app = typer.Typer(help="Write what was made in the forms that other tools take.", no_args_is_help=True)
app.add_typer(export_app, name="export")
TargetArgument = Annotated[Path, typer.Argument(help="Folder to write to; it must not exist yet.")]
IterationsOption = Annotated[
    list[int] | None, typer.Option("--iteration", "-i", min=1, help="Which, repeatable; default: all that there are.")
]
FormatOption = Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="Of the data file.")]
PushOption = Annotated[
    str | None, typer.Option("--push", help="Send it to this repository of the hub, user/name, too; needs HF_TOKEN.")
]
PublicOption = Annotated[bool, typer.Option("--public", help="With --push: a repository that everybody sees.")]


def to_hub(repository: str | None, kind: Literal["model", "dataset"], public: bool) -> Callable[[Path], None]:
    """Return what sends an export to the hub, where that was asked for; a missing token is told before the export."""
    from srlm_pipeline.hub import push, require_token

    if repository is None:
        return lambda _: None
    require_token()

    def send(folder: Path) -> None:
        address = push(folder, repository, kind, public)
        console.print(f"sent to {escape(address)}", soft_wrap=True)

    return send


@export_app.command(name="pairs")
def export_pairs_command(
    target: TargetArgument,
    iteration: IterationsOption = None,
    format_: FormatOption = "parquet",
    push: PushOption = None,
    public: PublicOption = False,
    config: ConfigOption = None,
) -> None:
    """Preference pairs as TRL's DPOTrainer takes them, with a dataset card."""
    prepare(config)
    from srlm_pipeline.exports import export_pairs, iterations_with
    from srlm_pipeline.store import open_store

    settings = load_settings()
    store = open_store(settings)
    sending = to_hub(push, "dataset", public)
    n = export_pairs(store, iteration or iterations_with(store, "preference_pairs"), settings, target, format_)
    console.print(f"{n} pairs in {escape(str(target))}")
    sending(target)


@export_app.command(name="replies")
def export_replies_command(
    target: TargetArgument,
    iteration: IterationsOption = None,
    min_score: Annotated[float, typer.Option(min=0, max=5, help="What a reply has to score.")] = 4.0,
    format_: FormatOption = "parquet",
    push: PushOption = None,
    public: PublicOption = False,
    config: ConfigOption = None,
) -> None:
    """Replies that the model judged good, as TRL's SFTTrainer takes them, with a dataset card."""
    prepare(config)
    from srlm_pipeline.exports import export_replies, iterations_with
    from srlm_pipeline.store import open_store

    settings = load_settings()
    store = open_store(settings)
    chosen = iteration or iterations_with(store, "judged_scores")
    sending = to_hub(push, "dataset", public)
    n = export_replies(store, chosen, min_score, settings, target, format_)
    console.print(f"{n} replies in {escape(str(target))}")
    sending(target)


@export_app.command(name="model")
def export_model_command(
    model: Annotated[str, typer.Argument(help="sft_baseline, M1, M2, ...")],
    target: TargetArgument,
    push: PushOption = None,
    public: PublicOption = False,
    config: ConfigOption = None,
) -> None:
    """A model as `from_pretrained` takes it, with a model card: lineage, verdict, figures, licence of the base."""
    prepare(config)
    quiet_libraries()
    from srlm_pipeline.exports import export_model
    from srlm_pipeline.store import open_store

    settings = load_settings()
    store = open_store(settings)
    sending = to_hub(push, "model", public)
    export_model(store, store.named_model(settings, model), settings, target)
    console.print(f"{model} in {escape(str(target))}")
    sending(target)


@app.command(name="settings")
def settings_command() -> None:
    """List every setting with its default and meaning."""
    from srlm_pipeline.config import describe_fields

    table = Table("setting", "default", "meaning")
    for row in describe_fields():
        table.add_row(*map(escape, row))
    console.print(table)


def prepare(config: str | None) -> None:
    """Find the Dagster home and make the chosen configuration the one that the definitions load."""
    prepare_home()
    if config:
        known_file = Path(config).expanduser()
        os.environ["SRLM_CONFIG"] = str(known_file.resolve()) if known_file.is_file() else config


def quiet_libraries() -> None:
    """Keep other libraries' bars and warnings off the terminal, where ours are shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # What goes wrong is raised as well, and told in a sentence.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")


def times_table(seconds: dict[str, float]) -> Table:
    """Return seconds and share by stage."""
    total = sum(seconds.values())
    table = Table("stage", "seconds", "share", title="Where the time went")
    for name, value in seconds.items():
        table.add_row(escape(name), f"{value:.1f}", f"{value / total:.0%}")
    table.add_row("total", f"{total:.1f}", "100%", style="bold")
    return table


def peak_memory_gib() -> float:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    """Entry point: errors that a user can mend are shown as sentences, without a traceback."""
    try:
        app()
    except SrlmError as error:
        _end_with(str(error))
    except StoppedError:
        sys.exit(STATUS)
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        _end_with(trouble)


def _end_with(sentence: str) -> None:
    console.print(f"[bold red]error[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
