"""What stands first on an asset's page: one sentence with the figures that matter most."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

# By asset, the first that all figures are known for.
_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "ift_dataset": ("{rows} prompts with good responses, {median_response_words:.0f} words each (median)",),
    "ranked_replies": ("{rows} replies to {train_prompts} training and {held_out_prompts} held-out prompts",),
    "evaluation_prompts": ("{rows} prompts, on which models are compared",),
    "eft_dataset": ("{rows} judgements of replies to {prompts_kept} of {prompts} prompts",),
    "sft_baseline": ("{examples} examples, final loss {final_loss:.3f}",),
    "seed_model": ("{model} learned from {examples} examples, final loss {final_loss:.3f}", "{model} is trained"),
    "seed_evaluation": (
        "M1 against the base model: {M1_vs_base_wins:.0f} won, {M1_vs_base_ties:.0f} tied, {M1_vs_base_losses:.0f} "
        "lost; the arbiters agree with {arbiter_agreement:.0%} of the human preferences that they decide",
    ),
    "policy": ("{model} enters iteration {iteration}, attempt {attempt}",),
    "champion": ("{model} is to be beaten",),
    "generated_prompts": ("{rows} prompts by {generator}; {accepted_share:.0%} of {attempts} attempts were accepted",),
    "candidates": (
        "{rows} replies of {model}: {mean_tokens:.0f} tokens on average, {unfit_share:.0%} unfit, "
        "{cut_off_share:.0%} cut off",
    ),
    "judged_scores": (
        "{rows} replies score {mean_score:.2f} on average; {parse_rate:.0%} of the judgements are readable",
    ),
    "preference_pairs": (
        "{pairs_kept} pairs from {prompts} prompts, {ties_dropped} ties, mean margin {mean_margin:.2f}",
    ),
    "iteration_model": ("{model} learned from {pairs} pairs, final loss {final_loss:.3f}",),
    "assessment": (
        "{loops:.0%} of the replies go in circles, {closed_tasks:.0%} of the closed tasks are solved, "
        "{pairwise_accuracy:.0%} of the pairs are judged as people do",
        "{loops:.0%} of the replies go in circles, {pairwise_accuracy:.0%} of the pairs are judged as people do",
    ),
    "win_rates": (
        "against the champion {vs_champion_wins:.0f} won, {vs_champion_ties:.0f} tied, {vs_champion_losses:.0f} lost; "
        "against the SFT baseline {vs_baseline_wins:.0f}, {vs_baseline_ties:.0f}, {vs_baseline_losses:.0f}",
    ),
    "collapse_monitors": ("{rows} monitors; failed: {failed}",),
    "iteration_report": ("{in_plain_words}",),
}


def in_short(asset: str, metadata: Mapping[str, Any]) -> str | None:
    """Return the sentence for a result; None where there is none, or too little is known.

    Args:
        asset: Its name.
        metadata: What it recorded.
    """
    values = {k: v.value if isinstance(v, dg.MetadataValue) else v for k, v in metadata.items()}
    values["rows"] = values.get("dagster/row_count")
    for sentence in _SENTENCES.get(asset, ()):
        try:
            return sentence.format_map(values)
        except (KeyError, TypeError, ValueError):
            continue
    return None
