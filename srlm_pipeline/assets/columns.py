"""Where the columns of the iteration's tables come from, as Dagster draws it."""

from collections.abc import Mapping, Sequence

import dagster as dg

from srlm_pipeline.tables import CANDIDATES, EFT, JUDGED_SCORES

_Source = tuple[str, str]
_READ: Sequence[_Source] = (("candidates", "prompt"), ("candidates", "completion"))
_CHOSEN: Sequence[_Source] = (("judged_scores", "completion"), ("judged_scores", "score"), ("judged_scores", "signs"))


def _copied(asset: str, columns: Sequence[str]) -> dict[str, Sequence[_Source]]:
    return {column: [(asset, column)] for column in columns}


def _sides(column: str, sources: Sequence[_Source]) -> dict[str, Sequence[_Source]]:
    return {column.format(side): sources for side in ("chosen", "rejected")}


# By asset and column: the columns that it is copied or computed from.
SOURCES: Mapping[str, Mapping[str, Sequence[_Source]]] = {
    "eft_dataset": _copied("ranked_replies", [c for c in EFT.columns if c != "judgement"])
    | {"judgement": [("ranked_replies", "rationale"), ("ranked_replies", "score")]},
    "generated_prompts": {"prompt": [("ift_dataset", "prompt")], "parent_ids": [("ift_dataset", "id")]},
    "candidates": _copied("generated_prompts", ["prompt_id", "prompt"])
    | {"completion": [("generated_prompts", "prompt")]},
    "judged_scores": _copied("candidates", [c for c in CANDIDATES.columns if c in JUDGED_SCORES.columns])
    | dict.fromkeys(("score", "n_valid", "n_invalid", "spread", "disagreement", "opinion", "raw"), _READ)
    | {"passed": [("candidates", "completion"), ("generated_prompts", "checks")]},
    "preference_pairs": _copied("judged_scores", ["prompt_id", "prompt", "judge"])
    | _sides("{}", _CHOSEN)
    | _sides("{}_sample", [("judged_scores", "sample")])
    | _sides("{}_score", [("judged_scores", "score")])
    | _sides("{}_finish_reason", [("judged_scores", "finish_reason")])
    | _sides("{}_passed", [("judged_scores", "passed")])
    | {"margin": [("judged_scores", "score")], "rejected_for": [("judged_scores", "signs")]},
}


def column_lineage(asset: str) -> dg.TableColumnLineage | None:
    """Return where an asset's columns come from; None where it is not known."""
    if asset not in SOURCES:
        return None
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(dg.AssetKey(above), name) for above, name in sources]
            for column, sources in SOURCES[asset].items()
        }
    )
