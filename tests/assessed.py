"""Assessments as a test tells them: figures by item, replies that nothing is wrong with unless it is said."""

from collections.abc import Sequence

import pandas as pd

from srlm_pipeline.checks.vital_signs import SIGNS
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.tables import ASSESSED_REPLIES, JUDGE_ACCURACY, LIKELIHOOD, VERIFIABLE, check_table

TOKENS = 10
# Of every verifiable prompt: a kind that may be trained on, and one that never is.
ASKED = ("punctuation:no_comma", "startend:quotation")


def assessed(
    model: str,
    replies: Sequence[str] = (),
    closed: Sequence[float] = (),
    followed: Sequence[int] = (),
    scores: Sequence[tuple[float | None, float | None]] = (),
    nats: Sequence[float] = (),
    nearness: Sequence[float | None] = (),
    cut_off: Sequence[bool] = (),
    digest: str = "",
    **signs: Sequence[bool],
) -> Assessment:
    """Return a model's assessment; without replies there are as many as the longest sequence about them.

    Args:
        model: Its name.
        replies: To evaluation prompts.
        closed: Of each closed task whether it was solved.
        followed: How many of a verifiable prompt's two instructions, in order; these replies have no sign.
        scores: Of the better and the worse of each prompt's two human-ranked replies.
        nats: Per token of each best human reply.
        nearness: Of the first replies.
        cut_off: Likewise.
        digest: Of its weights.
        signs: Likewise, by name.
    """
    assert set(signs) <= set(SIGNS)
    texts = list(replies) or [f"reply {n}" for n in range(max(map(len, (nearness, cut_off, *signs.values()))))]
    rows = [
        {
            "part": "evaluation",
            "reply": text,
            "finish_reason": "length" if _at(cut_off, n) else "stop",
            **{sign: bool(_at(signs.get(sign, ()), n)) for sign in SIGNS},
            "nearness": _at(nearness, n),
        }
        for n, text in enumerate(texts)
    ]
    rows += [{"part": "verifiable"} for _ in followed] + [{"part": "closed", "right": float(yes)} for yes in closed]
    places: dict[str, int] = {}
    for row in rows:
        places[row["part"]] = n = places.get(row["part"], -1) + 1
        row |= {"prompt_id": f"{row['part'][0]}{n}", "prompt": f"{row['part']} prompt {n}", "model": model}
    told = pd.DataFrame(rows, columns=list(ASSESSED_REPLIES.columns))
    plain = {"kind": "", "reply": "a reply", "n_tokens": 2, "finish_reason": "stop", **dict.fromkeys(SIGNS, False)}
    for name, value in plain.items():
        told[name] = [value if pd.isna(given) else given for given in told[name]]
    verifiable = [
        (model, f"c{n}", "do", "done", ",".join(ASKED), 2, yes, yes, ",".join(ASKED[yes:]))
        for n, yes in enumerate(followed)
    ]
    judged = [(model, f"g{n}", rank, 10, score) for n, pair in enumerate(scores) for rank, score in enumerate(pair)]
    likely = [(model, f"g{n}", TOKENS * value, TOKENS) for n, value in enumerate(nats)]
    return Assessment(
        model,
        digest or f"{model}-weights",
        check_table(told, ASSESSED_REPLIES),
        *(
            check_table(pd.DataFrame(content, columns=list(schema.columns)), schema)
            for content, schema in ((verifiable, VERIFIABLE), (judged, JUDGE_ACCURACY), (likely, LIKELIHOOD))
        ),
    )


def _at(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if place < len(values) else None
