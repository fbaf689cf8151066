"""Self-instruction creation (paper section 2.3).

M_t invents prompts, answers them, judges its answers, and the best and worst become preference pairs.
"""

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.entering import policy
from srlm_pipeline.assets.measured import ExternalCalls
from srlm_pipeline.assets.results import check, histogram, table_result
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.config import VERIFIERS, Settings
from srlm_pipeline.evaluation.forbidden import forbidden_digests, forbidden_prompts
from srlm_pipeline.evaluation.independence import SELF
from srlm_pipeline.reads import Reads
from srlm_pipeline.store import BASE, model_contents
from srlm_pipeline.tables import GENERATED_PROMPTS, JUDGED_SCORES, REFUSED_PROMPTS, read_table, write_table

# Of prompts and what was made out of them, in the metadata.
SHOWN_TREES = 12


def _generator(settings: Settings) -> list[str]:
    """Return what lies behind the prompts: what must not be invented, and the model that invents, if it is fixed."""
    named = settings.prompt_generation.generator
    fixed = settings.base_model if named == BASE else named
    return [*forbidden_digests(settings.evaluation), "" if named == "policy" else model_contents(fixed)]


def _invented(settings: Settings) -> tuple[str, ...]:
    base = ("base_model",) if settings.prompt_generation.generator == BASE else ()
    sets = ("evaluation.verifiable.source", "evaluation.closed_tasks.source")
    return ("prompt_generation", *base, *sets, "model.thinking", "seed")


@srlm_asset(
    Reads(_invented, contents=_generator),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[
        dg.AssetCheckSpec(
            "duplicate_prompts",
            asset="generated_prompts",
            description="No prompt twice; else nothing is built upon them.",
            blocking=True,
        ),
        dg.AssetCheckSpec(
            "acceptance_rate",
            asset="generated_prompts",
            description="A fifth of what the model invents is fit to be a prompt.",
        ),
    ],
)
def generated_prompts(
    stage: Stage, ift_dataset: pd.DataFrame, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """New prompts: invented few-shot from the seeds and from earlier inventions, and made harder out of these."""
    from srlm_pipeline.prompting.creation import create_prompts
    from srlm_pipeline.prompting.evolution import Earlier
    from srlm_pipeline.prompting.family import family_trees, tree_lines
    from srlm_pipeline.prompting.few_shot import seed_prompts

    settings, store = stage.own_settings, stage.store
    draws = f"prompts/{stage.partition}"
    generator = store.generator(settings, stage.iteration)
    earlier = Earlier.of(
        [
            (
                read_table(GENERATED_PROMPTS, store.table_path("generated_prompts", before)),
                read_table(JUDGED_SCORES, store.table_path("judged_scores", before)),
            )
            for before in range(1, stage.iteration)
        ]
    )
    made = create_prompts(
        stage.engine(generator, settings.prompt_generation.batch_size),
        seed_prompts(ift_dataset),
        earlier,
        forbidden_prompts(evaluation_prompts["prompt"], settings.evaluation),
        settings.prompt_generation,
        settings.seed,
        draws,
        stage.progress,
        stage.journal(draws),
    )
    write_table(made.refused, REFUSED_PROMPTS, store.table_path("refused_prompts", stage.iteration))
    accepted = len(made.prompts) / made.attempts
    stage.curve({"prompts/accepted_share": accepted, "prompts/seconds": stage.seconds})
    duplicates = int(made.prompts["prompt"].str.lower().duplicated().sum())
    trees = family_trees(made.prompts)[:SHOWN_TREES]
    metadata = {
        "attempts": made.attempts,
        "accepted_share": accepted,
        "rejected": dict(made.rejected.most_common()),
        "generator": generator.name,
        "operators": made.prompts["operator"].value_counts().to_dict(),
        "families": dg.MetadataValue.md("\n".join(line for tree in trees for line in tree_lines(tree))),
    }
    checks = [
        check("duplicate_prompts", duplicates == 0, f"{duplicates} repeated prompts", blocking=True),
        check("acceptance_rate", accepted >= 0.2, f"{accepted:.0%} of the attempts were accepted", share=accepted),
    ]
    return table_result(
        made.prompts, metadata, checks, preview=["prompt_id", "operator", "prompt", "nearest_rouge_l", "n_words"]
    )


@srlm_asset(
    Reads(("candidates", "model.thinking", "seed")),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[dg.AssetCheckSpec("empty_completions", asset="candidates", description="Every reply says something.")],
)
def candidates(stage: Stage, generated_prompts: pd.DataFrame) -> dg.MaterializeResult[pd.DataFrame]:
    """N replies of M_t to every prompt."""
    from srlm_pipeline.data.chat import template_system_prompt
    from srlm_pipeline.generation.candidates import write_candidates
    from srlm_pipeline.generation.server_pool import ServerShares
    from srlm_pipeline.models.loading import load_tokenizer

    settings, servers = stage.own_settings, ServerShares()
    draws = f"candidates/{stage.partition}"
    model = stage.store.entering_model(stage.iteration)
    journal = stage.journal(draws)
    table = write_candidates(
        stage.engine(model, settings.candidates.batch_size),
        zip(generated_prompts["prompt_id"], generated_prompts["prompt"], strict=True),
        settings.candidates,
        settings.seed,
        draws,
        stage.progress,
        journal,
        template_system_prompt(load_tokenizer(model.path, settings.model)),
    )
    # Of what was written now, not before an interruption.
    pace = stage.speed(sum(item["n_tokens"] for item in journal.added.values()))
    length = float(table["completion"].str.len().mean())
    unfit = float((table["signs"] != "").mean())
    stage.curve(
        {"candidates/length_mean": length, "candidates/unfit_share": unfit, "candidates/tokens_per_second": pace}
    )
    empty = float((table["completion"].str.strip() == "").mean())
    metadata = {
        "model": model.name,
        "mean_tokens": float(table["n_tokens"].mean()),
        "unfit_share": unfit,
        "cut_off_share": float((table["finish_reason"] == "length").mean()),
        "tokens": int(table["n_tokens"].sum()),
        "tokens_per_second": pace,
        **servers.told(),
    }
    checks = [check("empty_completions", empty == 0, f"{empty:.1%} of the replies are empty", share=empty)]
    return table_result(table, metadata, checks, preview=["prompt_id", "sample", "prompt", "completion"])


def _panel(settings: Settings) -> list[str]:
    """Return what tells whether the weights of a panel's other models were replaced."""
    local = (member.model for member in settings.judge.panel if not member.server.base_url)
    return [model_contents(model) for model in local if model not in (SELF, VERIFIERS)]


@srlm_asset(
    Reads(("judge", "judge.panel", "model.thinking", "seed"), verdicts=("judge.min_parse_rate",), contents=_panel),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[
        dg.AssetCheckSpec(
            "judge_parse_rate",
            asset="judged_scores",
            description="Enough judgements have a score that can be read; else nothing is built upon them.",
            blocking=True,
        ),
    ],
)
def judged_scores(
    stage: Stage, generated_prompts: pd.DataFrame, candidates: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Scores of M_t's replies, 0 to 5, by M_t itself (LLM-as-a-Judge) or by a panel."""
    from srlm_pipeline.checks.checkable import checks_of
    from srlm_pipeline.evaluation.opening import open_judge
    from srlm_pipeline.generation.server_pool import ServerShares
    from srlm_pipeline.judging.scoring import score_candidates, score_forms
    from srlm_pipeline.prompting.difficulty import difficulty_curve

    calls, servers, draws = ExternalCalls(stage), ServerShares(), f"judging/{stage.partition}"
    model = stage.store.entering_model(stage.iteration)
    judge = open_judge(stage.own_settings, stage.store, stage.engine, model, draws, checks_of(generated_prompts))
    journal = stage.journal(draws)
    table = score_candidates(judge, candidates, stage.progress, journal)
    pace = stage.speed(len(journal.added))
    valid = int(table["n_valid"].sum())
    parse_rate = valid / max(valid + int(table["n_invalid"].sum()), 1)
    disagreement = table["disagreement"].mean()
    stage.curve(
        {
            "judge/candidate_parse_rate": parse_rate,
            "scores/mean": float(table["score"].mean()) if valid else None,
            "scores/std": float(table["score"].std()) if valid > 1 else None,
            "scores/judge_disagreement": None if pd.isna(disagreement) else float(disagreement),
            "judge/items_per_second": pace,
            **difficulty_curve(generated_prompts, table),
        }
    )
    metadata = {
        "judge": judge.name,
        "parse_rate": parse_rate,
        "mean_score": float(table["score"].mean()) if valid else float("nan"),
        "score_histogram": histogram(table["score"], f"Replies of {model.name}, {stage.partition}"),
        "judgements_per_second": pace,
        "score_forms": dict(score_forms(table["raw"])),
        **servers.told(),
        **calls.told(),
    }
    least = stage.settings.judge.min_parse_rate
    checks = [
        check(
            "judge_parse_rate",
            parse_rate >= least,
            f"{parse_rate:.1%} of the judgements have a readable score ({least:.0%} needed)",
            blocking=True,
            parse_rate=parse_rate,
        ),
    ]
    return table_result(table, metadata, checks, preview=["prompt_id", "sample", "score", "completion", "prompt"])


@srlm_asset(
    Reads(("pairs",)),
    group="iteration",
    kinds={"pandas"},
    compute=False,
    per_iteration=True,
    check_specs=[
        dg.AssetCheckSpec(
            "pairs_kept",
            asset="preference_pairs",
            description="There is something to learn from; else nothing is trained.",
            blocking=True,
        ),
    ],
)
def preference_pairs(stage: Stage, judged_scores: pd.DataFrame) -> dg.MaterializeResult[pd.DataFrame]:
    """Each prompt's best reply against its worst; ties and unreadable scores are left out."""
    from srlm_pipeline.preference.pairs import select

    selection = select(judged_scores, stage.settings.pairs)
    pairs = selection.pairs
    lengths = {
        side: float(pairs[side].str.len().mean()) for side in ("chosen", "rejected") if pairs[side].notna().any()
    }
    margin = float(pairs["margin"].mean()) if pairs["margin"].notna().any() else None
    stage.curve(
        {
            "pairs/kept": len(pairs),
            "pairs/tie_rate": selection.tie_rate,
            "pairs/checked": int(pairs["chosen_passed"].notna().sum()),
            "pairs/margin_mean": margin,
            "pairs/length_ratio": lengths["chosen"] / lengths["rejected"] if len(lengths) == 2 else None,
        }
    )
    metadata = {
        "prompts": selection.n_prompts,
        "pairs_kept": len(pairs),
        "ties_dropped": selection.n_ties,
        "too_few_scores": selection.n_too_few_valid,
        "too_low_scores": selection.n_too_low,
        "all_unfit": selection.n_unfit,
        "all_failed": selection.n_failed,
        "mean_margin": margin or 0.0,
        **{f"{side}_length_mean": length for side, length in lengths.items()},
    }
    checks = [
        check("pairs_kept", len(pairs) > 0, f"{len(pairs)} pairs kept", blocking=True, pairs=len(pairs)),
    ]
    shown = ["prompt_id", "margin", "prompt", "chosen", "rejected"]
    return table_result(pairs, metadata, checks, preview=shown)
