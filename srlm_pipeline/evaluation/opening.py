"""Arbiters and judges as the settings ask for them: M1 or M_t, other models, verifiers, servers, several together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from srlm_pipeline.checks.checkable import Checks
from srlm_pipeline.config import (
    EMBEDDED_ENCODER,
    PROGRAMS,
    VERIFIERS,
    ArbiterSettings,
    EvaluationSettings,
    PanelMember,
    ServerSettings,
    Settings,
)
from srlm_pipeline.errors import SettingsError
from srlm_pipeline.evaluation.arbiters import Arbiter, ComparisonArbiter, ScoreArbiter, VerdictArbiter
from srlm_pipeline.evaluation.independence import SELF
from srlm_pipeline.evaluation.jury import Juror, Jury
from srlm_pipeline.evaluation.readers import PeopleArbiter, VoteBook
from srlm_pipeline.evaluation.references import ReferenceArbiter, references_of
from srlm_pipeline.generation.calls import CallLog
from srlm_pipeline.generation.deferred import DeferredEngine, ModelSlot
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.judging.choosing import make_judge
from srlm_pipeline.judging.judges import Judge, SampledJudge
from srlm_pipeline.judging.panel import Member, PanelJudge
from srlm_pipeline.judging.rubric import Rubric
from srlm_pipeline.judging.verifiers import VerifierJudge
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.sentence_encoder import (
    SentenceEncoder,
    encoder_archive,
    how_to_get_it,
    unpack_encoder,
)
from srlm_pipeline.store import ProjectStore, is_own_name, model_name, outside_checkpoint
from srlm_pipeline.tables import EVALUATION_PROMPTS, RANKED_REPLIES, read_table

_, REFERENCE, PEOPLE = PROGRAMS
# What third parties score by: they need not be taught the project's own rubric.
_SERVER_RUBRIC: Rubric = "additive"


def open_arbiter(settings: Settings, store: ProjectStore, open_engine: OpenEngine) -> Jury:
    """Return who decides the matches.

    `self` is M1, because a ruler that stays the same makes iterations comparable. Models on this machine are loaded
    when they are asked something that their journals do not hold, one at a time.

    Args:
        settings: `evaluation`, `judge` and `seed` are read.
        store: For M1 and the journals.
        open_engine: Loads a checkpoint with a batch size.

    Raises:
        SettingsError: If verifiers shall decide and there are no verifiable instructions.
        ModelError: If a model is not there.
    """
    slot = ModelSlot(open_engine)
    arbiters = settings.evaluation.arbiters
    return Jury(
        tuple(
            Juror(name, _open_juror(chosen, settings, store, slot), chosen.weight)
            for name, chosen in zip(juror_names(settings.evaluation), arbiters, strict=True)
        )
    )


def open_encoder(settings: Settings, store: ProjectStore) -> SentenceEncoder | None:
    """Return what says how near replies are to reference replies; None if it is off or not installed."""
    if settings.evaluation.encoder == "none" or encoder_archive() is None:
        return None
    return SentenceEncoder(unpack_encoder(store.shared / EMBEDDED_ENCODER))


def open_judge(
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    model: Checkpoint,
    stage: str,
    checks: Mapping[str, Checks],
) -> Judge:
    """Return who scores the candidates: M_t alone, or a panel.

    Args:
        settings: `judge` and `seed` are read.
        store: For the journals of a panel's members.
        open_engine: Loads a checkpoint with a batch size.
        model: M_t.
        stage: Name that keeps stages' randomness apart, where M_t judges alone.
        checks: What prompts were made to demand, by prompt: verifiers on the panel check it, checklists ask for it.
    """
    chosen = settings.judge
    if not chosen.panel:
        return make_judge(open_engine(model, chosen.batch_size), chosen, settings.seed, stage, checks)
    slot = ModelSlot(open_engine)
    return PanelJudge(
        [
            Member(VerifierJudge(checks), member.weight)
            if member.model == VERIFIERS
            else _open_member(member, settings, store, slot, model, checks)
            for member in chosen.panel
        ]
    )


def juror_names(settings: EvaluationSettings) -> list[str]:
    """Return the arbiters' names for people, all different."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for chosen in settings.arbiters:
        name = f"{_called(chosen.model)}: {chosen.method}" if chosen.model not in PROGRAMS else chosen.model
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} no. {seen[name]}")
    return names


def judgement_journal(store: ProjectStore, checkpoint: Checkpoint, folder: str | None = None) -> Journal:
    """Return the journal of a model's judgements: whoever asks, and in whichever mode, a reply is judged once.

    Args:
        store: Of the project.
        checkpoint: The judging model.
        folder: Of the model's journals; None: its name, which is unique among the project's own models.
    """
    return Journal(store.journal_folder(f"judgements/{folder or checkpoint.name}"))


def _open_juror(chosen: ArbiterSettings, settings: Settings, store: ProjectStore, slot: ModelSlot) -> Arbiter:
    if chosen.model == VERIFIERS:
        return _open_verifiers(settings)
    if chosen.model == REFERENCE:
        return _open_reference(settings, store)
    if chosen.model == PEOPLE:
        return PeopleArbiter(VoteBook(store.votes_path).all())
    if chosen.server.base_url:
        return _open_server_arbiter(chosen, settings, store)
    judge = settings.judge
    checkpoint, folder = (
        (store.checkpoint(model_name(1)), None) if chosen.model == SELF else _outside_model(chosen.model)
    )
    engine = DeferredEngine(slot, checkpoint, judge.batch_size, settings.model.thinking.manner)
    if chosen.method == "comparison":
        return ComparisonArbiter(engine)
    scoring = make_judge(engine, judge.model_copy(update={"mode": "distribution"}), settings.seed, "arbiter")
    return ScoreArbiter(scoring, judgement_journal(store, checkpoint, folder))


def _open_verifiers(settings: Settings) -> Arbiter:
    from srlm_pipeline.checks.verifiable import load_verifiable
    from srlm_pipeline.evaluation.verifier_arbiter import VerifierArbiter

    prompts = load_verifiable(settings.evaluation.verifiable)
    if not prompts:
        raise SettingsError(
            ["evaluation.arbiters: verifiers need verifiable instructions, and evaluation.verifiable.source is none"]
        )
    return VerifierArbiter(prompts)


def _open_reference(settings: Settings, store: ProjectStore) -> Arbiter:
    prompts = read_table(EVALUATION_PROMPTS, store.table_path("evaluation_prompts"))
    if not prompts["reference"].notna().any():
        raise SettingsError(
            ["evaluation.arbiters: reference needs evaluation prompts with a `reference`, and none has one"]
        )
    encoder = open_encoder(settings, store)
    if encoder is None:
        why = "evaluation.encoder is none" if settings.evaluation.encoder == "none" else how_to_get_it()
        raise SettingsError([f"evaluation.arbiters: reference needs a sentence encoder, and {why}"])
    ranked = read_table(RANKED_REPLIES, store.table_path("ranked_replies"))
    return ReferenceArbiter(encoder, references_of(prompts, ranked[ranked["split"] == "held_out"]))


def _open_server_arbiter(chosen: ArbiterSettings, settings: Settings, store: ProjectStore) -> Arbiter:
    from srlm_pipeline.generation.chat_engine import ChatEngine

    server = chosen.server
    engine = ChatEngine(server, chosen.model, CallLog(store.calls_path))
    journal = _server_journal(store, server, chosen.model)
    if chosen.method == "comparison":
        return VerdictArbiter(engine, server.max_new_tokens, journal)
    greedy = settings.judge.model_copy(
        update={
            "samples": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "rubric": _SERVER_RUBRIC,
            "max_new_tokens": server.max_new_tokens,
        }
    )
    return ScoreArbiter(SampledJudge(engine, greedy, settings.seed, "arbiter"), journal)


def _open_member(
    member: PanelMember,
    settings: Settings,
    store: ProjectStore,
    slot: ModelSlot,
    policy: Checkpoint,
    checks: Mapping[str, Checks],
) -> Member:
    server, judge = member.server, settings.judge
    if server.base_url:
        from srlm_pipeline.generation.chat_engine import ChatEngine

        sampled = judge.model_copy(update={"mode": "sampled", "max_new_tokens": server.max_new_tokens})
        # No seed of the run's: what was paid for is not asked again because an iteration is done again.
        engine = ChatEngine(server, member.model, CallLog(store.calls_path))
        asked = SampledJudge(engine, sampled, 0, "panel")
        return Member(asked, member.weight, _server_journal(store, server, member.model))
    checkpoint, folder = (policy, None) if member.model == SELF else _outside_model(member.model)
    chosen = judge.model_copy(update={"mode": member.mode or judge.mode})
    opened = make_judge(
        DeferredEngine(slot, checkpoint, judge.batch_size, settings.model.thinking.manner),
        chosen,
        settings.seed,
        "panel",
        checks,
    )
    return Member(opened, member.weight, judgement_journal(store, checkpoint, folder))


def _outside_model(model: str) -> tuple[Checkpoint, str]:
    """Return a model that is not the project's, and a folder name for its journals."""
    source = Path(model).expanduser()
    return outside_checkpoint(source, source.name), f"outside/{_folder_name(source.name, model)}"


def _server_journal(store: ProjectStore, server: ServerSettings, model: str) -> Journal:
    """Return the journal of a server's answers: whatever the project does, what was paid for is not asked again."""
    name = _folder_name(model, fingerprint(str(server.base_url), model))
    return Journal(store.journal_folder(f"servers/{name}"))


def _called(model: str) -> str:
    if model == SELF:
        return model_name(1)
    # MLflow takes no other characters in a metric's name.
    name = re.sub(r"[^\w .:-]", "-", Path(model).name)
    return f"another {name}" if is_own_name(name) else name


def _folder_name(model: str, unique: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', model)}-{fingerprint(unique)[:8]}"
