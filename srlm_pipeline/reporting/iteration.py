"""One iteration, as its stages left it in the project's tables. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import pandera.pandas as pa

from srlm_pipeline.config import Settings
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessing import assessment_metrics
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.champion import standing_decision
from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.matches import match_result
from srlm_pipeline.evaluation.opponents import Opponent, opponents_of
from srlm_pipeline.evaluation.promotion import Decision
from srlm_pipeline.models.checkpoint import COPY_OF, Checkpoint
from srlm_pipeline.reporting.pages import Figures
from srlm_pipeline.reporting.words import Cell
from srlm_pipeline.store import BASE, SFT_BASELINE, ProjectStore, model_name
from srlm_pipeline.tables import WIN_RATES, read_table


@dataclass(frozen=True)
class Surroundings:
    """What the project's tables do not say.

    Attributes:
        made_at: When the page is made, in words.
        agreement: Of the arbiters with human rankings, as `arbiter_agreement` returns it.
        position_bias: Of the matches, by opponent.
        tasks: Of the new model in lm-evaluation-harness, by task and metric: `score`, `score_low`, `score_high`.
        costs: By the iteration's stages, in the order in which they ran, as far as it is known: `seconds` and `tokens`
            written; expected before the run `planned`, `planned_low`, `planned_high`, `tokens_planned`, `read_planned`.
        links: Addresses by name, e.g. of the MLflow run. Only http, https and relative ones become links.
    """

    made_at: str
    agreement: Mapping[str, float]
    position_bias: Mapping[str, float]
    tasks: Mapping[Cell, Figures]
    costs: Mapping[str, Figures]
    links: Mapping[str, str]


@dataclass(frozen=True)
class Iteration:
    """An iteration whose promotion has been decided, or the seed, of which nothing is decided.

    Attributes:
        settings: All settings.
        store: The project's tables, decisions and models.
        number: From 1; 0 for the seed, which made M1.
        found: By name, what was measured of its model, of all that this met, and of the seed's models.
        others: Table `REPLIES` of other models' answers that it met, by name.
        around: What the tables do not say.
    """

    settings: Settings
    store: ProjectStore
    number: int
    found: Mapping[str, Assessment]
    others: Mapping[str, pd.DataFrame]
    around: Surroundings

    @property
    def model(self) -> str:
        """Name of the model that it made."""
        return model_name(self.number + 1)

    @property
    def previous(self) -> str:
        """Name of the model that entered it."""
        return self.store.entering_model(self.number).name

    @cached_property
    def decision(self) -> Decision:
        """What was decided of its model.

        Raises:
            TableError: If nothing was.
        """
        decision = standing_decision(self.store, self.number)
        if decision is None:
            nothing = f"nothing was decided of iteration {self.number}'s model; materialize promotion first"
            raise TableError("promotion", [nothing])
        return decision

    @cached_property
    def opponents(self) -> dict[str, Opponent]:
        """Whom its model meets, by name; other models' answers are not among them."""
        return {opponent.name: opponent for opponent in opponents_of(self.store, self.number)}

    @property
    def compared(self) -> list[str]:
        """Names of its model and of those before it, its own last."""
        return list(dict.fromkeys([BASE, self.store.baseline, model_name(1), *self.opponents, self.model]))

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        """By model, all of its figures that exist, under their names in MLflow."""
        resamples = self.settings.evaluation.bootstrap_samples
        return {name: assessment_metrics(assessment, resamples) for name, assessment in self.found.items()}

    def label(self, name: str) -> str:
        """Return how a model is called on the pages."""
        return f"{name} (SFT baseline)" if name == BASE == self.store.baseline else name

    def role(self, name: str) -> str:
        """Return what a model or another's answers are to its model, in words."""
        return self.opponents[name].description if name in self.opponents else "other model's answers"

    @cached_property
    def replies(self) -> dict[str, pd.DataFrame]:
        """Table `REPLIES` of the evaluation prompts, by model."""
        return {name: assessment.evaluation_replies() for name, assessment in self.found.items()} | dict(self.others)

    @cached_property
    def win_rates(self) -> dict[str, pd.DataFrame]:
        """Table `WIN_RATES` by opponent, in the order of the matches."""
        asset = "win_rates" if self.number else "seed_evaluation"
        played = self.table(WIN_RATES, asset).groupby("opponent", sort=False)
        # Whoever is no opponent any more has to be met again.
        return {str(name): rows for name, rows in played if name in self.opponents or name in self.others}

    @cached_property
    def matches(self) -> dict[str, HeadToHead]:
        """Results by opponent, in the order of the matches."""
        mine, bias = self.replies[self.model], self.around.position_bias
        return {
            name: match_result(rows, mine, self.replies[name], bias.get(name, float("nan")))
            for name, rows in self.win_rates.items()
        }

    @cached_property
    def lineage(self) -> list[Checkpoint]:
        """Its model and those that it was trained from, the base model first."""
        made = [SFT_BASELINE, *(model_name(number) for number in range(1, self.number + 2))]
        line = ancestry([self.store.checkpoint(name) for name in made])
        return [self.store.base_checkpoint(self.settings), *(m for m in line if COPY_OF not in m.lineage)]

    def origin(self, model: Checkpoint) -> str:
        """Return how a model of the lineage was made, in words."""
        if "dpo" in model.lineage:
            return f"DPO on {model.lineage['pairs']} pairs of iteration {model.lineage['iteration']}"
        if "positives" in model.lineage:
            return f"seed data and {model.lineage['positives']} replies with top marks"
        if model.name == BASE:
            return f"base model {self.settings.base_model}"
        return "instruction data" if model.name == SFT_BASELINE else "instruction and judging data"

    def table(self, schema: pa.DataFrameSchema, asset: str, number: int | None = None) -> pd.DataFrame:
        """Return an asset's table of this iteration, or of another.

        Raises:
            TableError: If it is missing or damaged.
        """
        return read_table(schema, self.store.table_path(asset, number or self.number or None))


def ancestry(models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the last of some models and those that it was trained from, oldest first.

    Args:
        models: In the order of their making. Only an older model can be a parent: a training that changed nothing
            leaves its model the digest of its parent.
    """
    line = [models[-1]]
    for model in reversed(models[:-1]):
        if model.digest == line[0].parent:
            line.insert(0, model)
    return line
