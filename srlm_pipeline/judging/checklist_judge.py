"""Judging by checklists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.checklists import FEWEST, Question, fill_up, write_checklists
from srlm_pipeline.judging.judges import JudgeItem, Judgement, weighted_judgement
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.kinds import kinds_of
from srlm_pipeline.judging.reading import Place, expectation, read_places
from srlm_pipeline.judging.rubric import MAX_SCORE, YES_NO, YES_NO_START, yes_no_prompt
from srlm_pipeline.progress import ProgressReporter


class ChecklistJudge:
    """The share of yes among the answers to a prompt's checklist, weighted, as a score from 0 to 5.

    An answer is P(yes) / (P(yes) + P(no)). All questions about a reply stand at the end of the same text, which is
    read once. A question that the model was not about to answer is left out, and counted as invalid.

    Args:
        engine: The judging model; it also writes the checklists.
        known: Questions that need not be written, by prompt; see `write_checklists`.
    """

    def __init__(self, engine: TextEngine, known: Mapping[str, Sequence[Question]] | None = None) -> None:
        self._engine, self._known = engine, known

    @property
    def name(self) -> str:
        """Rubric and model digest."""
        return f"checklist@{self._engine.digest}"

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item once; see `Judge.judge`."""
        checklists = self.checklists(items, progress, journal)
        groups = [
            [Place(yes_no_prompt(q.text, item.prompt, item.response), YES_NO_START) for q in checklists[item.prompt]]
            for item in items
        ]
        masses = read_places(self._engine, groups, YES_NO, "judging", progress, journal)
        judgements = []
        for item, read in zip(items, masses, strict=True):
            questions = checklists[item.prompt]
            # In ascending order of their worth.
            answers = [expectation((no, yes), (0, MAX_SCORE)) for yes, no in read.tolist()]
            told = [
                {"question": question.text, "weight": question.weight, "yes": yes, "no": no}
                for question, (yes, no) in zip(questions, read.tolist(), strict=True)
            ]
            raw = json.dumps({"questions": told}, ensure_ascii=False)
            judgements.append(weighted_judgement(item.key, answers, [q.weight for q in questions], raw))
        return judgements

    def checklists(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> dict[str, list[Question]]:
        """Return the questions that are asked of replies to each prompt.

        Args:
            items: To be judged.
            progress: Where progress is shown.
            journal: Written questions and told kinds are read from it and added to it.
        """
        prompts = [item.prompt for item in items]
        written = write_checklists(self._engine, prompts, progress, journal, self._known)
        few = [item for item in items if len(written[item.prompt]) < FEWEST]
        kinds = kinds_of(self._engine, few, progress, journal)
        rubrics = {item.prompt: kind_rubrics().of(kind) for item, kind in zip(few, kinds, strict=True)}
        return {
            prompt: fill_up(questions, rubrics[prompt]) if prompt in rubrics else questions
            for prompt, questions in written.items()
        }
