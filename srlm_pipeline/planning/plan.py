"""The plan: what a run should cost, stage by stage, and how that compares with what it did cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srlm_pipeline.config import ArbiterSettings, PanelMember, Settings
from srlm_pipeline.files import replacing_file
from srlm_pipeline.planning.workload import Assumptions, DataFacts, Kind, Part, Phase, StageWork, Unit, count_work

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Settings that decide how much there is to do. A plan speaks of runs with the same ones.
_PLANNED_SETTINGS = (
    "seed", "base_model", "model", "engine", "data", "sft", "eft", "prompt_generation", "candidates", "judge",
    "judge.panel", "dpo", "evaluation", "monitors",
)  # fmt: skip
LITTLE = Assumptions(reply_share=0.6, judgement_tokens=80, acceptance=0.75, pairs_kept=0.8, self_judged_kept=0.1)
MIDDLE = Assumptions()
MUCH = Assumptions(reply_share=1.2, judgement_tokens=250, acceptance=0.35, pairs_kept=1.0, self_judged_kept=0.6)


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
        afterwards: When the work itself is done: a trained model is merged and saved.
    """

    fixed: float
    per_token: float
    afterwards: float = 0.0


class Basis(Record):
    """What an estimate rests on.

    Attributes:
        source: ``probe`` or ``stated``.
        machine: In words.
        parameters: Of the model.
        seconds: Per unit of work: as it may go, at best, likely and at worst.
        start: Seconds before the first stage.
        memory: By kind of work.
        available: Bytes of memory, on one device.
        host_memory: Bytes beside the device's that saving a trained model takes; 0 where the device is the host.
        in_flight: Requests that a server works on at a time; None for batches.
        notes: Assumptions, in words.
    """

    source: Literal["probe", "stated"]
    machine: str
    parameters: int
    seconds: dict[Unit, Range]
    start: float
    memory: dict[Kind, Memory]
    available: float
    host_memory: float
    in_flight: int | None
    notes: tuple[str, ...]

    def seconds_of(self, little: StageWork, middle: StageWork, much: StageWork) -> Range:
        """Return how long a stage takes, from three opinions of how much work it is."""
        rates = self.seconds
        return Range(
            low=sum(n * rates[unit].low for unit, n in little.units.items()),
            likely=sum(n * rates[unit].likely for unit, n in middle.units.items()),
            high=sum(n * rates[unit].high for unit, n in much.units.items()),
        )

    def memory_of(self, parts: Iterable[Part]) -> float:
        """Return the bytes at the peak of some work."""
        needed = [(self.memory[part.kind], part.held) for part in parts]
        return max((max(m.fixed + m.per_token * held, m.afterwards) for m, held in needed), default=0.0)


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
        source: ``probe`` or ``stated``.
        machine: In words.
        iterations: How many are planned.
        stages: The seed's and those of one iteration, in the order in which they run.
        start: Seconds before the first stage.
        available: Bytes of memory, on one device.
        host_memory: Bytes beside a device's that saving a trained model takes; 0 where the device is the host.
        assumptions: In words.
        warnings: What will not work, and what to change.
    """

    project: str
    model: str
    source: str
    machine: str
    iterations: int = Field(ge=0)
    stages: tuple[StagePlan, ...]
    start: float
    available: float
    host_memory: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def repeats(self, stage: StagePlan) -> int:
        """Return how often a stage runs."""
        return self.iterations if stage.phase == "iteration" else 1

    def phase_seconds(self, phase: Phase) -> Range:
        """Return how long the seed, or one iteration, takes."""
        return sum((s.seconds for s in self.stages if s.phase == phase), Range(low=0, likely=0, high=0))

    @property
    def seconds(self) -> Range:
        """How long all of it takes."""
        start = Range(low=self.start, likely=self.start, high=self.start)
        return start + self.phase_seconds("seed") + self.phase_seconds("iteration").times(self.iterations)

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
    facts: DataFacts,
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
    works = [count_work(settings, facts, assumed, basis.in_flight) for assumed in (LITTLE, MIDDLE, MUCH)]
    stages = tuple(
        StagePlan(
            stage=middle.stage,
            phase=middle.phase,
            items=middle.items,
            unit=middle.unit,
            tokens_read=middle.tokens_read,
            tokens_written=middle.tokens_written,
            seconds=basis.seconds_of(little, middle, much),
            memory=basis.memory_of(middle.parts),
            disk_kept=middle.models * basis.parameters * BYTES[settings.model.save_dtype],
            disk_meanwhile=middle.temporary_models * basis.parameters * 4,
        )
        for little, middle, much in zip(*works, strict=True)
    )
    plan = Plan(
        project=settings.project,
        model=model,
        source=basis.source,
        machine=basis.machine,
        iterations=iterations,
        stages=stages,
        start=basis.start,
        available=basis.available,
        host_memory=basis.host_memory,
        assumptions=(*basis.notes, *_assumed(settings, facts), *_outside_help(settings, works[1])),
    )
    if plan.memory <= plan.available:
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


def _way_out(facts: DataFacts, remedies: Iterable[tuple[str, Settings, Basis]]) -> str:
    for words, settings, basis in remedies:
        works = count_work(settings, facts, MIDDLE, basis.in_flight)
        if basis.memory_of(part for work in works for part in work.parts) <= basis.available:
            return f"it would with {words}"
    return "lower micro_batch_size and max_length in training and batch_size in writing, or take a smaller model"


def _outside_help(settings: Settings, works: Sequence[StageWork]) -> list[str]:
    judges: tuple[ArbiterSettings | PanelMember, ...] = (*settings.evaluation.arbiters, *settings.judge.panel)
    lines = []
    if any(j.model not in ("self", "verifiers") and not j.server.base_url for j in judges):
        lines.append("other models that judge here are as large as the project's own")
    seed, iteration = (sum(w.requests for w in works if w.phase == phase) for phase in ("seed", "iteration"))
    if seed or iteration:
        lines.append(
            f"servers that judge are sent {seed:,} requests for the seed and {iteration:,} an iteration, repeated ones "
            "and early stopping's not counted; neither their time nor their price is in the plan"
        )
    return lines


def _assumed(settings: Settings, facts: DataFacts) -> list[str]:
    lines = [
        f"replies have {MIDDLE.reply_share:g} times the length of the instruction data's, which is "
        f"{facts.responses.mean:.0f} tokens, before the limit cuts them ({LITTLE.reply_share:g} to "
        f"{MUCH.reply_share:g} times)",
        f"{MIDDLE.acceptance:.0%} of the invented prompts are accepted ({LITTLE.acceptance:.0%} to "
        f"{MUCH.acceptance:.0%}), {MIDDLE.pairs_kept:.0%} of the prompts give a pair ({LITTLE.pairs_kept:.0%} to "
        f"{MUCH.pairs_kept:.0%})",
    ]
    own = settings.eft.enabled and settings.eft.targets == "self"
    if own or settings.judge.mode != "distribution":
        lines.append(
            f"a written judgement has {MIDDLE.judgement_tokens} tokens before the limit cuts it "
            f"({LITTLE.judgement_tokens} to {MUCH.judgement_tokens})"
        )
    if own:
        lines.append(
            f"the SFT baseline's own judgements agree with people on {MIDDLE.self_judged_kept:.0%} of the judging "
            f"prompts ({LITTLE.self_judged_kept:.0%} to {MUCH.self_judged_kept:.0%})"
        )
    return lines
