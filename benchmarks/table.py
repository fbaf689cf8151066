"""Writes the recorded results into docs/performance.md, between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, SMOKE_RESULTS, describe_limits, number, spread
from benchmarks.work import Limits

DOCUMENT = ROOT / "docs" / "performance.md"
MISSING = "*not yet measured*"
# Of the document's blocks, those that are made of all results.
OVERVIEW, MACHINE = "ratios", "machine"
_BLOCK = re.compile(r"(<!-- begin:(?P<name>[\w-]+) -->\n).*?(<!-- end:(?P=name) -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="print what trials would look like; write nothing")
    args = parser.parse_args(arguments)
    filled = fill(DOCUMENT.read_text(encoding="utf-8"), read_results(SMOKE_RESULTS if args.smoke else RESULTS))
    if args.smoke:
        print(filled)
        return
    from srlm_pipeline.files import replacing_file

    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return all recorded results of benchmarks of speed, which have a name; others have documents of their own."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return [result for result in found if "name" in result]


def fill(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return a document with its blocks filled; those without a result say so."""
    blocks = {str(result["name"]): render(result) for result in results}
    if results:
        blocks |= {OVERVIEW: render_overview(results), MACHINE: render_machine(results)}
    return fill_blocks(text, blocks)


def fill_blocks(text: str, blocks: Mapping[str, str], keep: bool = False) -> str:
    """Return a document with its blocks filled by name.

    Args:
        text: The document.
        blocks: New contents.
        keep: Whether blocks that are not given stay as they are; else they say that nothing was measured.
    """

    def filled(found: re.Match[str]) -> str:
        if keep and found["name"] not in blocks:
            return found[0]
        return f"{found[1]}\n{blocks.get(found['name'], MISSING)}\n\n{found[3]}"

    return _BLOCK.sub(filled, text)


def render(result: Mapping[str, Any]) -> str:
    """Return a benchmark's measurements, notes and series as Markdown."""
    parts = [
        markdown_table(
            ["", "median (range)", "unit", "share of the machine's limit", ""],
            [
                [
                    m["name"],
                    spread(m["values"]),
                    m["unit"],
                    "" if m["limit_share"] is None else f"{m['limit_share']:.0%}",
                    m["note"],
                ]
                for m in result["measurements"]
            ],
        ),
        "\n\n".join(result["notes"]),
    ]
    if result["series"]:
        table = markdown_table(result["series"]["columns"], result["series"]["rows"])
        long = len(result["series"]["rows"]) > 12
        parts.append(f"<details><summary>all rows</summary>\n\n{table}\n\n</details>" if long else table)
    parts.append(
        f"Repetitions: {result['arguments']['repetitions']}; {result['date'][:10]}, "
        f"commit `{result['commit'] or 'unknown'}`, load average before: {result['machine']['load_average']:.2f}."
    )
    return "\n\n".join(part for part in parts if part)


def render_overview(results: Sequence[Mapping[str, Any]]) -> str:
    """Return all verdicts in one table."""
    rows = []
    for result in results:
        for verdict in result["verdicts"]:
            sign = "\u2265" if verdict["at_least"] else "\u2264"
            unit = verdict["unit"]
            met = "met" if verdict["met"] else "**missed**"
            rows.append(
                [
                    f"[{result['name']}](#{result['name'].replace('_', '-')})",
                    verdict["what"],
                    f"{spread(verdict['values'])} {unit}".strip(),
                    f"{sign} {number(verdict['target'])} {unit}".strip(),
                    met,
                ]
            )
    return markdown_table(["benchmark", "what", "median (range)", "target", ""], rows)


def render_machine(results: Sequence[Mapping[str, Any]]) -> str:
    """Return machine, limits and versions; of several different ones, all."""
    lines = []
    for result in results:
        m = result["machine"]
        place = f"on {m['device']}" if m["device"] != "cpu" else f"on the CPU with {m['threads']} threads"
        lines.append(
            f"{m['cores']} cores of {m['cpu']}, {m['memory_gib']} GiB of memory, {m['system']}, Python {m['python']}; "
            f"computed {place}. " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + "."
        )
    limits = [[r["name"], describe_limits(Limits(**r["limits"]))] for r in results]
    return "\n\n".join(
        [*dict.fromkeys(lines), markdown_table(["benchmark", "the machine's limits, best of several looks"], limits)]
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; a bar inside a cell does not end it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
