"""Writes what `benchmarks.self_improvement` found into docs/results.md, between its ``begin`` and ``end`` comments."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.table import fill_blocks, markdown_table

DOCUMENT = ROOT / "docs" / "results.md"
RECORD = RESULTS / "learning" / "self_improvement.json"
LOOPS = ("loop", "loop-other-seed")
ABLATIONS = ("no-eft", "positive-only")
# Names of models in the tables.
NAMES = {"base": "base model", "sft_baseline": "SFT baseline", "arbiter": "arbiter"}
_JUDGE_COLUMNS = {
    "pairwise_accuracy": "pairwise",
    "length_balanced_accuracy": "length-balanced",
    "accuracy_better_is_longer": "better is longer",
    "accuracy_better_is_shorter": "better is shorter",
    "five_best": "5-best",
    "exact_match": "exact match",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "parse_rate": "parse rate",
}
_CORRELATIONS = ("spearman", "kendall")


def main() -> None:
    from srlm_pipeline.files import replacing_file

    record = json.loads(RECORD.read_text(encoding="utf-8"))
    filled = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), blocks(record))
    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def blocks(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the document's blocks, as far as there are results for them."""
    arms = record["arms"]
    loops = {name: arms[name] for name in LOOPS if name in arms}
    ablations = {name: arms[name] for name in ABLATIONS if name in arms}
    found = {"settings": f"```yaml\n{record['settings'].strip()}\n```", "origin": origin(record)}
    if loops:
        found |= {
            "judges": judges(loops, record["arbiter"]),
            "matches": matches(loops),
            "lengths": lengths(loops),
            "pairs": pairs(loops),
        }
    if loops and "outside" in record["arbiter"]:
        found["outside"] = outside(loops, record["arbiter"])
    modes = arms.get("loop", {}).get("judge_modes")
    if modes:
        found["judge-modes"] = judge_modes(modes)
    own = arms.get("loop", {}).get("own_judgements")
    if own:
        found["own-judgements"] = own_judgements(own)
    full = arms.get("loop", {}).get("full_rubric")
    if full:
        found["rubrics"] = rubrics({"short": arms["loop"]["models"], "full": full})
    if ablations:
        found["ablations"] = ablation_table(ablations, loops)
    return found


def origin(record: Mapping[str, Any]) -> str:
    """Say when, at which commit and on which machine it was found."""
    machine, packages = record["machine"], record["versions"]
    return (
        f"{record['date'][:10]}, commit `{record['commit']}`; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB; " + ", ".join(f"{name} {version}" for name, version in packages.items()) + "."
    )


def judges(loops: Mapping[str, Any], arbiter: Mapping[str, Any]) -> str:
    """Every model as a judge of the held-out human rankings."""
    rows = _judging_rows(loops, arbiter, lambda model: _judge_cells(model["judge"]))
    any_judge = arbiter["judge"]
    baseline = f"{any_judge['length_baseline']:.1%}"
    note = (
        f"{any_judge['n_groups']:.0f} prompts, {any_judge['n_pairs']:.0f} pairs. Always taking the longer reply is "
        f"right in {baseline} of the pairs; length-balanced, in half of them."
    )
    return f"{markdown_table(['', 'model', *_JUDGE_COLUMNS.values()], rows)}\n\n{note}"


def outside(loops: Mapping[str, Any], arbiter: Mapping[str, Any]) -> str:
    """Every model as a judge of rankings that are not from Open Assistant."""
    rows = _judging_rows(loops, arbiter, lambda model: _outside_cells(model["outside"]))
    names = arbiter["outside"]
    columns = [
        f"{name}: {column}" for name in names for column in ("pairwise", "better is longer", "better is shorter")
    ]
    note = "; ".join(
        f"{name}: {found['n_groups']:.0f} prompts, {found['n_pairs']:.0f} pairs, the longer reply is the better one in "
        f"{found['length_baseline']:.1%}"
        for name, found in names.items()
    )
    return f"{markdown_table(['', 'model', *columns], rows)}\n\n{note}."


def matches(arms: Mapping[str, Any]) -> str:
    """Every pair of models before both judges."""
    rows = [
        [
            _seed(arm) if first else "",
            f"{_model(match['model'])} against {_model(match['opponent'])}",
            *_match_cells(match["arbiter"]),
            _with_interval(match["arbiter"], "length_controlled"),
            *_match_cells(match["self"]),
        ]
        for arm in arms.values()
        for first, match in _firsts(arm["matches"])
    ]
    columns = [
        "",
        "match",
        "arbiter: win / tie / loss",
        "of the decided, won (95 %)",
        "p",
        "win rate at equal length (95 %)",
        "self-judge (M1): win / tie / loss",
        "of the decided, won (95 %)",
        "p",
    ]
    return markdown_table(columns, rows)


def lengths(arms: Mapping[str, Any]) -> str:
    """Length and repetition of each model's replies to the evaluation prompts, and what it does as it is told."""
    rows = [
        [
            _seed(arm) if first else "",
            _model(name),
            f"{model['length_mean']:.0f}",
            f"{model['tokens_mean']:.0f}",
            f"{model['length_mean'] / arm['models']['sft_baseline']['length_mean']:.2f}",
            f"{model['repeated_4grams']:.3f}",
            f"{model['cut_off_share']:.1%}",
            _with_interval(model["verifiable"], "instruction_strict"),
            _change(model["verifiable"]),
        ]
        for arm in arms.values()
        for first, (name, model) in _firsts([(n, m) for n, m in arm["models"].items() if "length_mean" in m])
    ]
    columns = [
        "",
        "model",
        "characters",
        "tokens",
        "times the SFT baseline's",
        "repeated 4-grams",
        "cut off by the limit",
        "verifiable instructions followed (95 %)",
        "against the SFT baseline, prompt by prompt",
    ]
    return markdown_table(columns, rows)


def pairs(arms: Mapping[str, Any]) -> str:
    """What became of each iteration's prompts."""
    rows = [
        [
            _seed(arm) if first else "",
            number,
            f"{found['prompts']:.0f}",
            f"{found['pairs']:.0f}",
            f"{found['ties']:.0f}",
            f"{found['too_few']:.0f}",
            f"{found['score_mean']:.2f} ± {found['score_std']:.2f}",
            f"{found['chosen_length']:.0f} / {found['rejected_length']:.0f}",
        ]
        for arm in arms.values()
        for first, (number, found) in _firsts(arm["iterations"].items())
    ]
    columns = [
        "", "iteration", "prompts", "pairs", "ties", "too few scores", "scores", "characters, chosen / rejected"
    ]  # fmt: skip
    return markdown_table(columns, rows)


def judge_modes(modes: Mapping[str, Any]) -> str:
    """Accuracy and cost of the ways of judging; accuracy is of the pairs of which both replies got a score."""
    rows = [
        [
            name,
            f"{mode['valid_share']:.1%}",
            f"{mode['parse_rate']:.1%}",
            f"{mode['n_pairs']:.0f}",
            _pairwise(mode) if mode["n_pairs"] else "",
            f"{mode['length_balanced_accuracy']:.1%}" if mode["n_pairs"] else "",
            f"{mode['judgements_per_second']:.2f}",
        ]
        for name, mode in modes.items()
    ]
    columns = [
        "mode", "valid judgements", "replies with a score", "pairs", "pairwise", "length-balanced", "replies per second"
    ]  # fmt: skip
    return markdown_table(columns, rows)


def own_judgements(own: Mapping[str, Any]) -> str:
    """How many prompts the paper's EFT keeps with this model."""
    reasons = ", ".join(f"{name}: {count:.0f}" for name, count in own.items() if name not in ("prompts", "kept"))
    return f"Of {own['prompts']:.0f} training prompts {own['kept']:.0f} are kept ({reasons})."


def ablation_table(ablations: Mapping[str, Any], loops: Mapping[str, Any]) -> str:
    """The first iteration of each variant beside the loop's."""
    rows = []
    for name, arm in {**{k: v for k, v in loops.items() if k == "loop"}, **ablations}.items():
        match = next(m for m in arm["matches"] if (m["model"], m["opponent"]) == ("M2", "sft_baseline"))
        first = arm["iterations"]["1"]
        judged = arm["models"]["M1"]["judge"]
        growth = arm["models"]["M2"]["length_mean"] / arm["models"]["sft_baseline"]["length_mean"]
        rows.append(
            [
                name,
                f"{judged['pairwise_accuracy']:.1%}",
                f"{judged['length_balanced_accuracy']:.1%}",
                f"{first['pairs']:.0f}",
                *_match_cells(match["arbiter"]),
                _with_interval(match["arbiter"], "length_controlled"),
                f"{growth:.2f}",
            ]
        )
    columns = [
        "variant",
        "M1 as judge: pairwise",
        "length-balanced",
        "pairs or examples",
        "M2 against SFT baseline, arbiter: win / tie / loss",
        "of the decided, won (95 %)",
        "p",
        "win rate at equal length (95 %)",
        "length",
    ]
    return markdown_table(columns, rows)


def rubrics(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Judges by each rubric, before (the SFT baseline) and after they are taught to judge by it (M1)."""
    rows = [
        [
            rubric,
            _model(name),
            _pairwise(model["judge"]),
            f"{model['judge']['length_balanced_accuracy']:.1%}",
            *map(_pairwise, model["outside"].values()),
        ]
        for rubric, judges in models.items()
        for name, model in ((name, judges[name]) for name in ("sft_baseline", "M1"))
    ]
    elsewhere = next(iter(models.values()))["M1"]["outside"]
    return markdown_table(["rubric", "model", "pairwise", "length-balanced", *elsewhere], rows)


def _judging_rows(
    loops: Mapping[str, Any], arbiter: Mapping[str, Any], cells: Callable[[Mapping[str, Any]], list[str]]
) -> list[list[str]]:
    rows = [
        [_seed(arm) if first else "", _model(name), *cells(model)]
        for arm in loops.values()
        for first, (name, model) in _firsts(arm["models"].items())
    ]
    return [*rows, ["", "arbiter", *cells(arbiter)]]


def _judge_cells(judge: Mapping[str, float]) -> list[str]:
    cells = []
    for name in _JUDGE_COLUMNS:
        value = judge.get(name)
        text = "" if value is None else f"{value:.3f}" if name in _CORRELATIONS else f"{value:.1%}"
        if name == "pairwise_accuracy" and value is not None:
            text = _pairwise(judge)
        cells.append(text)
    return cells


def _outside_cells(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        cell
        for judge in found.values()
        for cell in (
            _pairwise(judge),
            f"{judge['accuracy_better_is_longer']:.1%}",
            f"{judge['accuracy_better_is_shorter']:.1%}",
        )
    ]


def _match_cells(match: Mapping[str, float]) -> list[str]:
    counts = f"{match['wins']:.0f} / {match['ties']:.0f} / {match['losses']:.0f}"
    if "decided_win_rate" not in match:
        return [counts, "", ""]
    share = _interval(match["decided_win_rate"], match["decided_low"], match["decided_high"])
    return [counts, share, f"{match['p_value']:.3f}"]


def _pairwise(judge: Mapping[str, float]) -> str:
    return _interval(judge["pairwise_accuracy"], judge["pairwise_low"], judge["pairwise_high"])


def _with_interval(found: Mapping[str, float], name: str) -> str:
    return _interval(found[name], found[f"{name}_low"], found[f"{name}_high"])


def _change(found: Mapping[str, float]) -> str:
    if "ahead" not in found:
        return ""
    return f"{found['ahead']:+.1%} ({found['ahead_low']:+.1%} to {found['ahead_high']:+.1%})"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def _seed(arm: Mapping[str, Any]) -> str:
    return f"seed {arm['seed']}"


def _model(name: str) -> str:
    return NAMES.get(name, name)


def _firsts(items: Any) -> list[tuple[bool, Any]]:
    """Mark the first of several rows, which alone names their group."""
    listed: Sequence[Any] = list(items)
    return [(place == 0, item) for place, item in enumerate(listed)]


if __name__ == "__main__":
    main()
