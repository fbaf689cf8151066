"""Where a project's things lie: models, tables, journals and training work, under one folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from srlm_pipeline.attempts import Attempt, read_attempt
from srlm_pipeline.config import EMBEDDED_MODEL, Settings
from srlm_pipeline.errors import MissingPredecessorError, ModelError
from srlm_pipeline.files import leftovers, remove_folder, replacing_folder, tidy
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.models.checkpoint import COPY_OF, Checkpoint, is_checkpoint, read_checkpoint, write_marker
from srlm_pipeline.models.embedded import convert_embedded_model
from srlm_pipeline.models.integrity import MARKER, is_emptied, verify

SFT_BASELINE = "sft_baseline"
REWARD_MODEL = "reward_model"
RLHF_MODEL = "rlhf_model"
HUMAN_DPO_MODEL = "human_dpo_model"
BASE = "base"
# What `baselines.start_from` names, beside the base model.
STARTING_POINTS = {"rlhf": RLHF_MODEL, "human_dpo": HUMAN_DPO_MODEL}
# What only runs write to; votes and plans are written beside them.
_COMPUTED = ("models", "tables", "assessments", "journals", "work", "promotions", "attempts", "reports")
_A_DAY = 86400.0
# In the work folders of a model that needs them no more.
_SAVED = "saved"


@dataclass(frozen=True)
class ProjectStore:
    """Folders of one project.

    Attributes:
        root: The project's folder.
        shared: Folder that all projects share, for the converted embedded model.
    """

    root: Path
    shared: Path

    @property
    def tables(self) -> Path:
        """Parquet tables, one folder per asset."""
        return self.root / "tables"

    def table_path(self, asset: str, iteration: int | None = None) -> Path:
        """Return where an asset's table is: one file, or one per iteration."""
        if iteration is None:
            return self.tables / f"{asset}.parquet"
        return self.tables / asset / f"{partition_key(iteration)}.parquet"

    def model_folder(self, name: str) -> Path:
        """Return where a model of the project is or will be."""
        return self.root / "models" / name

    @property
    def kept(self) -> Path:
        """Models as they were registered, whatever was trained under their names since."""
        return self.root / "models" / "kept"

    def kept_folder(self, checkpoint: Checkpoint) -> Path:
        """Return where a model is or would be kept."""
        return self.kept / f"{checkpoint.name}-{checkpoint.digest}"

    def journal_folder(self, stage: str) -> Path:
        """Return the journal folder of a stage, e.g. ``"candidates/iter_001"``."""
        return self.root / "journals" / stage

    def work_folder(self, model: str, *inputs: str) -> Path:
        """Return the folder for a training stage's resumable checkpoints.

        Args:
            model: The model being trained.
            inputs: Digests of everything that the training depends on: with other data or settings, nothing is
                continued.
        """
        return self.work_folders(model) / fingerprint(*inputs)

    def work_folders(self, model: str) -> Path:
        """Return the folder of all work folders of a model, those of other settings and data included."""
        return self.root / "work" / model

    def begin_work(self, model: str) -> None:
        """Say that a model of this name is being trained."""
        (self.work_folders(model) / _SAVED).unlink(missing_ok=True)

    def end_work(self, model: str) -> None:
        """Say that the model is saved; its work is kept until that is recorded."""
        self.work_folders(model).mkdir(parents=True, exist_ok=True)
        (self.work_folders(model) / _SAVED).touch()

    def ended_work(self) -> list[str]:
        """Return the models that are saved and of which there is still work."""
        return [mark.parent.name for mark in sorted((self.root / "work").glob(f"*/{_SAVED}"))]

    def drop_work(self, model: str) -> None:
        """Remove all work on a model."""
        remove_folder(self.work_folders(model))

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a finished model of the project.

        Raises:
            ModelError: If it is not there or not whole.
        """
        return read_checkpoint(self.model_folder(name))

    @property
    def baseline(self) -> str:
        """Name of the SFT baseline; that of the base model where SFT is switched off and the two are one model."""
        folder = self.model_folder(SFT_BASELINE)
        copied = is_checkpoint(folder) and COPY_OF in read_checkpoint(folder).lineage
        return BASE if copied else SFT_BASELINE

    def assessment_folder(self, checkpoint: Checkpoint) -> Path:
        """Return where everything that was measured of a model lies: its weights' digest is part of the name."""
        return self.root / "assessments" / f"{checkpoint.name}-{fingerprint(checkpoint.digest)}"

    def leftovers(self) -> list[Path]:
        """Return what killed processes left half-written."""
        return [path for name in _COMPUTED for path in leftovers(self.root / name)]

    def tidy(self) -> None:
        """Clear away what killed processes left half-written; only while nobody is at work."""
        for name in _COMPUTED:
            tidy(self.root / name)
        # Whoever plans may be at it, and whoever talks to a model may be converting the embedded one.
        tidy(self.root / "plans", everywhere=False, older_than=_A_DAY)
        tidy(self.shared, everywhere=False, older_than=_A_DAY)

    @property
    def calls_path(self) -> Path:
        """What calls of external judges took and cost."""
        return self.root / "judge_calls.jsonl"

    @property
    def votes_path(self) -> Path:
        """What people said who read two models' replies blind."""
        return self.root / "votes" / "votes.jsonl"

    def decision_path(self, iteration: int) -> Path:
        """Return where the promotion of an iteration's model is written down."""
        return self.root / "promotions" / f"{partition_key(iteration)}.json"

    def attempt_path(self, iteration: int) -> Path:
        """Return where it is written which attempt at an iteration is under way."""
        return self.root / "attempts" / f"{partition_key(iteration)}.json"

    def attempt(self, iteration: int) -> Attempt:
        """Return the attempt at an iteration that is under way or was the last."""
        return read_attempt(self.attempt_path(iteration))

    def keep(self, checkpoint: Checkpoint) -> Path:
        """Return a folder with this very model that no later training replaces; it shares the files' disk space.

        Raises:
            ModelError: If the model's weights were removed.
        """
        kept = self.kept_folder(checkpoint)
        if not is_checkpoint(kept):
            if is_emptied(checkpoint.path):
                verify(checkpoint.path)
            with replacing_folder(kept, MARKER) as temporary:
                shutil.copytree(checkpoint.path, temporary, dirs_exist_ok=True, copy_function=_link)
        return kept

    def entering_model(self, iteration: int) -> Checkpoint:
        """Return the model that enters an iteration: M1 for the first, what the one before made after.

        An attempt that starts from another model (the champion, after a refusal) is entered by that one.

        Args:
            iteration: From 1.

        Raises:
            MissingPredecessorError: If it does not exist, naming the asset to materialize.
        """
        folder = self.model_folder(self.attempt(iteration).entering or model_name(iteration))
        if not is_checkpoint(folder):
            before = "seed_model" if iteration == 1 else f"iteration_model[{partition_key(iteration - 1)}]"
            raise MissingPredecessorError(iteration, before)
        return read_checkpoint(folder)

    def base_model(self, settings: Settings) -> str:
        """Return folder or hub name of the base model; the embedded one is converted on first use."""
        if settings.base_model != EMBEDDED_MODEL:
            return settings.base_model
        return str(convert_embedded_model(self.shared / EMBEDDED_MODEL))

    def base_checkpoint(self, settings: Settings) -> Checkpoint:
        """Return the base model with a digest."""
        source = Path(self.base_model(settings))
        if source == self.shared / EMBEDDED_MODEL:
            if not is_checkpoint(source):
                write_marker(source, BASE, None, {"source": settings.base_model})
            return read_checkpoint(source)
        return outside_checkpoint(source, BASE)

    def available_models(self) -> list[str]:
        """Return the base model and the project's finished models by name, oldest first."""
        folder = self.root / "models"
        made = [p for p in folder.iterdir() if is_checkpoint(p)] if folder.is_dir() else []
        return [BASE, *(p.name for p in sorted(made, key=lambda p: (p / MARKER).stat().st_mtime))]

    def named_model(self, settings: Settings, name: str) -> Checkpoint:
        """Return a model by its name, the base model included.

        Raises:
            ModelError: If there is none of that name, naming those that there are.
        """
        if name == BASE:
            return self.base_checkpoint(settings)
        if not is_checkpoint(self.model_folder(name)):
            raise ModelError(name, f"does not exist; there are: {', '.join(self.available_models())}")
        return self.checkpoint(name)

    def starting_point(self, settings: Settings) -> Checkpoint | None:
        """Return the baseline that M1 is trained from; None: the base model.

        Raises:
            ModelError: If it has not been trained, naming the asset to materialize.
        """
        start = settings.baselines.start_from
        if start == BASE:
            return None
        folder = self.model_folder(STARTING_POINTS[start])
        if not is_checkpoint(folder):
            raise ModelError(
                folder,
                "does not exist yet, and M1 is to be trained from it "
                f"(baselines.start_from: {start}): materialize {STARTING_POINTS[start]} first",
            )
        return read_checkpoint(folder)

    def generator(self, settings: Settings, iteration: int) -> Checkpoint:
        """Return the model that invents the prompts of an iteration."""
        chosen = settings.prompt_generation.generator
        if chosen == "policy":
            return self.entering_model(iteration)
        if chosen == BASE:
            return self.base_checkpoint(settings)
        return outside_checkpoint(Path(chosen).expanduser(), Path(chosen).name)


def model_contents(named: str) -> str:
    """Return what tells whether the weights behind a name are others now; blank for the embedded model.

    Args:
        named: The embedded model's name, a folder, or a hub name, of which nothing but the name is known.
    """
    return "" if named == EMBEDDED_MODEL else outside_checkpoint(Path(named).expanduser(), BASE).digest


def outside_checkpoint(source: Path, name: str) -> Checkpoint:
    """Return a model that the pipeline did not make, with a digest; a hub name's digest is the name itself."""
    if not source.is_dir():
        return Checkpoint(source, name, str(source), None)
    weights = sorted(p for p in source.iterdir() if p.suffix in {".safetensors", ".bin", ".json"})
    # A user's folder is never written to; names, sizes and times tell whether it changed.
    facts = "|".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in weights)
    return Checkpoint(source, name, _short_hash(facts), None)


def open_store(settings: Settings) -> ProjectStore:
    """Return the project's store, under the setting `storage` or DAGSTER_HOME."""
    home = Path(os.environ.get("DAGSTER_HOME") or "dagster_home").resolve()
    base = Path(settings.storage) if settings.storage else home / "srlm"
    return ProjectStore(base / settings.project, base)


def model_name(iteration: int) -> str:
    """Return the name of the model that enters an iteration: M1, M2, ..."""
    return f"M{iteration}"


def partition_key(iteration: int) -> str:
    """Return an iteration's partition key; zero-padded, because backfills run in text order."""
    return f"iter_{iteration:03d}"


def iteration_number(key: str) -> int:
    """Return the iteration of a partition key."""
    return int(key.removeprefix("iter_"))


def iteration_of(model: str) -> int | None:
    """Return the iteration that makes a model; None for models of the seed."""
    number = model.removeprefix("M")
    return int(number) - 1 if number.isdigit() and number != "1" else None


def is_own_name(name: str) -> bool:
    """Return whether the project calls a model of its own so, by name or by role: nobody else may be called that."""
    own = {BASE, SFT_BASELINE, REWARD_MODEL, RLHF_MODEL, HUMAN_DPO_MODEL, "baseline", "previous", "champion"}
    return name.casefold() in own or re.fullmatch(r"m\d+", name.casefold(), re.ASCII) is not None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has hard links.
        shutil.copy2(source, target)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
