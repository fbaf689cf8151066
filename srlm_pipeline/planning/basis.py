"""What a machine can do: seconds and bytes per unit of work, measured by a probe or derived from stated figures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from srlm_pipeline.planning.workload import Judging, Part, StageWork, Training, TrainingKind, Writing

PartKind = Literal["writing", "judging", "sft", "ranking", "dpo"]


class Record(BaseModel):
    """Facts that are kept as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(Record):
    """Seconds per unit.

    Attributes:
        read: Per prompt token before writing.
        judged: Per prompt token in judging.
        step: Per forward pass of one new token a row, however many rows.
        written: Per token drawn, on top of that.
        context: Per token drawn and token that it looks back on, where that is told apart.
        trained: Per token forward and backward, padding included.
        reference: Per token of the reference model's forward pass.
        trainer: Per training stage: loading, encoding, merging.
        engine: Per engine opened.
        save: Per whole model written.
        stage: Per stage: tables, tracking.
        start: Once: libraries are imported.
    """

    read: float
    judged: float
    step: float
    written: float
    context: float = 0.0
    trained: dict[TrainingKind, float]
    reference: float
    trainer: dict[TrainingKind, float]
    engine: float
    save: float
    stage: float = 0.5
    start: float = 0.0

    def scaled(self, factor: float) -> Rates:
        """Return the rates of a machine that takes `factor` times as long."""

        def slower(value: float | dict[TrainingKind, float]) -> float | dict[TrainingKind, float]:
            return {k: v * factor for k, v in value.items()} if isinstance(value, dict) else value * factor

        return Rates.model_validate({name: slower(value) for name, value in self})

    def part_seconds(self, part: Part) -> float:
        """Return how long one part takes."""
        if isinstance(part, Writing):
            drawing = self.written + self.context * part.context
            return part.read * self.read + part.steps * self.step + part.written * drawing
        if isinstance(part, Judging):
            return part.read * self.judged
        return part.tokens * self.trained[part.kind] + part.reference * self.reference + self.trainer[part.kind]

    def stage_seconds(self, work: StageWork) -> float:
        """Return how long a stage takes."""
        parts = sum(map(self.part_seconds, work.parts))
        return parts + work.engines * self.engine + work.saves * self.save + self.stage


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

    def needed(self, part: Part) -> float:
        """Return the bytes at the peak of a part."""
        return max(self.fixed + self.per_token * part.held, self.afterwards)


class Basis(Record):
    """What an estimate rests on.

    Attributes:
        source: ``probe`` or ``stated``.
        machine: In words.
        parameters: Of the model.
        fast: If all goes well.
        likely: The middle.
        slow: If it does not.
        memory: By kind of work.
        available: Bytes of memory, on one device.
        host_memory: Bytes beside the device's that saving a trained model takes; 0 where the device is the host.
        shares_prefix: Whether training computes a group's common beginning once.
        in_flight: Requests that a server works on at a time; None for batches.
        notes: Assumptions, in words.
    """

    source: Literal["probe", "stated"]
    machine: str
    parameters: int
    fast: Rates
    likely: Rates
    slow: Rates
    memory: dict[PartKind, Memory]
    available: float
    host_memory: float
    shares_prefix: bool
    in_flight: int | None
    notes: tuple[str, ...]

    def memory_of(self, part: Part) -> float:
        """Return the bytes at the peak of a part."""
        return self.memory[kind_of(part)].needed(part)


def kind_of(part: Part) -> PartKind:
    """Return under which name a part's memory is known."""
    if isinstance(part, Training):
        return part.kind
    return "writing" if isinstance(part, Writing) else "judging"
