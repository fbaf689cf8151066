"""What a project has made, in the forms that other tools take: preference pairs and good replies for TRL, a model.

Each goes into a folder with a card that says where it comes from; `hub.py` sends such a folder to the model hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from srlm_pipeline import __version__
from srlm_pipeline.config import EMBEDDED_MODEL, Settings
from srlm_pipeline.errors import EmptyDataError, ModelError
from srlm_pipeline.evaluation.assessment import read_assessment
from srlm_pipeline.evaluation.measures import SHOWN, amount, figure
from srlm_pipeline.evaluation.promotion import read_decision
from srlm_pipeline.files import replacing_folder, require_disk
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.preference.pairs import select_positives
from srlm_pipeline.store import ProjectStore, iteration_number, iteration_of, partition_key
from srlm_pipeline.tables import JUDGED_SCORES, PREFERENCE_PAIRS, read_table

Format = Literal["parquet", "jsonl"]
_PAPER = "https://arxiv.org/abs/2401.10020"
_LICENCES = {EMBEDDED_MODEL: "apache-2.0"}


def export_pairs(store: ProjectStore, iterations: Iterable[int], settings: Settings, target: Path, form: Format) -> int:
    """Write the preference pairs of iterations as TRL's conversational preference format, with a dataset card.

    Args:
        store: Of the project.
        iterations: Which.
        settings: `base_model` and `project` are named in the card.
        target: Folder, which must not exist yet.
        form: Of the data file.

    Returns:
        Pairs.

    Raises:
        EmptyDataError: If there are no pairs.
        TableError: If an iteration has none yet.
        ModelError: If the folder exists.
    """
    tables = []
    for t in iterations:
        table = read_table(PREFERENCE_PAIRS, store.table_path("preference_pairs", t))
        tables.append(table[table["rejected"].notna()].assign(iteration=t))
    pairs = _joined(tables, "preference pairs")
    rows = pd.DataFrame(
        {
            "prompt": [[_said("user", text)] for text in pairs["prompt"]],
            "chosen": [[_said("assistant", text)] for text in pairs["chosen"]],
            "rejected": [[_said("assistant", text)] for text in pairs["rejected"]],
            "score_chosen": pairs["chosen_score"],
            "score_rejected": pairs["rejected_score"],
            "rejected_for": pairs["rejected_for"],
            "prompt_id": pairs["prompt_id"],
            "iteration": pairs["iteration"],
        }
    )
    told = "Preference pairs: the reply that the model's own judgement chose, and the one that it rejected."
    _write_dataset(rows, target, form, told, "DPOTrainer", settings)
    return len(rows)


def export_replies(
    store: ProjectStore, iterations: Iterable[int], min_score: float, settings: Settings, target: Path, form: Format
) -> int:
    """Write the replies that score well as TRL's conversational prompt-completion format, with a dataset card.

    Args:
        store: Of the project.
        iterations: Which.
        min_score: A reply's, at least; what looks wrong at first sight or was cut off is left out whatever it scores.
        settings: As `export_pairs`.
        target: Folder, which must not exist yet.
        form: Of the data file.

    Returns:
        Replies.

    Raises:
        EmptyDataError: If no reply is good enough.
        TableError: If an iteration has no scores yet.
        ModelError: If the folder exists.
    """
    tables = [
        select_positives(
            read_table(JUDGED_SCORES, store.table_path("judged_scores", t)), min_score, "rejected"
        ).pairs.assign(iteration=t)
        for t in iterations
    ]
    good = _joined(tables, f"replies that score at least {min_score:g}")
    rows = pd.DataFrame(
        {
            "prompt": [[_said("user", text)] for text in good["prompt"]],
            "completion": [[_said("assistant", text)] for text in good["chosen"]],
            "score": good["chosen_score"],
            "prompt_id": good["prompt_id"],
            "iteration": good["iteration"],
        }
    )
    told = f"Replies that the model's own judgement scores {min_score:g} or more of 5."
    _write_dataset(rows, target, form, told, "SFTTrainer", settings)
    return len(rows)


def export_model(store: ProjectStore, model: Checkpoint, settings: Settings, target: Path) -> None:
    """Copy a model into a folder of its own, with a model card: what it comes from and how it was measured.

    Args:
        store: Of the project.
        model: One of the project's.
        settings: `base_model`, `project` and `evaluation.bootstrap_samples` are read.
        target: Folder, which must not exist yet.

    Raises:
        ModelError: If the folder exists.
        DiskSpaceError: If the model does not fit.
    """
    from huggingface_hub import ModelCardData

    _refuse_existing(target)
    files = [path for path in model.path.iterdir() if path.is_file()]
    require_disk(target.parent, sum(path.stat().st_size for path in files))
    data = ModelCardData(
        base_model=None if settings.base_model == EMBEDDED_MODEL else settings.base_model,
        library_name="transformers",
        license=_licence(store, settings),
        pipeline_tag="text-generation",
        tags=["self-rewarding", "dpo", "trl"],
    )
    with replacing_folder(target, "README.md") as folder:
        for path in files:
            shutil.copy2(path, folder / path.name)
        card = f"---\n{data.to_yaml()}\n---\n\n{model_card(store, model, settings)}"
        (folder / "README.md").write_text(card, encoding="utf-8")


def iterations_with(store: ProjectStore, asset: str) -> list[int]:
    """Return the iterations of which an asset's table is there."""
    return [iteration_number(path.stem) for path in sorted((store.tables / asset).glob("iter_*.parquet"))]


def model_card(store: ProjectStore, model: Checkpoint, settings: Settings) -> str:
    """Return what a model comes from, what was decided of it and how it was measured, as Markdown.

    Args:
        store: Of the project.
        model: One of the project's.
        settings: `base_model`, `project` and `evaluation.bootstrap_samples` are read.
    """
    lines = [
        f"# {settings.project} {model.name}",
        "",
        f"Made from `{settings.base_model}` by [self-rewarding]({_PAPER}): in every iteration the model wrote "
        "prompts and replies, judged the replies itself, and was trained on its own preferences.",
        "",
        f"- Weights: `{model.digest}`, trained from `{model.parent or 'nothing'}` with srlm_pipeline "
        f"{model.code_version}",
    ]
    iteration = iteration_of(model.name)
    decision = read_decision(store.decision_path(iteration)) if iteration is not None else None
    if decision is not None and decision.digest == model.digest:
        verdict = "promoted" if decision.promoted else "refused"
        lines.append(f"- The promotion gate {verdict} it over {decision.champion}:")
        lines += [f"  - {rule.name}: {rule.explanation}" for rule in decision.failures or decision.rules[:1]]
    lines += ["", "## Measured", ""]
    if store.assessment_folder(model).is_dir():
        assessment, resamples = read_assessment(store, model), settings.evaluation.bootstrap_samples
        lines += ["| measure | value | 95 % interval | n |", "|---|---|---|---|"]
        for measure in SHOWN:
            found = figure(assessment, measure, resamples)
            if found.value is not None and found.low is not None and found.high is not None:
                low, high = amount(found.low, measure.unit), amount(found.high, measure.unit)
                lines.append(f"| {measure.title} | {amount(found.value, measure.unit)} | {low} to {high} | {found.n} |")
        lines += ["", "No judge takes part in these figures. They say nothing of whether what it writes is true."]
    else:
        lines.append("Not yet.")
    lines += ["", "## Lineage", "", "```json", json.dumps(dict(model.lineage), indent=2, default=str), "```", ""]
    return "\n".join(lines)


def _write_dataset(rows: pd.DataFrame, target: Path, form: Format, told: str, trainer: str, settings: Settings) -> None:
    from huggingface_hub import DatasetCardData

    _refuse_existing(target)
    kind = "preference" if "rejected" in rows else "prompt-completion"
    data = DatasetCardData(
        pretty_name=f"{settings.project}, {kind}", tags=["trl", "self-rewarding"], task_categories=["text-generation"]
    )
    sources = ", ".join(f"{n} of {partition_key(int(t))}" for t, n in rows["iteration"].value_counts().items())
    text = [
        f"# {settings.project}: {kind} data",
        "",
        f"{told} {len(rows)} rows ({sources}), made from `{settings.base_model}` by [self-rewarding]({_PAPER}) with "
        f"srlm_pipeline {__version__}. Prompts and replies were written by a language model, and nobody has checked "
        "them.",
        "",
        f"For TRL's `{trainer}`:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'dataset = load_dataset("{target.name}", split="train")',
        "```",
        "",
    ]
    with replacing_folder(target, "README.md") as folder:
        if form == "parquet":
            rows.to_parquet(folder / "train.parquet", index=False)
        else:
            rows.to_json(folder / "train.jsonl", orient="records", lines=True, force_ascii=False)
        (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(text), encoding="utf-8")


def _joined(tables: Sequence[pd.DataFrame], what: str) -> pd.DataFrame:
    together = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if together.empty:
        raise EmptyDataError(f"there are no {what} to export")
    return together


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ModelError(target, "is there already; name a folder that is not")


def _licence(store: ProjectStore, settings: Settings) -> str | None:
    """Return the base model's licence: of the embedded one, or as its own card says; None if it says nothing."""
    from huggingface_hub import ModelCard

    known = _LICENCES.get(settings.base_model)
    card = Path(store.base_model(settings)) / "README.md"
    if known or not card.is_file():
        return known
    return ModelCard.load(card, ignore_metadata_errors=True).data.get("license")


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
