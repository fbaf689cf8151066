"""Settings: what a project decides, in one YAML file. Nothing here knows where settings are used."""

from srlm_pipeline.config.archive import ArchiveSettings
from srlm_pipeline.config.data import DataSettings, SourceSettings
from srlm_pipeline.config.evaluation import (
    PROGRAMS,
    ArbiterSettings,
    ClosedTaskSettings,
    EvaluationSettings,
    MarginSettings,
    MonitorSettings,
    PromotionSettings,
    VerifiableSettings,
)
from srlm_pipeline.config.loading import OVERRIDES_VARIABLE, PRESETS, load_settings, merge_overrides, parse_override
from srlm_pipeline.config.models import VERIFIERS, EngineSettings, ModelSettings, ServerSettings, ThinkingSettings
from srlm_pipeline.config.notices import NoticeSettings, Occasion
from srlm_pipeline.config.sections import EMBEDDED_DATA, EMBEDDED_ENCODER, EMBEDDED_MODEL, Role, Section, role_of
from srlm_pipeline.config.self_instruction import (
    CandidateSettings,
    EvolutionSettings,
    JudgeSettings,
    PairSettings,
    PanelMember,
    PromptGenerationSettings,
)
from srlm_pipeline.config.settings import (
    ScheduleSettings,
    Settings,
    TrackingSettings,
    changed_settings,
    describe_fields,
)
from srlm_pipeline.config.training import (
    BaselineSettings,
    DpoSettings,
    EarlyStoppingSettings,
    EftSettings,
    LoraSettings,
    RewardModelSettings,
    RlhfSettings,
    SftSettings,
    TrainingSettings,
)

__all__ = [
    "EMBEDDED_DATA",
    "EMBEDDED_ENCODER",
    "EMBEDDED_MODEL",
    "OVERRIDES_VARIABLE",
    "PRESETS",
    "PROGRAMS",
    "VERIFIERS",
    "ArbiterSettings",
    "ArchiveSettings",
    "BaselineSettings",
    "CandidateSettings",
    "ClosedTaskSettings",
    "DataSettings",
    "DpoSettings",
    "EarlyStoppingSettings",
    "EftSettings",
    "EngineSettings",
    "EvaluationSettings",
    "EvolutionSettings",
    "JudgeSettings",
    "LoraSettings",
    "MarginSettings",
    "ModelSettings",
    "MonitorSettings",
    "NoticeSettings",
    "Occasion",
    "PairSettings",
    "PanelMember",
    "PromotionSettings",
    "PromptGenerationSettings",
    "RewardModelSettings",
    "RlhfSettings",
    "Role",
    "ScheduleSettings",
    "Section",
    "ServerSettings",
    "Settings",
    "SftSettings",
    "SourceSettings",
    "ThinkingSettings",
    "TrackingSettings",
    "TrainingSettings",
    "VerifiableSettings",
    "changed_settings",
    "describe_fields",
    "load_settings",
    "merge_overrides",
    "parse_override",
    "role_of",
]
