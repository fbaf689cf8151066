"""What people say of two models' replies, read blind: what is shown to them, how votes are kept, what they add up to.

A vote belongs to contents: to the weights of both models and the words of both replies. When one of them changes, the
vote is kept and does not count any more.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.monitors import Count
from srlm_pipeline.evaluation.statistics import sign_test, win_rate_interval
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.progress import ProgressReporter

Choice = Literal["first", "second", "tie"]
_VALUES: dict[Choice, int] = {"first": 1, "second": -1, "tie": 0}
# Of so many pairs one comes back; of fewer than ten none, else at least two and at most five.
_ONE_RETURNS_OF, _FEWEST_RETURNED, _MOST_RETURNED = 10, 2, 5


class Side(BaseModel):
    """One of the two replies of a vote.

    Attributes:
        model: Whose reply it is.
        digest: Of that model's weights.
        reply: Fingerprint of its words; blanks around them do not matter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    digest: str
    reply: str


class Vote(BaseModel):
    """What one reader said of one pair.

    Attributes:
        key: Names the vote, so that it can be retracted.
        reader: Who.
        time: When, in UTC.
        prompt_id: The evaluation prompt.
        prompt: Fingerprint of its words.
        first: What stood left or above.
        second: What stood right or below.
        vote: Which is better.
        returned: Whether the reader had voted on the pair before and got it again with the sides swapped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reader: str
    time: str
    prompt_id: str
    prompt: str
    first: Side
    second: Side
    vote: Choice
    returned: bool = False

    @property
    def identical(self) -> bool:
        """Whether both replies were the same, so that nobody was shown them."""
        return self.first.reply == self.second.reply


class _Retraction(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    retracts: str
    reader: str
    time: str


_ENTRY: TypeAdapter[Vote | _Retraction] = TypeAdapter(Vote | _Retraction)


class VoteBook:
    """All votes of a project, one line each; what is written is never changed.

    A line that a crash cut short is no vote: it is passed over, and gone with the next vote.

    Args:
        path: The file; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, vote: Vote) -> None:
        """Write a vote down; it is on disk when this returns."""
        self._write(vote)

    def retract(self, vote: Vote) -> None:
        """Take a vote back, by a line of its own."""
        self._write(_Retraction(retracts=vote.key, reader=vote.reader, time=_now()))

    def all(self) -> list[Vote]:
        """Return the votes that were not retracted, oldest first.

        Raises:
            DataError: If a line is no vote and not the last, cut short.
        """
        votes: dict[str, Vote] = {}
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            try:
                entry = _ENTRY.validate_json(line)
            except ValidationError as error:
                if line.endswith(b"\n"):
                    raise DataError(
                        self.path, number, "is not a vote; mend or delete the line, the others stay as they are"
                    ) from error
                continue
            if isinstance(entry, Vote):
                votes[entry.key] = entry
            else:
                votes.pop(entry.retracts, None)
        return list(votes.values())

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def _write(self, entry: BaseModel) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._mend_end()
        with self.path.open("ab") as stream:
            stream.write(entry.model_dump_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _mend_end(self) -> None:
        """Let the next line start as one: end the last, or drop it if it was cut short."""
        last = (self._lines() or [b"\n"])[-1]
        if last.endswith(b"\n"):
            return
        with self.path.open("r+b") as stream:
            stream.seek(0, os.SEEK_END)
            try:
                json.loads(last)
                stream.write(b"\n")
            except ValueError:
                stream.truncate(stream.tell() - len(last))


@dataclass(frozen=True)
class Written:
    """A reply as it is shown, and whose it is, which is not.

    Attributes:
        side: What a vote keeps of it.
        text: The reply.
        cut_off: Whether the limit of tokens ended it.
    """

    side: Side
    text: str
    cut_off: bool


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, in the order in which they are shown.

    Attributes:
        prompt_id: The evaluation prompt.
        kind: Of the prompt.
        prompt: Its text.
        first: Shown left or above.
        second: Shown right or below.
        returned: Whether it comes back, with the sides swapped.
    """

    prompt_id: str
    kind: str
    prompt: str
    first: Written
    second: Written
    returned: bool = False

    @property
    def identical(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.first.side.reply == self.second.side.reply

    def swap(self) -> Pair:
        """Return the same replies in the other order."""
        return replace(self, first=self.second, second=self.first)


def draw_pairs(a: Assessment, b: Assessment, count: int, seed: int = 0, reader: str = "") -> list[Pair]:
    """Return the pairs that a reader is to be shown, in this order.

    Kinds of prompts take turns, so that few prompts cover many kinds, also when a reader stops early; fewer prompts
    with the same seed are the first of more. Which prompts are drawn does not depend on the reader, which side a model
    stands on does. Some pairs come back after at least a third of the others. Pairs of identical replies are among the
    pairs, and not to be shown.

    Args:
        a: One model.
        b: The other; which is which makes no difference.
        count: Prompts; all that both answered if they are fewer.
        seed: Of prompts, order and sides.
        reader: Who will read.

    Raises:
        EmptyDataError: If the models have no evaluation prompt in common, or are one and the same.
    """
    if a.digest == b.digest:
        raise EmptyDataError(f"{a.model} and {b.model} have the same weights: there is nothing to choose between")
    one, other = sorted((a, b), key=lambda assessment: assessment.digest)
    answered = _answers(other)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for (prompt_id, prompt), (kind, written) in sorted(_answers(one).items()):
        if (prompt_id, prompt) in answered:
            pair = Pair(prompt_id, kind, prompt, written, answered[prompt_id, prompt][1])
            swapped = int(fingerprint("side", seed, reader, prompt_id), 16) % 2
            pairs[kind].append(pair.swap() if swapped else pair)
    if not pairs:
        raise EmptyDataError(
            f"{a.model} and {b.model} were asked no evaluation prompt in common; assess both again with the same ones"
        )
    drawn = _in_turns(pairs, np.random.default_rng(seed))[:count]
    return _with_returned(drawn, np.random.default_rng(int(fingerprint("returned", seed, reader), 16)))


class Reading:
    """One reader's way through the pairs; whatever was voted before, with whichever draw, is not asked again.

    Args:
        pairs: As `draw_pairs` returned them.
        book: Where votes are kept; a vote is on disk before the next pair is shown.
        reader: Who reads.
    """

    def __init__(self, pairs: Sequence[Pair], book: VoteBook, reader: str) -> None:
        self._pairs, self._book, self._reader = list(pairs), book, reader
        self._numbers: dict[int, int] = {}
        for place, pair in enumerate(self._pairs):
            if not pair.identical:
                self._numbers[place] = len(self._numbers) + 1
        self._votes: dict[_Key, list[Vote]] = defaultdict(list)
        self._skipped: set[int] = set()
        places = {_pair_key(self._pairs[place]): place for place in self._numbers}
        self._past: list[int] = []
        for vote in book.all():
            if vote.reader != reader:
                continue
            key = _vote_key(vote)
            self._votes[key].append(vote)
            if key in places:
                self._past = [place for place in self._past if place != places[key]] + [places[key]]
        self._place = self._next()

    @property
    def current(self) -> Pair | None:
        """The pair to be shown; None when all have been."""
        return None if self._place is None else self._as_shown(self._pairs[self._place])

    @property
    def number(self) -> int:
        """Of the current pair, from 1; at the end that of the last."""
        return self.total if self._place is None else self._numbers[self._place]

    @property
    def total(self) -> int:
        """Pairs to be shown in all, those that come back among them."""
        return len(self._numbers)

    @property
    def n_voted(self) -> int:
        """Pairs of these that were voted on, now or before."""
        return sum(self._voted(self._pairs[place]) for place in self._numbers)

    @property
    def n_skipped(self) -> int:
        """Pairs that were passed over this time."""
        return len(self._skipped)

    def vote(self, choice: Choice) -> None:
        """Say which reply of the current pair is better, and go on to the next."""
        pair, place = self._now_shown()
        self._record(pair, choice)
        self._past.append(place)
        self._place = self._next()

    def skip(self) -> None:
        """Pass over the current pair; the next time it is shown again."""
        _, place = self._now_shown()
        self._skipped.add(place)
        self._past.append(place)
        self._place = self._next()

    def undo(self) -> bool:
        """Go back to the pair before and take back what was said of it, also if that was another time.

        Returns:
            Whether there was one.
        """
        if not self._past:
            return False
        place = self._past.pop()
        self._skipped.discard(place)
        for vote in self._votes.pop(_pair_key(self._pairs[place]), []):
            self._book.retract(vote)
        self._place = place
        return True

    def said(self) -> list[tuple[Pair, Vote]]:
        """Return this reader's votes on these pairs, in their order; of those that come back the first."""
        given = [(pair, self._votes.get(_pair_key(pair))) for pair in self._pairs if not pair.returned]
        return [(pair, votes[-1]) for pair, votes in given if votes]

    def _now_shown(self) -> tuple[Pair, int]:
        pair, place = self.current, self._place
        if pair is None or place is None:
            raise ValueError("there is no pair left to vote on")
        return pair, place

    def _next(self) -> int | None:
        for place, pair in enumerate(self._pairs):
            if self._voted(pair) or place in self._skipped:
                continue
            if pair.identical:
                # When its turn comes, so that who stops early has not more ties than who goes on.
                self._record(pair, "tie")
            # Of a pair that was passed over at first, nothing can be said again.
            elif not pair.returned or self._voted(replace(pair, returned=False)):
                return place
        return None

    def _voted(self, pair: Pair) -> bool:
        return bool(self._votes.get(_pair_key(pair)))

    def _as_shown(self, pair: Pair) -> Pair:
        if not pair.returned:
            return pair
        # The sides it had then; it may have been another draw.
        before = self._votes[_pair_key(replace(pair, returned=False))][-1]
        return pair.swap() if before.first.digest == pair.first.side.digest else pair

    def _record(self, pair: Pair, choice: Choice) -> None:
        vote = Vote(
            key=uuid.uuid4().hex[:16],
            reader=self._reader,
            time=_now(),
            prompt_id=pair.prompt_id,
            prompt=fingerprint(pair.prompt),
            first=pair.first.side,
            second=pair.second.side,
            vote=choice,
            returned=pair.returned,
        )
        self._book.append(vote)
        self._votes[_vote_key(vote)].append(vote)


@dataclass(frozen=True)
class ReaderResult:
    """What people say of two models.

    Attributes:
        wins: Prompts on which most readers prefer the first model's reply.
        ties: Prompts without such a majority, identical replies among them.
        losses: Prompts on which most prefer the second model's.
        identical: Those of the ties whose replies were the same.
        win_rate: (wins + ties / 2) / prompts; one half of nothing.
        low: Lower end of its 95 % interval; see `win_rate_interval`.
        high: Upper end.
        p_value: Two-sided sign test of wins against losses.
        consistent: Pairs judged the same when they came back with the sides swapped.
        readers: By reader, the prompts that they voted on.
        outdated: Votes on models of these names that do not count, by what they are of: ``an earlier M2``, or
            ``other replies``.
    """

    wins: int
    ties: int
    losses: int
    identical: int
    win_rate: float
    low: float
    high: float
    p_value: float
    consistent: Count
    readers: Mapping[str, int]
    outdated: Mapping[str, int]

    @property
    def prompts(self) -> int:
        """Prompts that were read."""
        return self.wins + self.ties + self.losses


def tally(votes: Iterable[Vote], a: Assessment, b: Assessment) -> ReaderResult:
    """Count the votes on two models as they are now.

    A prompt goes to the model that more than half of its readers prefer; of a reader who voted on it several times the
    last vote counts, and what was said of a pair that came back counts for consistency only.

    Args:
        votes: Of anybody, on any models.
        a: The model whose wins are counted.
        b: The other.
    """
    answers = [_answers(a), _answers(b)]
    replies = {
        (fingerprint(prompt), *(answer[prompt_id, prompt][1].side.reply for answer in answers))
        for prompt_id, prompt in answers[0].keys() & answers[1].keys()
    }
    digests = {a.model: a.digest, b.model: b.digest}
    counting: list[Vote] = []
    outdated: Counter[str] = Counter()
    for vote in votes:
        sides = {side.digest: side for side in (vote.first, vote.second)}
        if sides.keys() == {a.digest, b.digest} and (
            (vote.prompt, sides[a.digest].reply, sides[b.digest].reply) in replies
        ):
            counting.append(vote)
        elif {vote.first.model, vote.second.model} == digests.keys():
            earlier = sorted(s.model for s in sides.values() if digests[s.model] != s.digest)
            outdated[" and ".join(f"an earlier {name}" for name in earlier) or "other replies"] += 1
    verdicts = _verdicts(counting)
    voted = [(mine, theirs, verdicts.get(_content(prompt, mine, theirs))) for prompt, mine, theirs in replies]
    points = [value if mine <= theirs else -value for mine, theirs, value in voted if value is not None]
    wins, losses = points.count(1), points.count(-1)
    ties = len(points) - wins - losses
    low, high = win_rate_interval(wins, ties, losses)
    read = {(vote.reader, vote.prompt) for vote in counting}
    return ReaderResult(
        wins=wins,
        ties=ties,
        losses=losses,
        identical=sum(mine == theirs for mine, theirs, value in voted if value is not None),
        win_rate=(wins + ties / 2) / len(points) if points else 0.5,
        low=low,
        high=high,
        p_value=sign_test(wins, losses),
        consistent=consistency(counting),
        readers=dict(sorted(Counter(reader for reader, _ in read).items())),
        outdated=dict(sorted(outdated.items())),
    )


def consistency(votes: Iterable[Vote]) -> Count:
    """Return how many pairs were judged the same when they came back, of all that did."""
    judged = list(votes)
    first, again = (_by_reader(v for v in judged if v.returned is returned) for returned in (False, True))
    both = [key for key in again if key in first]
    return Count(sum(first[key] == again[key] for key in both), len(both))


class PeopleArbiter:
    """Says what the majority of readers said of the very same replies, whichever models they are of.

    Args:
        votes: All that count.
    """

    def __init__(self, votes: Iterable[Vote]) -> None:
        self._verdicts = _verdicts(votes)

    @property
    def name(self) -> str:
        """People, whoever they are."""
        return "people"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """Return 1, 0 or -1, NaN for pairs that nobody read; see `Arbiter.prefer_first`. Equal replies are equal."""
        return np.array([self._said(comparison) for comparison in comparisons], dtype=float)

    def _said(self, comparison: Comparison) -> float:
        first, second = _reply_print(comparison.first), _reply_print(comparison.second)
        if first == second:
            return 0.0
        said = self._verdicts.get(_content(fingerprint(comparison.prompt), first, second), np.nan)
        return said if first < second else -said


class _Content(NamedTuple):
    """Fingerprints of a prompt and of two replies to it, these in their own order."""

    prompt: str
    low: str
    high: str


class _Key(NamedTuple):
    """What is voted on, whichever side a model stands on."""

    prompt: str
    sides: tuple[tuple[str, str], ...]
    returned: bool


def _vote_key(vote: Vote) -> _Key:
    sides = sorted((side.digest, side.reply) for side in (vote.first, vote.second))
    return _Key(vote.prompt, tuple(sides), vote.returned)


def _pair_key(pair: Pair) -> _Key:
    sides = sorted((written.side.digest, written.side.reply) for written in (pair.first, pair.second))
    return _Key(fingerprint(pair.prompt), tuple(sides), pair.returned)


def _content(prompt: str, reply: str, other: str) -> _Content:
    return _Content(prompt, min(reply, other), max(reply, other))


def _value(vote: Vote) -> int:
    """Return 1 if the reply with the lower fingerprint is better, -1 if the other is, 0 if neither."""
    value = 0 if vote.identical else _VALUES[vote.vote]
    return value if vote.first.reply < vote.second.reply else -value


def _by_reader(votes: Iterable[Vote]) -> dict[tuple[str, _Content], int]:
    """Return each reader's last word on each pair of replies, as `_value` does."""
    return {(vote.reader, _content(vote.prompt, vote.first.reply, vote.second.reply)): _value(vote) for vote in votes}


def _verdicts(votes: Iterable[Vote]) -> dict[_Content, int]:
    """Return what more than half of the readers say of each pair of replies, as `_value` does; 0 if there is none."""
    said: dict[_Content, list[int]] = defaultdict(list)
    for (_, content), value in _by_reader(vote for vote in votes if not vote.returned).items():
        said[content].append(value)
    return {
        content: next((side for side in (1, -1) if 2 * values.count(side) > len(values)), 0)
        for content, values in said.items()
    }


def _answers(assessment: Assessment) -> dict[tuple[str, str], tuple[str, Written]]:
    """Return kind of prompt and reply, by the evaluation prompts' ids and texts."""
    return {
        (row.prompt_id, row.prompt): (
            row.kind,
            Written(
                Side(model=assessment.model, digest=assessment.digest, reply=_reply_print(row.reply)),
                row.reply,
                row.finish_reason == "length",
            ),
        )
        for row in assessment.part("evaluation").itertuples(index=False)
    }


def _reply_print(reply: str) -> str:
    return fingerprint(reply.strip())


def _in_turns(pairs: Mapping[str, Sequence[Pair]], rng: np.random.Generator) -> list[Pair]:
    """Return all pairs shuffled, one of each kind in every round."""
    left = {kind: [of_kind[place] for place in rng.permutation(len(of_kind))] for kind, of_kind in pairs.items()}
    order: list[Pair] = []
    while left:
        kinds = list(left)
        order += [left[kinds[place]].pop() for place in rng.permutation(len(kinds))]
        left = {kind: of_kind for kind, of_kind in left.items() if of_kind}
    return order


def _with_returned(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """Return the pairs with some of the earlier ones once more, sides swapped, at least a third of all later."""
    shown = [place for place, pair in enumerate(pairs) if not pair.identical]
    n = len(shown)
    if n < _ONE_RETURNS_OF:
        return list(pairs)
    n_returned = min(max(round(n / _ONE_RETURNS_OF), _FEWEST_RETURNED), _MOST_RETURNED)
    after: dict[int, list[Pair]] = defaultdict(list)
    for number in rng.choice(n // 2, n_returned, replace=False):
        back = replace(pairs[shown[number]].swap(), returned=True)
        after[shown[rng.integers(number + n // 3, n)]].append(back)
    return [entry for place, pair in enumerate(pairs) for entry in (pair, *after[place])]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
