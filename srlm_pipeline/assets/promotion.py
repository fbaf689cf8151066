"""Promotion: whether the new model becomes champion, by rules that are written down with their figures."""

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.assessment import assessment, assessments, seed_assessment
from srlm_pipeline.assets.automation import metadata_of
from srlm_pipeline.assets.entering import champion as champion_asset
from srlm_pipeline.assets.entering import policy, publish
from srlm_pipeline.assets.evaluation import seed_evaluation
from srlm_pipeline.assets.registry import decided_entry, leader, register, restore_registry
from srlm_pipeline.assets.results import check
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.config import Occasion, Settings
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.evidence import compare_all, failed_monitors, length_growth, opinion
from srlm_pipeline.evaluation.independence import dependences, trains_on_instructions
from srlm_pipeline.evaluation.matches import match_result
from srlm_pipeline.evaluation.opponents import Role
from srlm_pipeline.evaluation.promotion import Decision, Evidence, comparisons, decide_promotion, write_decision
from srlm_pipeline.evaluation.readers import VoteBook, tally
from srlm_pipeline.files import digest_existing
from srlm_pipeline.notices import Notice
from srlm_pipeline.reads import Reads
from srlm_pipeline.store import BASE, model_name, open_store


def _verdict(decision: Decision, project: str) -> Notice:
    occasion: Occasion = "promoted" if decision.promoted else "refused"
    reasons = decision.failures or decision.rules[:1]
    return Notice(
        f"{occasion}/{decision.model}/{decision.digest}/{decision.champion}",
        occasion,
        f"{project}: {decision.model} is {occasion}"
        + ("" if decision.promoted else f"; {decision.champion} remains the champion"),
        "\n".join(f"- {rule.name}: {rule.explanation}" for rule in reasons),
    )


def _votes(settings: Settings) -> list[str]:
    """Return a digest of the votes: those that came in since make a decision stale that asks for them."""
    asked = settings.promotion.min_people_pairs is not None
    return [digest_existing([str(open_store(settings).votes_path)])] if asked else []


@srlm_asset(
    Reads(
        # They tell whether an arbiter is independent, and which measures the loop trains on.
        (
            *("evaluation.bootstrap_samples", "evaluation.arbiters", "judge.panel", "base_model"),
            "prompt_generation.evolution.constrain",
        ),
        verdicts=("promotion",),
        contents=_votes,
    ),
    group="iteration",
    kinds={"mlflow"},
    compute=False,
    per_iteration=True,
    deps=[assessment, policy, champion_asset, seed_assessment, seed_evaluation],
    check_specs=[
        dg.AssetCheckSpec(
            "promoted",
            asset="promotion",
            description="The new model is proved to be no worse, and better in something.",
        )
    ],
)
def promotion(stage: Stage, win_rates: pd.DataFrame, collapse_monitors: pd.DataFrame) -> dg.MaterializeResult:
    """Registers M_{t+1} in MLflow, promoted or rejected, and moves the alias `champion` if every rule is met."""
    settings, store, iteration = stage.settings, stage.store, stage.iteration
    checkpoint, champion = store.checkpoint(model_name(iteration + 1)), champion_before(store, iteration)
    found = assessments(stage, [BASE, store.baseline, champion, checkpoint.name])
    new, leader_before = found[checkpoint.name], found[champion]
    mine, theirs = new.evaluation_replies(), leader_before.evaluation_replies()
    played = win_rates[win_rates["opponent"] == champion]
    if played.empty:
        raise TableError(
            "win_rates",
            [f"there is no match against {champion}, the champion; materialize win_rates[{stage.partition}]"],
        )
    met = match_result(played, mine, theirs)
    agrees = metadata_of(stage.context.instance, "seed_evaluation", None).get("arbiter_agreement")
    said = opinion((met.wins, met.ties, met.losses), settings.promotion, met.length_controlled, agrees)
    assert said is not None, "a match has prompts"
    read = tally(VoteBook(store.votes_path).all(), new, leader_before)
    before: dict[Role, Assessment] = {
        "champion": leader_before,
        "baseline": found[store.baseline],
        "base": found[BASE],
    }
    evidence = Evidence(
        champion=champion,
        opinion=said,
        dependences=dependences(settings),
        compared=compare_all(
            new, before, settings.promotion, settings.evaluation.bootstrap_samples, trains_on_instructions(settings)
        ),
        people=opinion((read.wins, read.ties, read.losses), settings.promotion),
        length_growth=length_growth(new, before),
        failed_monitors=failed_monitors(collapse_monitors),
    )
    rules = decide_promotion(evidence, settings.promotion)
    decision = Decision(
        checkpoint.name,
        checkpoint.digest,
        champion,
        all(r.passed is not False for r in rules),
        rules,
        comparisons(evidence, settings.promotion),
    )
    write_decision(decision, store.decision_path(iteration))
    version = register(stage, decided_entry(store, iteration, decision))
    # With MLflow's store the others may have been lost.
    restore_registry(store, settings)
    stage.notify(_verdict(decision, settings.project))
    stage.curve({"promotion/promoted": float(decision.promoted)})
    publish(stage, "champion", store.checkpoint(champion_before(store, iteration + 1)).digest)
    words = {True: "passed", False: "FAILED", None: "not decided by"}
    lines = [f"- {words[r.passed]}: {r.name}: {r.explanation}" for r in rules]
    return dg.MaterializeResult(
        metadata={
            "promoted": decision.promoted,
            # A later iteration's model that was promoted stays champion when an earlier one is decided again.
            "champion": leader(store),
            "attempt": store.attempt(iteration).number,
            "rules": dg.MetadataValue.md("\n".join(lines)),
            "registered_version": version,
        },
        check_results=[check("promoted", decision.promoted, decision.reason, rules_broken=len(decision.failures))],
        data_version=dg.DataVersion(f"{checkpoint.digest}-{decision.promoted}"),
    )
