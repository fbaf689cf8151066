"""The plan: what a run should cost, stage by stage, and how that compares with what it did cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srlm_pipeline.config import PROGRAMS, ArbiterSettings, PanelMember, Settings
from srlm_pipeline.files import replacing_file
from srlm_pipeline.planning.texts import Facts
from srlm_pipeline.planning.workload import (
    LITTLE,
    MIDDLE,
    MUCH,
    PASSES,
    Assumptions,
    Kind,
    Phase,
    StageWork,
    Unit,
    count_work,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Settings that decide how much there is to do. A plan speaks of runs with the same ones.
_PLANNED_SETTINGS = (
    "seed", "base_model", "model", "engine", "data", "sft", "eft", "prompt_generation", "candidates", "judge",
    "judge.panel", "dpo", "evaluation", "monitors",
)  # fmt: skip
TOKENS_READ: tuple[Unit, ...] = ("read", "sft", "ranking", "dpo")


class Record(BaseModel):
    """Facts that are kept as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Kept = TypeVar("Kept", bound=Record)


class Range(Record):
    """An estimate with its ends."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high)

    def times(self, n: int) -> Range:
        """Return the estimate for so many of the same."""
        return Range(low=self.low * n, likely=self.likely * n, high=self.high * n)


class Memory(Record):
    """Bytes that a kind of work needs.

    Attributes:
        fixed: Always there.
        per_token: On top of that, per token held at a time.
    """

    fixed: float
    per_token: float


class RankPlan(Record):
    """What each device would hold while DPO is trained in one of the ways there are.

    Attributes:
        method: Of training.
        optimizer: And how its moments are kept.
        strategy: How the devices work together.
        ranks: How many of them do.
        weights: Bytes, those that are gathered for a moment included.
        states: Bytes of gradients and moments.
        checkpointed: Bytes of everything, activations computed again.
        kept: Bytes of everything, activations kept.
        fits: Whether `checkpointed` does.
    """

    method: str
    optimizer: str
    strategy: str
    ranks: int
    weights: float
    states: float
    checkpointed: float
    kept: float
    fits: bool


class Basis(Record):
    """What an estimate rests on.

    Attributes:
        source: ``probe`` or ``stated``.
        machine: In words.
        devices: How many of them share the work.
        parameters: Of the model.
        seconds: Per unit of work.
        faster: Share of these seconds that may do.
        slower: How many times as long it may take.
        memory: By kind of work.
        available: Bytes of memory, on one device.
        host_memory: Bytes beside the device's that saving a trained model takes; 0 where the device is the host.
        in_flight: Requests that a server works on at a time; None for batches.
        ranks: What each device would hold, by the ways of training.
        notes: Assumptions, in words.
    """

    source: Literal["probe", "stated"]
    machine: str
    devices: int = 1
    parameters: int
    seconds: dict[Unit, float]
    faster: float
    slower: float
    memory: dict[Kind, Memory]
    available: float
    host_memory: float
    in_flight: int | None
    ranks: tuple[RankPlan, ...] = ()
    notes: tuple[str, ...]

    def seconds_of(self, work: StageWork) -> float:
        """Return how long a stage is likely to take; devices compute and send at a time, and the longer counts."""
        taken = {unit: n * self.seconds.get(unit, 0.0) for unit, n in work.units.items()}
        hidden = sum(min(taken.get(trainer, 0.0), taken.get(sending, 0.0)) for trainer, sending in PASSES.items())
        return sum(taken.values()) - hidden

    def memory_of(self, work: StageWork) -> float:
        """Return the bytes at a stage's peak."""
        needed = [(self.memory[part.kind], part.held) for part in work.parts if part.items]
        return max((memory.fixed + memory.per_token * held for memory, held in needed), default=0.0)


class StagePlan(Record):
    """What one stage should cost.

    Attributes:
        stage: Name of the asset.
        phase: ``seed`` or ``iteration``.
        items: How many.
        unit: Of what.
        tokens_read: Computed prompt and training tokens, without padding.
        tokens_written: Drawn tokens.
        seconds: How long it takes.
        memory: Bytes at the peak, on one device.
        disk_kept: Bytes of the models that remain; tables and journals are small beside them.
        disk_meanwhile: Bytes beyond that while it runs.
    """

    stage: str
    phase: Phase
    items: int
    unit: str
    tokens_read: float
    tokens_written: float
    seconds: Range
    memory: float
    disk_kept: float
    disk_meanwhile: float


class Plan(Record):
    """What a seed and some iterations should cost.

    Attributes:
        project: Name.
        model: In words.
        basis: What the estimate rests on.
        iterations: How many are planned.
        stages: The seed's and those of one iteration, in the order in which they run.
        assumptions: Beside those of the basis, in words.
        warnings: What will not work, and what to change.
        price: Of a device's hour, in any currency; None: not asked for.
    """

    project: str
    model: str
    basis: Basis
    iterations: int = Field(ge=0)
    stages: tuple[StagePlan, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    price: float | None = None

    def cost(self, seconds: Range) -> Range:
        """Return what all devices cost for so long, those that have nothing to do meanwhile included."""
        hourly = (self.price or 0.0) * self.basis.devices / 3600
        return Range(low=hourly * seconds.low, likely=hourly * seconds.likely, high=hourly * seconds.high)

    def repeats(self, stage: StagePlan) -> int:
        """Return how often a stage runs."""
        return self.iterations if stage.phase == "iteration" else 1

    def phase_seconds(self, phase: Phase) -> Range:
        """Return how long the seed, or one iteration, takes."""
        return sum((s.seconds for s in self.stages if s.phase == phase), Range(low=0, likely=0, high=0))

    @property
    def seconds(self) -> Range:
        """How long all of it takes."""
        return self.phase_seconds("seed") + self.phase_seconds("iteration").times(self.iterations)

    @property
    def memory(self) -> float:
        """Bytes at the peak, on one device."""
        return max((stage.memory for stage in self.stages if self.repeats(stage)), default=0.0)

    @property
    def disk(self) -> float:
        """Bytes that must be free: what remains, and the most that is needed beyond it meanwhile."""
        meanwhile = max((stage.disk_meanwhile for stage in self.stages if self.repeats(stage)), default=0.0)
        return sum(stage.disk_kept * self.repeats(stage) for stage in self.stages) + meanwhile

    @property
    def longest(self) -> StagePlan:
        """The stage that takes most of the time, its repetitions counted."""
        return max(self.stages, key=lambda stage: stage.seconds.likely * self.repeats(stage))


def make_plan(
    settings: Settings,
    facts: Facts,
    basis: Basis,
    iterations: int,
    model: str,
    remedies: Iterable[tuple[str, Settings, Basis]] = (),
) -> Plan:
    """Combine work and speed.

    Args:
        settings: All settings.
        facts: Of the data.
        basis: Of the machine.
        iterations: How many are planned.
        model: In words.
        remedies: Looked at where the memory does not suffice: changes in words, with what they lead to.
    """
    little, middle, much = (count_work(settings, facts, a, basis.in_flight) for a in (LITTLE, MIDDLE, MUCH))
    stages = tuple(
        StagePlan(
            stage=work.stage,
            phase=work.phase,
            items=work.items,
            unit=work.unit,
            tokens_read=sum(work.units[unit] for unit in TOKENS_READ),
            tokens_written=work.units["drawn"],
            seconds=Range(
                low=basis.faster * basis.seconds_of(less),
                likely=basis.seconds_of(work),
                high=basis.slower * basis.seconds_of(more),
            ),
            memory=basis.memory_of(work),
            disk_kept=work.models * basis.parameters * BYTES[settings.model.save_dtype],
            disk_meanwhile=work.temporary_models * basis.parameters * BYTES["float32"],
        )
        for less, work, more in zip(little, middle, much, strict=True)
    )
    plan = Plan(
        project=settings.project,
        model=model,
        basis=basis,
        iterations=iterations,
        stages=stages,
        assumptions=(*_assumed(settings, facts), *_outside_help(settings, middle)),
    )
    if plan.memory <= basis.available:
        return plan
    heavy = [stage.stage for stage in stages if stage.memory > basis.available]
    warning = (
        f"the memory does not suffice: {', '.join(heavy)} {'needs' if len(heavy) == 1 else 'need'} up to "
        f"{plan.memory / 2**30:.0f} GiB, {basis.available / 2**30:.0f} GiB can be used; {_way_out(facts, remedies)}"
    )
    return plan.model_copy(update={"warnings": (warning,)})


def plan_path(root: Path, settings: Settings) -> Path:
    """Return where the plan for these settings is kept in a project's folder."""
    return root / "plans" / f"plan-{settings.fingerprint(*_PLANNED_SETTINGS)}.json"


def write_record(record: Record, path: Path) -> None:
    """Write facts as JSON, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_record(kind: type[Kept], path: Path) -> Kept | None:
    """Return facts from JSON; None if there are none, or those of another version."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _way_out(facts: Facts, remedies: Iterable[tuple[str, Settings, Basis]]) -> str:
    for words, settings, basis in remedies:
        works = count_work(settings, facts, MIDDLE, basis.in_flight)
        if all(basis.memory_of(work) <= basis.available for work in works):
            return f"it would with {words}"
    return "lower micro_batch_size and max_length in training and batch_size in writing, or take a smaller model"


def _assumed(settings: Settings, facts: Facts) -> list[str]:
    """Return the assumptions on which these settings' work depends, in words, with their two ends."""
    lines = [f"replies of the instruction data have {facts['response'].mean:.0f} tokens"]
    middle = count_work(settings, facts, MIDDLE)
    for name, field in Assumptions.model_fields.items():
        little, likely, much = (getattr(assumed, name) for assumed in (LITTLE, MIDDLE, MUCH))
        if count_work(settings, facts, MIDDLE.model_copy(update={name: much})) != middle:
            lines.append(f"{field.description}: {likely:g} ({little:g} to {much:g})")
    return lines


def _outside_help(settings: Settings, works: Sequence[StageWork]) -> list[str]:
    lines = []
    judges: tuple[ArbiterSettings | PanelMember, ...] = (*settings.evaluation.arbiters, *settings.judge.panel)
    if any(j.model not in ("self", *PROGRAMS) and not j.server.base_url for j in judges):
        lines.append("other models that judge here are as large as the project's own")
    seed, iteration = (sum(w.requests for w in works if w.phase == phase) for phase in ("seed", "iteration"))
    if seed or iteration:
        lines.append(
            f"servers that judge are sent {seed:,} requests for the seed and {iteration:,} an iteration, repeated ones "
            "and early stopping's not counted; neither their time nor their price is in the plan"
        )
    return lines
