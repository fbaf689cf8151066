"""Start-up times, and what Dagster and MLflow add to an iteration."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    ROOT,
    Bench,
    Measurement,
    Verdict,
    interleave,
    model_folder,
    options,
    parse,
    run_python,
    timed,
)

TARGET = 5.0
ASSETS = ("policy", "generated_prompts", "candidates", "judged_scores", "preference_pairs", "iteration_model")
IMPORTS = {
    "import srlm_pipeline.definitions": "import srlm_pipeline.definitions",
    "import torch, transformers, TRL's trainers": "import torch, transformers; from trl import DPOTrainer, SFTTrainer",
}
LOAD = (
    "import sys, time; from srlm_pipeline.config import ModelSettings; "
    "from srlm_pipeline.models.loading import load_model; import torch, transformers; started = time.perf_counter(); "
    "load_model(sys.argv[1], ModelSettings(device=sys.argv[2])); print(time.perf_counter() - started)"
)
# So little work that what surrounds it shows.
TINY: dict[str, Any] = {
    "engine": {"kind": "transformers"},
    "prompt_generation": {"count": 2, "max_new_tokens": 48, "max_attempts_factor": 100},
    "candidates": {"per_prompt": 4, "max_new_tokens": 16},
    "judge": {"mode": "distribution", "rubric": "short"},
    "pairs": {"min_margin": 0.0},
    "dpo": {"epochs": 1, "batch_size": 2, "micro_batch_size": 2, "max_length": 128},
}
TINY_WORDS = 200


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--worker", choices=["prepare", "assets", "core", "quickstart"], help=argparse.SUPPRESS)
    args = parse(parser, arguments, {})
    if args.worker:
        work(args)
        return
    bench = Bench("startup", "Start-up and overhead", args)
    folder = model_folder(args).resolve()

    with tempfile.TemporaryDirectory() as temporary:
        prepared, tiny = Path(temporary) / "prepared", Path(temporary) / "tiny"
        save_tiny_model(folder, tiny)

        def in_home(target: Path, worker: str, model: Path) -> Twice:
            """Run a worker in a process of its own."""
            own = ("--model", str(model), "--device", args.device, "--seed", str(args.seed), "--worker", worker)
            printed, whole = run_python("-m", "benchmarks.startup", *own, environment=home(target))
            seconds = json.loads(printed.splitlines()[-1])
            return Twice(whole - seconds[-1], seconds[-1])

        def in_copy(worker: str, model: Path, repetition: int = 0) -> Twice:
            """Run a worker in a home where nothing is done yet."""
            target = Path(temporary) / f"{worker}{repetition}"
            shutil.copytree(prepared, target)
            return in_home(target, worker, model)

        def started(*command: str | int) -> float:
            """Run a command; the number of the repetition comes last and is not part of it."""
            return run_python(*map(str, command[:-1]), environment=home(prepared))[1]

        in_home(prepared, "prepare", tiny)
        times = interleave(
            bench,
            {
                "an empty Python process": partial(started, "-c", "pass"),
                **{name: partial(started, "-c", code) for name, code in IMPORTS.items()},
                "load_model": lambda _: float(run_python("-c", LOAD, str(folder), args.device)[0]),
                "`srlm status`": partial(started, "-m", "srlm_pipeline.cli", "status"),
            },
            args.repetitions,
        )
        runs = interleave(
            bench,
            {
                "through the assets": lambda repetition: in_copy("assets", tiny, repetition),
                "core functions": lambda repetition: in_copy("core", tiny, repetition),
            },
            args.repetitions,
        )
        quickstart = in_copy("core", tiny, args.repetitions) if args.smoke else in_copy("quickstart", folder)
    pairs = list(zip(runs["through the assets"], runs["core functions"], strict=True))
    once = [100 * (through.first - core.first) / quickstart.first for through, core in pairs]
    each = [100 * (through.second - core.second) / quickstart.second for through, core in pairs]
    bench.finish(
        [
            *(Measurement(name, "s", values) for name, values in times.items()),
            *(
                Measurement(f"a process's first tiny iteration, {k}", "s", [r.first for r in own])
                for k, own in runs.items()
            ),
            *(Measurement(f"its second tiny iteration, {k}", "s", [r.second for r in own]) for k, own in runs.items()),
            Measurement("a process's first quickstart iteration, core functions", "s", [quickstart.first]),
            Measurement("its second quickstart iteration, core functions", "s", [quickstart.second]),
        ],
        [
            Verdict("Dagster and MLflow, share of a further iteration of a process", each, TARGET, "%", False),
            Verdict("Dagster and MLflow, share of a process's first iteration", once, TARGET, "%", False),
        ],
        [
            "First iterations include the process's start and all imports; `srlm run` has one process for all "
            "iterations. The tiny ones have a random model of two narrow layers, so that little but overhead is left; "
            "the overhead is the difference between the two ways.",
            f"The assets are {', '.join(ASSETS)}. Those that measure a new model are run nowhere here: they would "
            "lengthen both the overhead and the iteration that it is a share of.",
            "Runs that the UI or the schedule starts have a process for every step, and pay for its imports each time; "
            "that is not measured here.",
        ],
    )


@dataclass(frozen=True)
class Twice:
    """Seconds of two iterations in one process.

    Attributes:
        first: With the process's start and all imports.
        second: Everything being loaded.
    """

    first: float
    second: float


def home(folder: Path) -> dict[str, str]:
    """Return the environment of a Dagster home of its own."""
    return {
        "DAGSTER_HOME": str(folder),
        "MLFLOW_TRACKING_URI": "",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SRLM_CONFIG": "quickstart",
        "SRLM_OVERRIDES": "{}",
    }


def save_tiny_model(source: Path, target: Path) -> None:
    """Save a random model that writes short rows of common words, with a real model's tokenizer.

    The first dimension is the same in every state and so acts as a bias: words, scores and the end are likely, all
    other tokens are not.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source)
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # A blank before a word, as byte-level tokenizers write it.
    words = [place for token, place in ordered if token[0] == "\u0120" and token[1:].isalpha() and len(token) > 3]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = -3.0
        model.lm_head.weight[words[:TINY_WORDS], 0] = 0.0
        model.lm_head.weight[[*tokenizer.convert_tokens_to_ids(list("012345")), tokenizer.eos_token_id], 0] = 0.4
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def work(args: argparse.Namespace) -> None:
    """Do what a process of its own is asked to do in its home."""
    from srlm_pipeline.cli import quiet_libraries

    quiet_libraries()
    common = {"base_model": args.model, "seed": args.seed, "model": {"device": args.device}, "engine": TINY["engine"]}
    overrides = {**TINY, **common}
    if args.worker == "prepare":
        seconds = [timed(lambda: prepare(overrides))[1]]
    elif args.worker == "assets":
        seconds = [
            timed(partial(through_assets, overrides, "iteration", key, ASSETS))[1] for key in ("iter_001", "iter_002")
        ]
    else:
        chosen = common if args.worker == "quickstart" else overrides
        seconds = [timed(partial(through_core, {**chosen, "seed": args.seed + own}))[1] for own in range(2)]
    print(json.dumps(seconds))


def prepare(overrides: dict[str, Any]) -> None:
    """Make a home in which the first iteration can begin: the base model stands for M1."""
    from srlm_pipeline.config import load_settings
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.models.loading import load_model
    from srlm_pipeline.store import open_store
    from srlm_pipeline.tracking import Tracker

    folder = Path(os.environ["DAGSTER_HOME"])
    folder.mkdir()
    shutil.copyfile(ROOT / "dagster_home" / "dagster.yaml", folder / "dagster.yaml")
    settings = load_settings(None, overrides)
    store = open_store(settings)
    base = store.base_checkpoint(settings)
    save_checkpoint(
        load_model(base.path, settings.model),
        store.model_folder("M1"),
        "M1",
        base.digest,
        {},
        settings.model.save_dtype,
    )
    through_assets(overrides, "seed", None, ("ift_dataset", "evaluation_prompts"))
    # MLflow makes its tables once per home; that is no part of an iteration.
    Tracker(settings)


def through_assets(overrides: dict[str, Any], job: str, partition: str | None, assets: Sequence[str]) -> None:
    """Materialize assets, as `srlm run` does."""
    import dagster as dg

    from srlm_pipeline.definitions import defs

    with dg.DagsterInstance.get() as instance:
        defs.resolve_job_def(job).execute_in_process(
            run_config={
                "resources": {"project": {"config": {"overrides": overrides}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
        )


def through_core(overrides: dict[str, Any]) -> None:
    """Compute the same with the core functions alone."""
    from benchmarks.core import run_iteration
    from srlm_pipeline.config import load_settings
    from srlm_pipeline.store import open_store

    settings = load_settings(None, overrides)
    store = open_store(settings)
    base = store.base_checkpoint(settings)
    run_iteration(settings, base, base, store.root / "work" / f"core{settings.seed}", save=True)


if __name__ == "__main__":
    main()
