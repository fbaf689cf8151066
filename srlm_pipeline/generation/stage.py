"""Running an engine over many requests with a journal and visible progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, TextWriter
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.progress import ProgressReporter, listening


@dataclass(frozen=True)
class Ask:
    """One completion that a stage needs.

    Attributes:
        key: Unique name within the stage.
        message: What the user says, as it is; the model's chat template is applied where it is really asked.
        seed: Of this item's own random numbers.
        reply_start: What the reply begins with.
    """

    key: str
    message: str
    seed: int
    reply_start: str = ""


def generate_all(
    engine: TextWriter,
    asks: Sequence[Ask],
    sampling: Sampling,
    description: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
    keep_tokens: bool = False,
) -> list[Completion]:
    """Complete every request, those that a journal already holds excepted.

    Args:
        engine: The model.
        asks: Keys must be unique.
        sampling: Shared by all.
        description: Shown with the progress.
        progress: Where progress is shown.
        journal: Finished completions are read from it and added to it; what it holds under other keys is left alone.
        keep_tokens: Whether the tokens that were drawn are wanted, and kept in the journal.

    Returns:
        Completions in the order of the requests.

    Raises:
        ValueError: If two requests have the same key.
    """
    refuse_duplicates([ask.key for ask in asks])
    entries = {ask.key: _entry(engine.digest, ask, sampling) for ask in asks} if journal is not None else {}
    known = journal.find(entries.values()) if journal is not None else {}
    finished = {key: _completion(key, known[entry]) for key, entry in entries.items() if entry in known}
    rest = [
        GenerationRequest(ask.key, engine.render(ask.message, ask.reply_start), ask.seed)
        for ask in asks
        if ask.key not in finished
    ]
    n_tokens = 0
    with progress.task(description, len(asks), "replies", len(asks) - len(rest)) as task:

        def keep(batch: list[Completion]) -> None:
            nonlocal n_tokens
            if journal is not None:
                answered = [c for c in batch if c.finish_reason != "none"]
                journal.append({entries[c.key]: _item(c, keep_tokens) for c in answered})
            finished.update({c.key: c for c in batch})
            n_tokens += sum(c.n_tokens for c in batch)
            task.advance(len(batch), f"{n_tokens:,} tokens")

        with listening(task):
            engine.generate(rest, sampling, keep)
    return [finished[ask.key] for ask in asks]


def _item(completion: Completion, keep_tokens: bool) -> dict[str, Any]:
    """Return what a journal keeps of a completion."""
    left_out = {"key"} if keep_tokens and completion.token_ids is not None else {"key", "token_ids"}
    return {name: value for name, value in asdict(completion).items() if name not in left_out}


def _completion(key: str, item: Mapping[str, Any]) -> Completion:
    drawn = item.get("token_ids")
    return Completion(**{**item, "key": key, "token_ids": None if drawn is None else tuple(drawn)})


def refuse_duplicates(keys: Sequence[str]) -> None:
    """Raise an error if two items of a stage have the same key: one would get the other's result.

    Raises:
        ValueError: Naming a key.
    """
    often = [key for key, n in Counter(keys).items() if n > 1]
    if often:
        raise ValueError(f"two items of a stage have the same key, e.g. {often[0]!r}")


def _entry(digest: str, ask: Ask, sampling: Sampling) -> str:
    """Return the key of a completion in journals: everything that it depends on."""
    drawn = f"{sampling.temperature}/{sampling.top_p}/{ask.seed}" if sampling.temperature else "greedy"
    ends = (*sampling.stop, f"after {sampling.stop_after}")
    return fingerprint(digest, ask.message, ask.reply_start, drawn, sampling.max_new_tokens, ends)
