"""All settings of a project in one object, and how two such objects differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from srlm_pipeline.config.archive import ArchiveSettings
from srlm_pipeline.config.cluster import ASSETS, StepResources
from srlm_pipeline.config.data import DataSettings
from srlm_pipeline.config.evaluation import EvaluationSettings, MonitorSettings, PromotionSettings
from srlm_pipeline.config.models import VERIFIERS, EngineSettings, ModelSettings
from srlm_pipeline.config.notices import NoticeSettings
from srlm_pipeline.config.sections import (
    EMBEDDED_ENCODER,
    EMBEDDED_MODEL,
    Section,
    item_section_of,
    path,
    resources,
    section_of,
    verdict,
)
from srlm_pipeline.config.self_instruction import (
    CandidateSettings,
    JudgeSettings,
    PairSettings,
    PromptGenerationSettings,
)
from srlm_pipeline.config.training import (
    BaselineSettings,
    DivisionSettings,
    DpoSettings,
    EftSettings,
    SftSettings,
    TrainingSettings,
    obstacle,
)

# Folders beside those of the projects.
RESERVED_PROJECTS = {EMBEDDED_MODEL.lower(), EMBEDDED_ENCODER.lower()}


class ScheduleSettings(Section):
    """The nightly iteration."""

    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    planned_iterations: int = Field(10, ge=1, le=999, description="partitions shown; the schedule stops after these")
    after_rejection: Literal["stop", "retry"] = Field(
        "stop",
        description="stop: a person decides; retry: the iteration is done again from the champion with a new seed",
    )
    max_retries: int = Field(2, ge=1, description="of one iteration, with after_rejection retry")


class TrackingSettings(Section):
    """MLflow; MLFLOW_TRACKING_URI overrides the address."""

    tracking_uri: str | None = Field(None, description="default: SQLite under dagster_home")
    ui_url: str | None = Field(
        None, description="where people open MLflow, for links; default: where `srlm ui` last served it, else port 5000"
    )


class Settings(Section):
    """Everything a project can decide. `describe_fields` lists all keys with their meaning."""

    preset: str = "quickstart"
    project: str = Field(
        "quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="MLflow experiment name"
    )
    # Iterations add their number to it, and trainers seed NumPy, which takes 32 bits.
    seed: int = Field(20, ge=0, lt=2**31)
    base_model: str = path(EMBEDDED_MODEL, description="embedded name, model folder, or hub name")
    storage: str | None = Field(None, description="models, tables, journals; default: srlm/ under DAGSTER_HOME")
    owners: tuple[str, ...] = resources((), description="shown on every asset: e-mail addresses or team:name")
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = resources(EngineSettings())
    data: DataSettings = DataSettings()
    sft: SftSettings = SftSettings()
    eft: EftSettings = EftSettings()
    prompt_generation: PromptGenerationSettings = PromptGenerationSettings()
    candidates: CandidateSettings = CandidateSettings()
    judge: JudgeSettings = JudgeSettings()
    pairs: PairSettings = PairSettings()
    dpo: DpoSettings = DpoSettings()
    baselines: BaselineSettings = BaselineSettings()
    training: DivisionSettings = resources(DivisionSettings(), validate_default=True)
    evaluation: EvaluationSettings = EvaluationSettings()
    monitors: MonitorSettings = verdict(MonitorSettings())
    promotion: PromotionSettings = verdict(PromotionSettings())
    schedule: ScheduleSettings = resources(ScheduleSettings())
    tracking: TrackingSettings = resources(TrackingSettings())
    notices: NoticeSettings = resources(NoticeSettings())
    archive: ArchiveSettings = resources(ArchiveSettings())
    # Last: from here on the name means the field.
    resources: dict[str, StepResources] = resources(
        {}, description="by asset, what its step takes on Kubernetes, e.g. {candidates: {gpu: 4, memory: 64Gi}}"
    )

    @field_validator("resources")
    @classmethod
    def _steps_are_assets(cls, value: dict[str, StepResources]) -> dict[str, StepResources]:
        unknown = sorted(value.keys() - set(ASSETS))
        if unknown:
            raise ValueError(f"there is no asset {', '.join(unknown)}; there are {', '.join(ASSETS)}")
        return value

    @field_validator("judge")
    @classmethod
    def _verifiers_have_something_to_check(cls, value: JudgeSettings, info: Any) -> JudgeSettings:
        made = info.data.get("prompt_generation")
        if made is None or all(member.model != VERIFIERS for member in value.panel):
            return value
        if not made.evolution.constrain and not made.evolution.task:
            raise ValueError(
                f"panel: {VERIFIERS} need checkable prompts; set prompt_generation.evolution.constrain or .task"
            )
        return value

    @field_validator("project")
    @classmethod
    def _project_has_a_folder_of_its_own(cls, value: str) -> str:
        # File systems may not tell upper from lower case.
        if value.lower() in RESERVED_PROJECTS:
            raise ValueError("that is the name of a folder which all projects share; choose another one")
        return value

    @field_validator("storage")
    @classmethod
    def _storage_is_a_folder(cls, value: str | None) -> str | None:
        # Journals, locks and checkpoints of trainers need a file system.
        if value is not None and "://" in value:
            raise ValueError("is the folder of the working copy; archive.url takes an address")
        return value

    @field_validator("pairs")
    @classmethod
    def _without_sft_no_texts_are_learned(cls, value: PairSettings, info: Any) -> PairSettings:
        sft, eft = info.data.get("sft"), info.data.get("eft")
        if sft is None or eft is None or sft.enabled:
            return value
        if eft.enabled and eft.targets != "ranks":
            raise ValueError(f"sft.enabled: false needs eft.targets: ranks; SFT learns the texts of {eft.targets}")
        if value.strategy == "positive_only":
            raise ValueError("strategy positive_only learns good replies by SFT: it needs sft.enabled: true")
        return value

    @field_validator("baselines")
    @classmethod
    def _start_leads_to_a_judge(cls, value: BaselineSettings, info: Any) -> BaselineSettings:
        eft, pairs = info.data.get("eft"), info.data.get("pairs")
        if value.start_from == "base" or eft is None or pairs is None:
            return value
        if not eft.enabled:
            raise ValueError(f"start_from {value.start_from} needs eft.enabled: without it M1 would not learn to judge")
        if pairs.strategy == "positive_only":
            raise ValueError(
                f"start_from {value.start_from} would be lost with pairs.strategy positive_only, which trains the base "
                "model again in every iteration; use base, or best_worst"
            )
        return value

    @field_validator("training")
    @classmethod
    def _the_loop_can_be_divided(cls, value: DivisionSettings, info: Any) -> DivisionSettings:
        sections = [info.data.get(name) for name in ("sft", "eft", "dpo", "pairs")]
        if None in sections:
            return value
        launcher = value.launcher
        # How many devices there are is seen on the machine that trains.
        processes = launcher.processes if isinstance(launcher.processes, int) else 1
        stages = trained_stages(*sections)
        found = [sentence for stage in stages if (sentence := obstacle(stage, processes, launcher.strategy))]
        if found:
            raise ValueError("; ".join(found))
        return value

    @property
    def trained_stages(self) -> list[TrainingSettings]:
        """The settings of the stages that the loop trains; the baselines are left out."""
        return trained_stages(self.sft, self.eft, self.dpo, self.pairs)

    def fingerprint(self, *keys: str) -> str:
        """Twelve hex digits that change when one of the named settings does.

        Args:
            keys: Dotted paths of sections or fields, e.g. ``"judge"``, ``"candidates.temperature"``. Of a section
                count the fields that change results and are not kept apart; others only where they are named:
                ``"judge.panel"``, ``"judge.min_parse_rate"``.
        """
        chosen: dict[str, Any] = {}
        for key in sorted(keys):
            value: Any = self
            for part in key.split("."):
                value = getattr(value, part)
            chosen[key] = _decisive(value)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def trained_stages(sft: SftSettings, eft: EftSettings, dpo: DpoSettings, pairs: PairSettings) -> list[TrainingSettings]:
    """Return the settings of the stages that the loop trains under them."""
    used = (
        (sft, sft.enabled),
        (eft, eft.enabled and eft.ranking),
        (dpo, pairs.strategy != "positive_only"),
    )
    return [settings for settings, trains in used if trains]


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Return the dotted keys of the settings that differ."""

    def different(prefix: str, one: Section, other: Section) -> list[str]:
        found: list[str] = []
        for name, value in one:
            others = getattr(other, name)
            if isinstance(value, Section) and isinstance(others, Section):
                found += different(f"{prefix}{name}.", value, others)
            elif value != others:
                found.append(f"{prefix}{name}")
        return found

    return different("", before, after)


def describe_fields(model: type[BaseModel] = Settings, prefix: str = "") -> list[tuple[str, str, str]]:
    """List every setting as (dotted key, default, description); ``arbiters[].model`` is a field of each list item."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key, section, items = f"{prefix}{name}", section_of(field.annotation), item_section_of(field.annotation)
        if section is not None:
            rows += describe_fields(section, f"{key}.")
            continue
        default = field.get_default()
        if items is not None:
            default = [item.model_dump(exclude_defaults=True) or item.short() for item in default]
        rows.append((key, repr(default), field.description or ""))
        if items is not None:
            rows += describe_fields(items, f"{key}[].")
    return rows


def _decisive(value: Any) -> Any:
    """Return a setting as JSON has it, of sections only what changes results."""
    if isinstance(value, Section):
        return {name: _decisive(field) for name, field in value.results().items()}
    return [_decisive(item) for item in value] if isinstance(value, tuple) else value
