"""The page on which people read what the models say: all replies to a prompt side by side, with what is wrong in them.

One file that loads nothing. Its one script is allowed by its digest; without it the page is a long plain one.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import pandas as pd
from markupsafe import Markup
from rapidfuzz.distance import Indel

from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.vital_signs import SIGNS, Exchange, find_marks
from srlm_pipeline.reporting.read_facts import CUT_OFF, SIGN_WORDS, ReadingPage, ReadModel, ReadPrompt, ReadReply
from srlm_pipeline.reporting.render import UNPRINTABLE, environment

_CHAMPION = "champion"


def reading_page(
    project: str,
    title: str,
    made_at: str,
    assessments: Mapping[str, Assessment],
    roles: Mapping[str, str],
    references: Mapping[str, str],
    system_prompt: str,
    back: str,
) -> ReadingPage:
    """Gather the replies to the evaluation prompts.

    Args:
        project: Name.
        title: What was done.
        made_at: When the page is made, in words.
        assessments: By the models' names, in the order to be shown, the new model last; its prompts are shown.
        roles: Of the models, in words; several are separated by commas. The new model is compared with the one that
            is ``champion`` among other things, or if none is, with the one before the last.
        references: Good replies, by the prompts' ids, where they are known.
        system_prompt: What the chat template puts before a conversation by itself.
        back: Relative address of the report; blank for none.
    """
    models = tuple(ReadModel(name, roles.get(name, "")) for name in assessments)
    champion = _champion(models)
    replies = {
        name: dict(_replies(name, assessment, references, system_prompt)) for name, assessment in assessments.items()
    }
    new = models[-1].name
    prompts = []
    for number, row in enumerate(_rows(assessments[new]), start=1):
        prompt_id = str(row["prompt_id"])
        found = {name: known[prompt_id] for name, known in replies.items() if prompt_id in known}
        compared = champion is not None and champion in found
        prompts.append(
            ReadPrompt(
                number,
                prompt_id,
                str(row["kind"]),
                str(row["prompt"]),
                _filled(references.get(prompt_id)),
                tuple(found.values()),
                _distance(found[champion].text, found[new].text) if champion is not None and compared else 0.0,
            )
        )
    return ReadingPage(project, title, made_at, models, champion, tuple(prompts), back)


def reading_html(page: ReadingPage) -> str:
    """Return the page as HTML."""
    script = _plain("reading.js")
    style = _plain("report.css") + "\n" + _plain("telling.css") + "\n" + _plain("reading.css")
    html = (
        environment()
        .get_template("reading.html")
        .render(
            page=page,
            signs=SIGN_WORDS,
            script=Markup(script),  # noqa: S704
            style=Markup(style),  # noqa: S704
            script_digest=_digest(script),
            style_digest=_digest(style),
        )
    )
    return html.translate(UNPRINTABLE)


def telling(page: ReadingPage, n: int = 3) -> tuple[ReadPrompt, ...]:
    """Return the prompts that a person should see first.

    Those come first whose replies became worse: flagged of the new model, not of the champion. The sign that was shown
    least has its turn, the gravest first, and of one sign the most changed reply. Then come the most changed replies.

    Args:
        page: With all prompts.
        n: At most so many.
    """
    ordered = sorted(page.prompts, key=lambda prompt: (-prompt.change, prompt.number))
    new = {prompt.number: _new_signs(page, prompt) for prompt in ordered}
    chosen: list[ReadPrompt] = []
    shown: Counter[str] = Counter()
    while len(chosen) < min(n, len(ordered)):
        left = [prompt for prompt in ordered if prompt not in chosen]
        waiting = [sign.name for sign in SIGN_WORDS if any(sign.name in new[prompt.number] for prompt in left)]
        turn = min(waiting, key=lambda sign: shown[sign], default=None)
        following = next(prompt for prompt in left if turn is None or turn in new[prompt.number])
        chosen.append(following)
        shown.update(new[following.number])
    return tuple(chosen)


def _champion(models: Sequence[ReadModel]) -> str | None:
    earlier = models[:-1]
    by_role = (m.name for m in earlier if _CHAMPION in [word.strip() for word in m.role.split(",")])
    return next(by_role, earlier[-1].name if earlier else None)


def _replies(
    model: str, assessment: Assessment, references: Mapping[str, str], system_prompt: str
) -> Iterator[tuple[str, ReadReply]]:
    for row in _rows(assessment):
        prompt_id, text = str(row["prompt_id"]), str(row["reply"])
        signs = (*(sign for sign in SIGNS if row[sign]), *([CUT_OFF] if row["finish_reason"] == "length" else []))
        exchange = Exchange(str(row["prompt"]), text, _filled(references.get(prompt_id)))
        # A place alone does not condemn a reply; a refusal does wherever it is found.
        marks = tuple(m for m in find_marks(exchange, system_prompt) if m.sign in signs or m.sign == "refuses")
        yield prompt_id, ReadReply(model, text, int(cast(int, row["n_tokens"])), signs, marks)


def _rows(assessment: Assessment) -> list[dict[str, object]]:
    columns = ["prompt_id", "kind", "prompt", "reply", "n_tokens", "finish_reason", *SIGNS]
    part: pd.DataFrame = assessment.part("evaluation")
    return [{str(name): value for name, value in row.items()} for row in part[columns].to_dict("records")]


def _filled(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def _distance(first: str, second: str) -> float:
    return 1.0 - float(Indel.normalized_similarity(first.split(), second.split()))


def _new_signs(page: ReadingPage, prompt: ReadPrompt) -> set[str]:
    reply = prompt.reply_of(page.models[-1].name)
    before = prompt.reply_of(page.champion) if page.champion is not None else None
    return set(reply.signs if reply else ()) - set(before.signs if before else ())


def _plain(name: str) -> str:
    return environment().get_template(name).render()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
