"""One decided iteration, as its stages left it in the project's tables. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import pandera.pandas as pa

from srlm_pipeline.config import Settings
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.champion import standing_decision
from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.matches import match_result
from srlm_pipeline.evaluation.opponents import Opponent, opponents_of
from srlm_pipeline.evaluation.promotion import Decision
from srlm_pipeline.models.checkpoint import COPY_OF, Checkpoint
from srlm_pipeline.planning.plan import StagePlan
from srlm_pipeline.reporting.words import Estimate
from srlm_pipeline.store import BASE, SFT_BASELINE, ProjectStore, model_name
from srlm_pipeline.tables import WIN_RATES, read_table


@dataclass(frozen=True)
class StageCost:
    """What a stage took; None where it was not recorded or not planned.

    Attributes:
        stage: Name of the asset.
        seconds: As the run recorded it.
        tokens: That were drawn.
        plan: What was expected before the run.
    """

    stage: str
    seconds: float | None = None
    tokens: float | None = None
    plan: StagePlan | None = None


@dataclass(frozen=True)
class Surroundings:
    """What the project's tables do not say.

    Attributes:
        made_at: When the page is made, in words.
        agreement: Of the arbiters with human rankings, as `arbiter_agreement` returns it.
        position_bias: Of the matches, by opponent.
        tasks: Scores of the new model in tasks of lm-evaluation-harness, by task and metric.
        costs: Of the iteration's stages, in the order in which they ran.
        links: Addresses by name, e.g. of the MLflow run. Only http, https and relative ones become links.
    """

    made_at: str
    agreement: Mapping[str, float]
    position_bias: Mapping[str, float]
    tasks: Mapping[tuple[str, str], Estimate]
    costs: Sequence[StageCost]
    links: Mapping[str, str]


@dataclass(frozen=True)
class Iteration:
    """An iteration whose promotion has been decided.

    Attributes:
        settings: All settings.
        store: The project's tables, decisions and models.
        number: From 1.
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
    def compared(self) -> list[Assessment]:
        """What was measured of its model and of those before it, its own last."""
        names = dict.fromkeys([BASE, SFT_BASELINE, model_name(1), *self.opponents, self.model])
        return [self.found[name] for name in names]

    @cached_property
    def replies(self) -> dict[str, pd.DataFrame]:
        """Table `REPLIES` of the evaluation prompts, by model."""
        return {name: assessment.evaluation_replies() for name, assessment in self.found.items()} | dict(self.others)

    @cached_property
    def win_rates(self) -> dict[str, pd.DataFrame]:
        """Table `WIN_RATES` by opponent, in the order of the matches."""
        return {str(name): rows for name, rows in self.table(WIN_RATES, "win_rates").groupby("opponent", sort=False)}

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
        return [self.store.base_checkpoint(self.settings), *ancestry([self.store.checkpoint(name) for name in made])]

    def origin(self, model: Checkpoint) -> str:
        """Return how a model of the lineage was made, in words."""
        if "dpo" in model.lineage:
            made = f"DPO on {model.lineage['pairs']} pairs of iteration {model.lineage['iteration']}"
            return made + (f" and {people} of people" if (people := model.lineage.get("rehearsed")) else "")
        if "positives" in model.lineage:
            return f"seed data and {model.lineage['positives']} replies with top marks"
        if model.name == BASE or COPY_OF in model.lineage:
            return f"base model {self.settings.base_model}"
        return "instruction data" if model.name == SFT_BASELINE else "instruction and judging data"

    def table(self, schema: pa.DataFrameSchema, asset: str, number: int | None = None) -> pd.DataFrame:
        """Return an asset's table of this iteration, or of another.

        Raises:
            TableError: If it is missing or damaged.
        """
        return read_table(schema, self.store.table_path(asset, number or self.number))


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
