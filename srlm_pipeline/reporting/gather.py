"""From a project's tables to the facts that reports show. No model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import yaml

from srlm_pipeline.config import Settings
from srlm_pipeline.data.chat import template_system_prompt
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.champion import champion_before, standing_decision
from srlm_pipeline.evaluation.evidence import failed_monitors
from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.independence import dependences
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.jury import jury_report
from srlm_pipeline.evaluation.matches import length_ratio, match_result
from srlm_pipeline.evaluation.measures import MEASURES, Measure, change, figure, measure_named
from srlm_pipeline.evaluation.opening import juror_names
from srlm_pipeline.evaluation.opponents import ROLE_NAMES, Opponent, opponents_of
from srlm_pipeline.evaluation.promotion import Decision, Rule
from srlm_pipeline.evaluation.verifiable.scoring import measure_verifiable
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_tokenizer
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.reporting.facts import (
    Answer,
    Distribution,
    Estimate,
    Exchange,
    FilePath,
    Finding,
    IterationReport,
    JudgeFigures,
    Juror,
    KindFigures,
    LineageStep,
    Link,
    MatchFigures,
    ModelSummary,
    OverviewReport,
    PairExample,
    PairFigures,
    PromptFigures,
    RejectedPrompts,
    Replies,
    StageCost,
    TaskFigures,
    VerifiableFigures,
    VitalSign,
)
from srlm_pipeline.reporting.read_facts import ReadingPage
from srlm_pipeline.reporting.reading import reading_page, telling
from srlm_pipeline.store import BASE, SFT_BASELINE, ProjectStore, model_name, partition_key
from srlm_pipeline.tables import (
    EVALUATION_PROMPTS,
    GENERATED_PROMPTS,
    JUDGED_SCORES,
    MONITORS,
    PREFERENCE_PAIRS,
    REFUSED_PROMPTS,
    WIN_RATES,
    read_table,
)

_MONITOR_NAMES = {"kl": "distance from M1 (KL)", "variety": "variety within replies"}
_PAIRS_SHOWN, _PROMPTS_SHOWN, _REFUSED_SHOWN = 5, 8, 3
OTHER_ANSWERS = "other model's answers"
# The ends of a 95 % interval.
_ONE_SIDED = 0.975
# File name of the report over all iterations, beside those of the iterations.
OVERVIEW = "index.html"


@dataclass(frozen=True)
class Surroundings:
    """What the project's tables do not say.

    Attributes:
        made_at: When, in words.
        agreement: Of the arbiter with human rankings, as `arbiter_agreement` returns it.
        position_bias: Of the matches, by opponent.
        tasks: Scores of the new model in tasks of lm-evaluation-harness.
        costs: Of the iteration's stages.
        links: E.g. to MLflow.
    """

    made_at: str
    agreement: Mapping[str, float]
    position_bias: Mapping[str, float]
    tasks: tuple[TaskFigures, ...] = ()
    costs: tuple[StageCost, ...] = ()
    links: tuple[Link, ...] = ()


def gather_iteration(
    settings: Settings,
    store: ProjectStore,
    iteration: int,
    assessments: Mapping[str, Assessment],
    others: Mapping[str, pd.DataFrame],
    around: Surroundings,
) -> IterationReport:
    """Return the facts of one iteration.

    Args:
        settings: All settings.
        store: The project's tables, decisions and models.
        iteration: From 1; its promotion has been decided.
        assessments: Of this iteration's model, of all that it met, and of the seed's models.
        others: Table `REPLIES` of other models' answers that it met.
        around: What the tables do not say.

    Raises:
        TableError: If a table or the decision is missing.
    """
    name, opponents = model_name(iteration + 1), opponents_of(store, iteration)
    decision = _decision(store, iteration)
    table = read_table(WIN_RATES, store.table_path("win_rates", iteration))
    replies = replies_of(assessments, others)
    matches = _matches(table, name, replies, around.position_bias)
    monitors = read_table(MONITORS, store.table_path("collapse_monitors", iteration))
    compared = list(dict.fromkeys([BASE, SFT_BASELINE, model_name(1), *(o.name for o in opponents), name]))
    resamples = settings.evaluation.bootstrap_samples
    page = gather_reading(settings, store, iteration, assessments, decision, around)
    roles = {o.name: o for o in opponents}
    return IterationReport(
        project=settings.project,
        iteration=iteration,
        model=name,
        previous=store.entering_model(iteration).name,
        champion=decision.champion,
        promoted=decision.promoted,
        rules=tuple(Finding(r.name, r.passed, r.explanation) for r in sorted(decision.rules, key=_weight)),
        made_at=around.made_at,
        monitors=tuple(
            Finding(
                _MONITOR_NAMES.get(row.name, row.name.replace("_", " ")),
                None if pd.isna(row.passed) else bool(row.passed),
                row.explanation,
            )
            for row in monitors.itertuples()
        ),
        vital_signs=tuple(_vital_sign(m, [assessments[model] for model in compared], resamples) for m in MEASURES),
        reading=reading_name(iteration),
        telling=telling(page),
        compared=page.compared,
        arbiters=_jurors(settings, around.agreement),
        decision=settings.evaluation.decision,
        dependences=dependences(settings),
        matches=tuple(
            _match_figures(
                opponent,
                result,
                table[table["opponent"] == opponent],
                roles,
                length_ratio(replies[name], replies[opponent]),
                settings,
            )
            for opponent, result in matches.items()
        ),
        judges=tuple(_judge_figures(assessments[model]) for model in compared),
        verifiable=tuple(
            replace(
                _verifiable_figures(assessments[model], resamples),
                ahead=_ahead(assessments[name], assessments[model], resamples),
            )
            for model in compared
            if len(assessments[model].checkable)
        ),
        verifiable_source=settings.evaluation.verifiable.source,
        tasks=around.tasks,
        scores=_scores(store, iteration),
        lengths=tuple(
            Distribution(model, tuple(replies[model]["reply"].str.len().astype(float)))
            for model in dict.fromkeys([name, *(o.name for o in opponents)])
        ),
        replies=_replies(table, replies, decision.champion, name),
        prompts=_prompts(store, iteration),
        pairs=_pairs(settings, store, iteration),
        lineage=_lineage(settings, store, iteration, decision),
        costs=around.costs,
        settings=yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        links=around.links,
        files=(
            FilePath(name, str(store.checkpoint(name).path)),
            FilePath("tables", str(store.tables)),
            FilePath("journals", str(store.root / "journals")),
        ),
        overview=OVERVIEW,
    )


def gather_overview(
    settings: Settings,
    store: ProjectStore,
    iterations: Sequence[int],
    assessments: Mapping[str, Assessment],
    others: Mapping[str, pd.DataFrame],
    around: Surroundings,
    seconds: Mapping[int, float],
) -> OverviewReport:
    """Return the facts of all iterations that have been decided.

    Args:
        settings: All settings.
        store: The project's tables, decisions and models.
        iterations: Those that have been decided, in order.
        assessments: Of all their models, of all that these met, and of the seed's models.
        others: Table `REPLIES` of other models' answers that were met.
        around: What the tables do not say.
        seconds: What each iteration took, where it is known.
    """
    first = model_name(1)
    seed = [
        ModelSummary(
            model=model,
            iteration=0 if model == first else None,
            promoted=None,
            judge_accuracy=_judge_figures(assessments[model]).pairwise,
            verifiable=_followed(assessments[model], settings.evaluation.bootstrap_samples),
            closed_tasks=_named_figure(assessments[model], "closed_tasks"),
            loops=_named_figure(assessments[model], "loops"),
            length=float(assessments[model].evaluation_replies()["reply"].str.len().mean()),
        )
        for model in (BASE, SFT_BASELINE, first)
    ]
    replies = replies_of(assessments, others)
    made = [
        _summary(settings, store, iteration, assessments, replies, around, seconds.get(iteration))
        for iteration in iterations
    ]
    last = max(iterations)
    return OverviewReport(
        project=settings.project,
        champion=champion_before(store, last + 1),
        models=(*seed, *made),
        made_at=around.made_at,
        arbiters=_jurors(settings, around.agreement),
        lineage=_lineage(settings, store, last, _decision(store, last)),
        links=around.links,
    )


def gather_reading(
    settings: Settings,
    store: ProjectStore,
    iteration: int,
    assessments: Mapping[str, Assessment],
    decision: Decision,
    around: Surroundings,
) -> ReadingPage:
    """Return the page on which an iteration's replies are read beside those of the models before it.

    Args:
        settings: `project` and `model` are read.
        store: The project's evaluation prompts.
        iteration: From 1.
        assessments: Of the iteration's model, its champion, base model and SFT baseline.
        decision: Names the champion.
        around: What the tables do not say.
    """
    name = model_name(iteration + 1)
    roles: dict[str, list[str]] = {}
    for model, role in ((BASE, "base model"), (SFT_BASELINE, "SFT baseline"), (decision.champion, "champion")):
        roles.setdefault(model, []).append(role)
    roles = {model: played for model, played in roles.items() if model in assessments} | {name: ["new"]}
    prompts = read_table(EVALUATION_PROMPTS, store.table_path("evaluation_prompts"))
    known = prompts[prompts["reference"].notna()]
    return reading_page(
        settings.project,
        f"Iteration {iteration}: {name}",
        around.made_at,
        {model: assessments[model] for model in roles},
        {model: ", ".join(played) for model, played in roles.items()},
        dict(zip(known["id"], known["reference"], strict=True)),
        template_system_prompt(load_tokenizer(store.checkpoint(name).path, settings.model)),
        report_name(iteration),
    )


def replies_of(assessments: Mapping[str, Assessment], others: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return table `REPLIES` of the evaluation prompts, by model."""
    return {name: assessment.evaluation_replies() for name, assessment in assessments.items()} | dict(others)


def reading_name(iteration: int) -> str:
    """Return the file name of the page with an iteration's replies."""
    return f"{partition_key(iteration)}_replies.html"


def report_name(iteration: int) -> str:
    """Return the file name of an iteration's report."""
    return f"{partition_key(iteration)}.html"


def _summary(
    settings: Settings,
    store: ProjectStore,
    iteration: int,
    assessments: Mapping[str, Assessment],
    replies: Mapping[str, pd.DataFrame],
    around: Surroundings,
    seconds: float | None,
) -> ModelSummary:
    name, decision = model_name(iteration + 1), _decision(store, iteration)
    met = read_table(WIN_RATES, store.table_path("win_rates", iteration))
    matches = _matches(met, name, replies, around.position_bias)
    monitors = read_table(MONITORS, store.table_path("collapse_monitors", iteration))
    judge = _judge_figures(assessments[name])
    pairs = read_table(PREFERENCE_PAIRS, store.table_path("preference_pairs", iteration))
    return ModelSummary(
        model=name,
        iteration=iteration,
        promoted=decision.promoted,
        reason=_reason(decision, champion_before(store, iteration), iteration),
        report=report_name(iteration),
        win_rates={
            ROLE_NAMES[role]: Estimate(matches[o.name].win_rate, matches[o.name].low, matches[o.name].high)
            for o in opponents_of(store, iteration)
            for role in o.roles
            # Where an earlier iteration was done again since, another champion may stand before this one now.
            if o.name in matches
        },
        judge_accuracy=judge.pairwise,
        verifiable=_followed(assessments[name], settings.evaluation.bootstrap_samples),
        closed_tasks=_named_figure(assessments[name], "closed_tasks"),
        loops=_named_figure(assessments[name], "loops"),
        parse_rate=judge.parse_rate,
        length=float(replies[name]["reply"].str.len().mean()),
        pairs_kept=len(pairs),
        failed_monitors=tuple(monitor.replace("_", " ") for monitor in failed_monitors(monitors)),
        seconds=seconds,
    )


def _decision(store: ProjectStore, iteration: int) -> Decision:
    decision = standing_decision(store, iteration)
    if decision is None:
        raise TableError(
            "promotion", [f"nothing was decided of iteration {iteration}'s model; materialize promotion first"]
        )
    return decision


def _weight(rule: Rule) -> int:
    """Broken rules come first, then those that decided nothing, then those that are met."""
    return {False: 0, None: 1, True: 2}[rule.passed]


def _sentence(decision: Decision) -> str:
    reasons = decision.failures or decision.rules
    return f"{reasons[0].name}: {reasons[0].explanation}" if reasons else "no rule is asked for"


def _reason(decision: Decision, champion: str, iteration: int) -> str:
    if decision.champion == champion:
        return _sentence(decision)
    return (
        f"{_sentence(decision)}; that was against {decision.champion}, but {champion} is the champion before it "
        f"since an earlier iteration was done again: materialize iteration {iteration} again"
    )


def _matches(
    table: pd.DataFrame, name: str, replies: Mapping[str, pd.DataFrame], position_bias: Mapping[str, float]
) -> dict[str, HeadToHead]:
    mine = replies[name]
    return {
        str(opponent): match_result(rows, mine, replies[str(opponent)], position_bias.get(str(opponent), float("nan")))
        for opponent, rows in table.groupby("opponent", sort=False)
    }


def _match_figures(
    opponent: str,
    result: HeadToHead,
    rows: pd.DataFrame,
    roles: Mapping[str, Opponent],
    length_ratio: float,
    settings: Settings,
) -> MatchFigures:
    jury = jury_report(rows, settings.evaluation.decision) if len(settings.evaluation.arbiters) > 1 else None
    return MatchFigures(
        opponent=opponent,
        role=roles[opponent].description if opponent in roles else OTHER_ANSWERS,
        wins=result.wins,
        ties=result.ties,
        losses=result.losses,
        win_rate=Estimate(result.win_rate, result.low, result.high),
        length_controlled=_estimate(
            result.length_controlled, result.length_controlled_low, result.length_controlled_high
        ),
        decided=_estimate(result.decided_win_rate, result.decided_low, result.decided_high),
        p_value=result.p_value,
        disagreement=result.disagreement,
        position_bias=result.position_bias,
        length_ratio=length_ratio,
        jury_agreement=jury.mean_agreement if jury else None,
        effective_votes=jury.effective_votes if jury else None,
    )


def _estimate(value: float | None, low: float | None, high: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, low, high)


def _jurors(settings: Settings, agreement: Mapping[str, float]) -> tuple[Juror, ...]:
    names = juror_names(settings.evaluation)
    single = len(names) == 1

    def of(juror: str, alone: str, joint: str) -> float | None:
        return agreement.get(joint if single else f"{alone} {juror}")

    jurors = []
    for juror, chosen in zip(names, settings.evaluation.arbiters, strict=True):
        agrees = of(juror, "agreement of", "agreement")
        jurors.append(
            Juror(
                juror,
                chosen.weight,
                None if agrees is None else Estimate(agrees),
                of(juror, "decided by", "decided"),
            )
        )
    return tuple(jurors)


def _judge_figures(assessment: Assessment) -> JudgeFigures:
    accuracy = measure_judge(assessment.judgements)
    return JudgeFigures(
        model=assessment.model,
        pairwise=_estimate(accuracy.pairwise_accuracy, accuracy.pairwise_low, accuracy.pairwise_high),
        length_baseline=accuracy.length_baseline,
        length_balanced=accuracy.length_balanced_accuracy,
        five_best=accuracy.five_best,
        exact_match=accuracy.exact_match,
        spearman=accuracy.spearman,
        kendall=accuracy.kendall,
        parse_rate=accuracy.parse_rate,
        n_groups=accuracy.n_groups,
        n_pairs=accuracy.n_pairs,
    )


def _vital_sign(measure: Measure, assessments: Sequence[Assessment], resamples: int) -> VitalSign:
    """Return a measure of some models; the last of them is the reported one, and compared with the others."""
    figures = {assessment.model: figure(assessment, measure, resamples) for assessment in assessments}
    reported = assessments[-1]
    changes = {a.model: change(reported, a, measure, _ONE_SIDED, resamples) for a in assessments[:-1]}
    return VitalSign(
        measure.title,
        measure.unit,
        {name: _estimate(found.value, found.low, found.high) for name, found in figures.items()},
        tuple(name for name, found in changes.items() if found and found.most < 0),
        tuple(name for name, found in changes.items() if found and found.least > 0),
        figures[reported.model].note,
    )


def _named_figure(assessment: Assessment, name: str) -> Estimate | None:
    found = figure(assessment, measure_named(name))
    return _estimate(found.value, found.low, found.high)


def _followed(assessment: Assessment, resamples: int) -> Estimate | None:
    return _verifiable_figures(assessment, resamples).instruction_strict if len(assessment.checkable) else None


def _verifiable_figures(assessment: Assessment, resamples: int) -> VerifiableFigures:
    found = measure_verifiable(assessment.checkable, resamples)
    figures = found.metrics()

    def share(name: str) -> Estimate:
        return Estimate(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])

    return VerifiableFigures(
        model=assessment.model,
        n_prompts=found.n_prompts,
        n_instructions=found.n_instructions,
        prompt_strict=share("prompt_strict"),
        prompt_loose=share("prompt_loose"),
        instruction_strict=share("instruction_strict"),
        instruction_loose=share("instruction_loose"),
        by_kind=tuple(KindFigures(kind.kind, kind.n, kind.share) for kind in found.kinds),
    )


def _ahead(new: Assessment, other: Assessment, resamples: int) -> Estimate | None:
    if other.model == new.model:
        return None
    found = change(new, other, measure_named("checkable"), _ONE_SIDED, resamples)
    return Estimate(found.gain, found.least, found.most) if found else None


def _scores(store: ProjectStore, iteration: int) -> tuple[Distribution, ...]:
    return tuple(
        Distribution(
            f"iteration {number}",
            tuple(read_table(JUDGED_SCORES, store.table_path("judged_scores", number))["score"].dropna()),
        )
        for number in dict.fromkeys([iteration, max(iteration - 1, 1)])
    )


def _replies(table: pd.DataFrame, replies: Mapping[str, pd.DataFrame], opponent: str, name: str) -> Replies:
    rows = table[table["opponent"] == opponent].groupby("prompt_id", sort=False)
    sides = [replies[side].set_index("prompt_id") for side in (name, opponent)]
    return Replies(
        opponent,
        tuple(
            Exchange(
                prompt=sides[0].loc[key, "prompt"],
                answers=tuple(
                    Answer(side_name, side.loc[key, "reply"], cut_off=side.loc[key, "finish_reason"] == "length")
                    for side_name, side in zip((name, opponent), sides, strict=True)
                ),
                verdict=_verdict(group["verdict"].tolist()),
                advantage=float(group["preference"].mean()),
                dispute=_dispute(group),
            )
            for key, group in rows
        ),
    )


def _verdict(orders: list[str]) -> Literal["win", "tie", "loss"]:
    return "win" if set(orders) == {"win"} else "loss" if set(orders) == {"loss"} else "tie"


def _dispute(rows: pd.DataFrame) -> float:
    """Return the spread of everything that was said of a prompt: in both orders, by every juror."""
    said = [o["preference"] for text in rows["opinions"] for o in json.loads(text) if o["preference"] is not None]
    return float(np.std(said)) if said else 0.0


def _prompts(store: ProjectStore, iteration: int) -> PromptFigures:
    kept = read_table(GENERATED_PROMPTS, store.table_path("generated_prompts", iteration))
    refused = read_table(REFUSED_PROMPTS, store.table_path("refused_prompts", iteration))
    reasons = refused["reason"].value_counts()
    return PromptFigures(
        kept=len(kept),
        attempts=len(kept) + len(refused),
        rejected=tuple(
            RejectedPrompts(
                str(reason),
                int(count),
                tuple(
                    refused[(refused["reason"] == reason) & (refused["prompt"] != "")]["prompt"].head(_REFUSED_SHOWN)
                ),
            )
            for reason, count in reasons.items()
        ),
        examples=tuple(kept["prompt"].head(_PROMPTS_SHOWN)),
    )


def _pairs(settings: Settings, store: ProjectStore, iteration: int) -> PairFigures:
    pairs = read_table(PREFERENCE_PAIRS, store.table_path("preference_pairs", iteration))
    selection = select(read_table(JUDGED_SCORES, store.table_path("judged_scores", iteration)), settings.pairs)
    dropped = {
        "ties": selection.n_ties,
        "too few readable scores": selection.n_too_few_valid,
        "scores too low": selection.n_too_low,
    }
    return PairFigures(
        prompts=selection.n_prompts,
        kept=len(pairs),
        dropped=tuple((reason, n) for reason, n in dropped.items() if n),
        examples=tuple(
            PairExample(
                row.prompt,
                row.chosen,
                row.chosen_score,
                None if pd.isna(row.rejected) else row.rejected,
                None if pd.isna(row.rejected_score) else row.rejected_score,
            )
            for row in pairs.head(_PAIRS_SHOWN).itertuples()
        ),
    )


def _lineage(settings: Settings, store: ProjectStore, iteration: int, decision: Decision) -> tuple[LineageStep, ...]:
    """Follow the model back to the base model by the digests of what each was trained from."""
    names = [SFT_BASELINE, *(model_name(number) for number in range(1, iteration + 2))]
    base = store.base_checkpoint(settings)
    steps = (
        LineageStep(model.name, model.digest, _origin(model), _note(model, decision))
        for model in ancestry([store.checkpoint(name) for name in names])
    )
    return (LineageStep(base.name, base.digest, f"base model {settings.base_model}"), *steps)


def ancestry(models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the last of some models and those that it was trained from, oldest first.

    Args:
        models: In the order of their making. Only an older model can be a parent: a training that changed nothing
            leaves its model the digest of its parent.
    """
    line = [models[-1]]
    for model in reversed(models[:-1]):
        if model.digest == line[0].parent:
            line.insert(0, model)
    return line


def _origin(model: Checkpoint) -> str:
    if "dpo" in model.lineage:
        return f"DPO on {model.lineage['pairs']} pairs of iteration {model.lineage['iteration']}"
    if "positives" in model.lineage:
        return f"seed data and {model.lineage['positives']} replies with top marks"
    return "instruction data" if model.name == SFT_BASELINE else "instruction and judging data"


def _note(model: Checkpoint, decision: Decision) -> str:
    if model.name == decision.model:
        return "promoted" if decision.promoted else "rejected"
    return "champion before" if model.name == decision.champion else ""
