"""The head of an iteration's report as Markdown, for places that show no HTML, such as Dagster's metadata."""

from __future__ import annotations

from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.facts import Finding, IterationReport
from srlm_pipeline.reporting.render import iteration_verdict


def iteration_summary(report: IterationReport) -> str:
    """Return verdict, rules, monitors, matches and judge accuracy.

    Args:
        report: The iteration's facts.
    """
    lines = [
        f"# {report.project}, iteration {report.iteration}",
        "",
        iteration_verdict(report),
        "",
        *_findings("rule", report.rules),
        *_findings("monitor", report.monitors),
        *_vital_signs(report),
        "## Head to head",
        "",
        *(
            [f"The loop's own opinion: the arbiter is not independent ({plain('; '.join(report.dependences))}).", ""]
            if report.dependences
            else []
        ),
        f"{report.model} against | wins | ties | losses | win rate (95 %) | at equal length | orders disagree",
        "---|---|---|---|---|---|---",
        *(
            f"{plain(f'{m.opponent} ({m.role})')} | {m.wins} | {m.ties} | {m.losses} | "
            f"{words.share_with_interval(m.win_rate)} | {words.share_with_interval(m.length_controlled)} | "
            f"{words.share(m.disagreement)}"
            for m in report.matches
        ),
        "",
        f"Decided by {plain(', '.join(juror.name for juror in report.arbiters))}.",
        "",
        "## As a judge, on held-out human rankings",
        "",
        "model | pairwise (95 %) | length baseline | length-balanced | 5-best | exact match | Spearman | Kendall | "
        "parsed",
        "---|---|---|---|---|---|---|---|---",
        *(
            f"{j.model} | {words.share_with_interval(j.pairwise)} | {words.share(j.length_baseline)} | "
            f"{words.share(j.length_balanced)} | {words.share(j.five_best)} | {words.share(j.exact_match)} | "
            f"{words.number(j.spearman)} | {words.number(j.kendall)} | {words.share(j.parse_rate)}"
            for j in report.judges
        ),
        "",
    ]
    if report.verifiable:
        lines += [
            "## Checkable instructions",
            "",
            f"model | prompts, strict | prompts, loose | instructions, strict | instructions, loose | {report.model} "
            "against it, prompt by prompt",
            "---|---|---|---|---|---",
            *(
                " | ".join(
                    [
                        v.model,
                        *map(
                            words.share_with_interval,
                            (v.prompt_strict, v.prompt_loose, v.instruction_strict, v.instruction_loose),
                        ),
                        words.change_with_interval(v.ahead),
                    ]
                )
                for v in report.verifiable
            ),
            "",
        ]
    return "\n".join(lines)


def _vital_signs(report: IterationReport) -> list[str]:
    if not report.vital_signs:
        return []
    names = list(report.vital_signs[0].models)
    lines = ["## Vital signs, without any judge", "", " | ".join(["measure", *names, "with 95 % confidence"])]
    lines.append("|".join(["---"] * (len(names) + 2)))
    for sign in report.vital_signs:
        write = words.main_share if sign.unit == "share" else lambda e: words.number(e.value if e else None)
        told = "; ".join(
            [
                f"{word} than {', '.join(others)}"
                for word, others in (("worse", sign.worse), ("better", sign.better))
                if others
            ]
        )
        note = f"not measured: {plain(sign.note)}" if sign.note else told or "no difference proved"
        lines.append(" | ".join([sign.name, *(write(sign.models[name]) for name in names), note]))
    return [*lines, ""]


def plain(text: str) -> str:
    """Return one line in which nothing is markup."""
    return "".join("\\" + c if c in "\\`*_{}[]<>|#~&" else c for c in " ".join(text.split()))


def _findings(kind: str, findings: tuple[Finding, ...]) -> list[str]:
    verdicts = {True: "passed", False: "**failed**", None: "not judged"}
    if not findings:
        return []
    return [
        f"| {kind} | verdict | figures |",
        "|---|---|---|",
        *(f"| {plain(f.name)} | {verdicts[f.passed]} | {plain(f.explanation)} |" for f in findings),
        "",
    ]
