"""The page on which people browse candidates and pairs: every reply to an invented prompt with its scores.

One file that loads nothing. Its one script is allowed by its digest; without it the page is a long plain one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from srlm_pipeline.config import PairSettings
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import render
from srlm_pipeline.reporting.reading import SIGN_WORDS, Reply, page_digest
from srlm_pipeline.tables import GENERATED_PROMPTS, JUDGED_SCORES, PREFERENCE_PAIRS

# Of what a judge wrote about a reply; a page of thousands of replies has to stay light.
_RATIONALE = 600
Mark = Literal["chosen", "rejected", ""]


@dataclass(frozen=True)
class Candidate:
    """A reply to an invented prompt.

    Attributes:
        sample: Its number among the replies to the prompt.
        reply: The text, with what is wrong at first sight.
        scores: By judge, 0 to 5; None where a judge's could not be read. The first is the one that counts.
        marks: By judge, whether the reply was chosen or rejected; by a judge of a panel, whether it would have been.
        said: By judge, what it wrote; blank if nothing to read.
    """

    sample: int
    reply: Reply
    scores: tuple[float | None, ...]
    marks: tuple[Mark, ...]
    said: tuple[str, ...]


@dataclass(frozen=True)
class BrowsedPrompt:
    """An invented prompt with all replies to it.

    Attributes:
        number: Its place on the page, from 1.
        id: Its name in the tables.
        kind: How it was made: invented, or the operator that made it out of another.
        text: The instruction.
        margins: By judge, how far chosen and rejected are apart; None without a pair.
        candidates: By sample.
    """

    number: int
    id: str
    kind: str
    text: str
    margins: tuple[float | None, ...]
    candidates: tuple[Candidate, ...]

    @property
    def disagree(self) -> bool:
        """Whether judges of the panel would have made other pairs than the one that was made."""
        return any(len(set(candidate.marks)) > 1 for candidate in self.candidates)


@dataclass(frozen=True)
class Browsed:
    """All candidates of an iteration.

    Attributes:
        judges: Names; the first is the one that counts, others are members of a panel.
        prompts: In the order in which they were invented.
    """

    judges: tuple[str, ...]
    prompts: tuple[BrowsedPrompt, ...]

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts, in the order in which they first occur."""
        return list(dict.fromkeys(prompt.kind for prompt in self.prompts))


def browse(prompts: pd.DataFrame, scored: pd.DataFrame, pairs: pd.DataFrame, settings: PairSettings) -> Browsed:
    """Put candidates, scores and pairs together.

    Args:
        prompts: Table `GENERATED_PROMPTS`.
        scored: Table `JUDGED_SCORES`.
        pairs: Table `PREFERENCE_PAIRS`, as they were made.
        settings: How each judge of a panel would have chosen pairs by itself.
    """
    panel = [_members(raw) for raw in scored["raw"]]
    names = list(dict.fromkeys(member["judge"] for members in panel for member in members))
    opinions = [{member["judge"]: member for member in members} for members in panel]
    own = scored.assign(passed=np.nan, opinion=np.nan)
    members = [[opinion.get(name, {}).get("score") for opinion in opinions] for name in names]
    alone = (own.assign(score=pd.Series(scores, own.index, dtype=float)) for scores in members)
    made = [_made(pairs), *(_made(select(scores, settings).pairs) for scores in alone)]
    rows: dict[str, list[Candidate]] = {}
    for row, opinion in zip(scored.to_dict("records"), opinions, strict=True):
        key = row["prompt_id"], int(row["sample"])
        signs = tuple(filter(None, row["signs"].split(",")))
        told = [opinion.get(name, {}) for name in names]
        rows.setdefault(row["prompt_id"], []).append(
            Candidate(
                key[1],
                Reply(row["completion"], int(row["n_tokens"]), signs),
                (_known(row["score"]), *(_known(one.get("score")) for one in told)),
                tuple(marks.get(key, "") for marks, _ in made),
                ("" if told else _said(row["raw"]), *(_said(one.get("raw", "")) for one in told)),
            )
        )
    kinds = dict(zip(prompts["prompt_id"], prompts["operator"], strict=True))
    texts = dict(zip(scored["prompt_id"], scored["prompt"], strict=True))
    return Browsed(
        ("panel, by weight" if names else (scored["judge"].iloc[0] if len(scored) else "judge"), *names),
        tuple(
            BrowsedPrompt(
                number,
                key,
                kinds.get(key, ""),
                texts[key],
                tuple(margins.get(key) for _, margins in made),
                tuple(sorted(own_rows, key=lambda candidate: candidate.sample)),
            )
            for number, (key, own_rows) in enumerate(rows.items(), start=1)
        ),
    )


def candidates_html(it: Iteration, back: str) -> str:
    """Return the page of an iteration as HTML; `back` is the relative address of the report.

    Raises:
        TableError: If a table is missing.
    """
    browsed = browse(
        it.table(GENERATED_PROMPTS, "generated_prompts"),
        it.table(JUDGED_SCORES, "judged_scores"),
        it.table(PREFERENCE_PAIRS, "preference_pairs"),
        it.settings.pairs,
    )
    script, style = render("candidates.js"), render("report.css")
    return render(
        "candidates.html",
        browsed=browsed,
        project=it.settings.project,
        title=f"Iteration {it.number}: candidates and pairs of {it.previous}",
        made_at=it.around.made_at,
        back=back,
        signs=SIGN_WORDS,
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script_digest=page_digest(script),
        style_digest=page_digest(style),
    )


def _made(pairs: pd.DataFrame) -> tuple[dict[tuple[str, int], Mark], dict[str, float | None]]:
    """Return which replies were chosen and rejected, and each prompt's margin."""
    marks: dict[tuple[str, int], Mark] = {}
    margins: dict[str, float | None] = {}
    for row in pairs.itertuples():
        marks[row.prompt_id, int(row.chosen_sample)] = "chosen"
        if not pd.isna(row.rejected_sample):
            marks[row.prompt_id, int(row.rejected_sample)] = "rejected"
        margins[row.prompt_id] = _known(row.margin)
    return marks, margins


def _members(raw: str) -> Sequence[Mapping[str, Any]]:
    """Return what the members of a panel said, as `PanelJudge` writes it; nothing for a single judge."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    whole = isinstance(said, list) and all(isinstance(one, dict) and {"judge", "score"} <= one.keys() for one in said)
    return said if whole else ()


def _said(raw: object) -> str:
    """Return the beginning of what a judge wrote, as `Judgement.raw` keeps it; blank where it only gave numbers."""
    text = raw if isinstance(raw, str) else ""
    try:
        kept = json.loads(text)
    except (ValueError, RecursionError):
        kept = text
    if isinstance(kept, dict):
        kept = kept.get("rationale")
    if isinstance(kept, list):
        kept = "\n\n".join(part for part in kept if isinstance(part, str))
    return kept.strip()[:_RATIONALE] if isinstance(kept, str) else ""


def _known(value: float | None) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
