"""Self-instruction creation (paper section 2.3).

M_t invents prompts, answers them, judges its answers, and the best and worst become preference pairs.
"""

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.common import (
    Stopwatch,
    check,
    histogram,
    mlflow_link,
    speed,
    srlm_asset,
    table_result,
)
from srlm_pipeline.assets.entering import policy
from srlm_pipeline.config import Settings
from srlm_pipeline.evaluation.forbidden import forbidden_digests, forbidden_prompts
from srlm_pipeline.evaluation.independence import SELF
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import BASE, iteration_number, model_contents
from srlm_pipeline.tables import CANDIDATES, GENERATED_PROMPTS, JUDGED_SCORES, REFUSED_PROMPTS, read_table, write_table


def _generator(settings: Settings) -> list[str]:
    """Return what lies behind the prompts: what must not be invented, and the model that invents, if it is fixed."""
    named = settings.prompt_generation.generator
    fixed = settings.base_model if named == BASE else named
    return [*forbidden_digests(settings.evaluation), "" if named == "policy" else model_contents(fixed)]


def _invented(settings: Settings) -> tuple[str, ...]:
    base = ("base_model",) if settings.prompt_generation.generator == BASE else ()
    return ("prompt_generation", *base, "evaluation.verifiable.source", "evaluation.closed_tasks.source", "seed")


@srlm_asset(
    Reads(_invented, contents=_generator),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[
        dg.AssetCheckSpec("duplicate_prompts", asset="generated_prompts", blocking=True),
        dg.AssetCheckSpec("acceptance_rate", asset="generated_prompts"),
    ],
)
def generated_prompts(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    ift_dataset: pd.DataFrame,
    evaluation_prompts: pd.DataFrame,
) -> dg.MaterializeResult[pd.DataFrame]:
    """New prompts, invented few-shot from the seeds and from earlier inventions, filtered for novelty."""
    from srlm_pipeline.generation.journal import Journal
    from srlm_pipeline.prompting.few_shot import SeedPrompt, generate_prompts

    iteration = iteration_number(context.partition_key)
    settings, store = project.iteration_settings(iteration), project.store
    watch = Stopwatch()
    stage = f"prompts/{context.partition_key}"
    generator = store.generator(settings, iteration)
    seeds = [SeedPrompt(row.id, row.prompt) for row in ift_dataset.itertuples()]
    known = [
        SeedPrompt(row.prompt_id, row.prompt)
        for earlier in range(1, iteration)
        for row in read_table(GENERATED_PROMPTS, store.table_path("generated_prompts", earlier)).itertuples()
    ]
    forbidden = forbidden_prompts(evaluation_prompts["prompt"], settings.evaluation)
    journal = Journal(store.journal_folder(stage))
    with project.tracked(context) as run:
        made = generate_prompts(
            project.engine(generator, settings.prompt_generation.batch_size),
            seeds,
            forbidden,
            settings.prompt_generation,
            settings.seed,
            stage,
            project.progress(context),
            journal,
            known,
        )
        journal.prune()
        write_table(made.refused, REFUSED_PROMPTS, store.table_path("refused_prompts", iteration))
        accepted = len(made.prompts) / made.attempts
        run.curve({"prompts/accepted_share": accepted, "prompts/seconds": watch.seconds}, iteration)
    duplicates = int(made.prompts["prompt"].str.lower().duplicated().sum())
    metadata = {
        "attempts": made.attempts,
        "accepted_share": accepted,
        "rejected": dict(made.rejected.most_common()),
        "generator": generator.name,
        "seconds": round(watch.seconds, 2),
        **mlflow_link(run.url),
    }
    checks = [
        check("duplicate_prompts", duplicates == 0, f"{duplicates} repeated prompts", blocking=True),
        check("acceptance_rate", accepted >= 0.2, f"{accepted:.0%} of the attempts were accepted", share=accepted),
    ]
    return table_result(made.prompts, metadata, checks, preview=["prompt_id", "prompt", "nearest_rouge_l", "n_words"])


@srlm_asset(
    Reads(("candidates", "seed")),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[dg.AssetCheckSpec("empty_completions", asset="candidates")],
)
def candidates(
    context: dg.AssetExecutionContext, project: ProjectResource, generated_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """N replies of M_t to every prompt."""
    from srlm_pipeline.generation.engine import Sampling, derive_seed
    from srlm_pipeline.generation.journal import Journal
    from srlm_pipeline.generation.stage import Ask, generate_all

    iteration = iteration_number(context.partition_key)
    settings, store = project.iteration_settings(iteration), project.store
    watch = Stopwatch()
    stage = f"candidates/{context.partition_key}"
    model = store.entering_model(iteration)
    engine = project.engine(model, settings.candidates.batch_size)
    rows = [
        {
            "prompt_id": row.prompt_id,
            "sample": sample,
            "prompt": row.prompt,
            "seed": derive_seed(settings.seed, stage, str(row.prompt_id), sample),
        }
        for row in generated_prompts.itertuples()
        for sample in range(settings.candidates.per_prompt)
    ]
    asks = [Ask(f"{row['prompt_id']}#{row['sample']}", str(row["prompt"]), int(row["seed"])) for row in rows]
    journal = Journal(store.journal_folder(stage))
    chosen = settings.candidates
    with project.tracked(context) as run:
        completions = generate_all(
            engine,
            asks,
            Sampling(chosen.temperature, chosen.top_p, chosen.max_new_tokens),
            "answering prompts",
            project.progress(context),
            journal,
        )
        journal.prune()
        table = pd.DataFrame(rows).assign(
            completion=[c.text for c in completions],
            n_tokens=[c.n_tokens for c in completions],
            finish_reason=[c.finish_reason for c in completions],
        )[list(CANDIDATES.columns)]
        # Of what was written now, not before an interruption.
        pace = speed(sum(item["n_tokens"] for item in journal.added.values()), watch.seconds)
        run.curve(
            {
                "candidates/length_mean": float(table["completion"].str.len().mean()),
                "candidates/tokens_per_second": pace,
            },
            iteration,
        )
    empty = float((table["completion"].str.strip() == "").mean())
    metadata = {
        "model": model.name,
        "mean_tokens": float(table["n_tokens"].mean()),
        "cut_off_share": float((table["finish_reason"] == "length").mean()),
        "tokens": int(table["n_tokens"].sum()),
        "tokens_per_second": pace,
        "seconds": round(watch.seconds, 2),
        **mlflow_link(run.url),
    }
    checks = [check("empty_completions", empty == 0, f"{empty:.1%} of the replies are empty", share=empty)]
    return table_result(table, metadata, checks, preview=["prompt_id", "sample", "prompt", "completion"])


def _panel(settings: Settings) -> list[str]:
    """Return what tells whether the weights of a panel's other models were replaced."""
    local = (member.model for member in settings.judge.panel if not member.server.base_url)
    return [model_contents(model) for model in local if model != SELF]


@srlm_asset(
    Reads(("judge", "judge.panel", "seed"), verdicts=("judge.min_parse_rate",), contents=_panel),
    group="iteration",
    kinds={"torch", "pandas"},
    per_iteration=True,
    deps=[policy],
    check_specs=[
        dg.AssetCheckSpec("judge_parse_rate", asset="judged_scores", blocking=True),
    ],
)
def judged_scores(
    context: dg.AssetExecutionContext, project: ProjectResource, candidates: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Scores of M_t's replies, 0 to 5, by M_t itself (LLM-as-a-Judge) or by a panel."""
    from srlm_pipeline.evaluation.opening import open_judge
    from srlm_pipeline.generation.journal import Journal
    from srlm_pipeline.judging.judges import JudgeItem

    iteration = iteration_number(context.partition_key)
    settings, store = project.iteration_settings(iteration), project.store
    watch = Stopwatch()
    stage = f"judging/{context.partition_key}"
    model = store.entering_model(iteration)
    judge = open_judge(settings, store, project.engine, model, stage)
    items = [JudgeItem(f"{r.prompt_id}#{r.sample}", r.prompt, r.completion) for r in candidates.itertuples()]
    with project.tracked(context) as run:
        journal = Journal(store.journal_folder(stage))
        judgements = judge.judge(items, project.progress(context), journal)
        journal.prune()
        pace = speed(len(journal.added), watch.seconds)
        table = candidates.assign(
            judge=judge.name,
            score=[j.score for j in judgements],
            n_valid=[j.n_valid for j in judgements],
            n_invalid=[j.n_invalid for j in judgements],
            spread=[j.spread for j in judgements],
            disagreement=[j.disagreement for j in judgements],
            raw=[j.raw for j in judgements],
        )[list(JUDGED_SCORES.columns)].astype({"score": float, "spread": float, "disagreement": float})
        valid = int(table["n_valid"].sum())
        parse_rate = valid / max(valid + int(table["n_invalid"].sum()), 1)
        run.curve(
            {
                "judge/candidate_parse_rate": parse_rate,
                "scores/mean": float(table["score"].mean()) if valid else None,
                "scores/std": float(table["score"].std()) if valid > 1 else None,
                "scores/judge_disagreement": float(table["disagreement"].mean())
                if table["disagreement"].notna().any()
                else None,
                "judge/items_per_second": pace,
            },
            iteration,
        )
    metadata = {
        "judge": judge.name,
        "parse_rate": parse_rate,
        "mean_score": float(table["score"].mean()) if valid else float("nan"),
        "score_histogram": histogram(table["score"], f"Replies of {model.name}, {context.partition_key}"),
        "seconds": round(watch.seconds, 2),
        "judgements_per_second": pace,
        **mlflow_link(run.url),
    }
    least = settings.judge.min_parse_rate
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
        dg.AssetCheckSpec("pairs_kept", asset="preference_pairs", blocking=True),
    ],
)
def preference_pairs(
    context: dg.AssetExecutionContext, project: ProjectResource, judged_scores: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Each prompt's best reply against its worst; ties and unreadable scores are left out."""
    from srlm_pipeline.preference.pairs import select

    settings = project.settings
    iteration = iteration_number(context.partition_key)
    selection = select(judged_scores, settings.pairs)
    pairs = selection.pairs
    lengths = {
        side: float(pairs[side].str.len().mean()) for side in ("chosen", "rejected") if pairs[side].notna().any()
    }
    margin = float(pairs["margin"].mean()) if pairs["margin"].notna().any() else None
    with project.tracked(context) as run:
        run.curve(
            {
                "pairs/kept": len(pairs),
                "pairs/tie_rate": selection.tie_rate,
                "pairs/margin_mean": margin,
                "pairs/length_ratio": lengths["chosen"] / lengths["rejected"] if len(lengths) == 2 else None,
            },
            iteration,
        )
    metadata = {
        "prompts": selection.n_prompts,
        "pairs_kept": len(pairs),
        "ties_dropped": selection.n_ties,
        "too_few_scores": selection.n_too_few_valid,
        "too_low_scores": selection.n_too_low,
        "mean_margin": margin or 0.0,
        **{f"{side}_length_mean": length for side, length in lengths.items()},
        **mlflow_link(run.url),
    }
    checks = [
        check("pairs_kept", len(pairs) > 0, f"{len(pairs)} pairs kept", blocking=True, pairs=len(pairs)),
    ]
    shown = ["prompt_id", "margin", "prompt", "chosen", "rejected"]
    return table_result(pairs, metadata, checks, preview=shown)
