"""People read blind: what they are shown, how their votes are kept, what the votes add up to, and the command."""

import io
import json
import os
import re
import sys
import termios
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline import cli
from srlm_pipeline.commands import reading as command
from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import OVERRIDES_VARIABLE
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.assessment import Assessment, write_assessment
from srlm_pipeline.evaluation.head_to_head import play_match
from srlm_pipeline.evaluation.monitors import Count
from srlm_pipeline.evaluation.readers import (
    Choice,
    Pair,
    PeopleArbiter,
    Reading,
    Side,
    Vote,
    VoteBook,
    Written,
    consistency,
    draw_pairs,
    tally,
)
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.models.checkpoint import read_checkpoint, write_marker
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import ASSESSED_REPLIES, JUDGE_ACCURACY, LIKELIHOOD, VERIFIABLE

KINDS = ("writing", "code", "planning", "reasoning")
CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "t": "tie"}
# Prompts whose number is divisible by this get the same reply from every model.
ALIKE = 7


def assessment(model: str, n: int = 24, digest: str = "", says: str = "") -> Assessment:
    rows = [
        {
            "model": model,
            "part": part,
            "prompt_id": f"e{i}",
            "kind": KINDS[i % len(KINDS)],
            "prompt": f"{part} question {i}",
            "reply": "42" if i % ALIKE == 0 else f"{says or model} says {i}",
            "n_tokens": 5,
            "finish_reason": "length" if i == 3 else "stop",
            **dict.fromkeys(("loops", "echoes", "recites", "empty", "refuses", "other_language"), False),
            "nearness": None,
            "right": None,
        }
        for part in ("evaluation", "closed")
        for i in range(1, n + 1)
    ]
    nothing = [pd.DataFrame(columns=list(schema.columns)) for schema in (VERIFIABLE, JUDGE_ACCURACY, LIKELIHOOD)]
    return Assessment(model, digest or f"{model}-weights", pd.DataFrame(rows)[list(ASSESSED_REPLIES.columns)], *nothing)


ONE, OTHER = assessment("M1"), assessment("M3")
PAIRS = {pair.prompt_id: pair for pair in draw_pairs(ONE, OTHER, 24)}


def press(reading: Reading, keys: str) -> None:
    for key in keys:
        if key == "u":
            reading.undo()
        elif reading.current is not None:
            if key == "s":
                reading.skip()
            else:
                reading.vote(CHOICES[key])


def gist(book: VoteBook) -> list[tuple[str, str, str, str, bool]]:
    return [(v.reader, v.prompt_id, v.first.model, v.vote, v.returned) for v in book.all()]


def vote_on(prompt: int, choice: Choice, reader: str = "ann", returned: bool = False) -> Vote:
    """One vote on `ONE` against `OTHER`, in this order."""
    pair = PAIRS[f"e{prompt}"]
    shown = pair if pair.first.side.model == "M1" else pair.swap()
    return Vote(
        key=os.urandom(8).hex(),
        reader=reader,
        time="2026-01-01T00:00:00+00:00",
        prompt_id=pair.prompt_id,
        prompt=fingerprint(pair.prompt),
        first=shown.first.side,
        second=shown.second.side,
        vote=choice,
        returned=returned,
    )


def swap(vote: Vote) -> Vote:
    """The same opinion, shown the other way round."""
    said: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie"}
    return vote.model_copy(update={"first": vote.second, "second": vote.first, "vote": said[vote.vote]})


# What is shown


@given(st.integers(1, 30), st.integers(0, 5), st.sampled_from(["ann", "bob"]))
@settings(max_examples=40)
def test_what_is_drawn_covers_the_kinds_and_fewer_prompts_are_the_first_of_more(
    count: int, seed: int, reader: str
) -> None:
    pairs = draw_pairs(ONE, OTHER, count, seed, reader)
    assert pairs == draw_pairs(OTHER, ONE, count, seed, reader)
    drawn = [p for p in pairs if not p.returned]
    assert len({p.prompt_id for p in drawn}) == len(drawn) == min(count, 24)
    kinds = Counter(p.kind for p in drawn)
    assert max(kinds.values()) - min(kinds[kind] for kind in KINDS) <= 1
    more = [p for p in draw_pairs(ONE, OTHER, 24, seed, reader) if not p.returned]
    assert more[: len(drawn)] == drawn
    others = [p.prompt_id for p in draw_pairs(ONE, OTHER, count, seed, "cid") if not p.returned]
    assert others == [p.prompt_id for p in drawn]


@given(st.integers(1, 70), st.integers(0, 20))
@settings(max_examples=40)
def test_every_tenth_pair_or_so_comes_back_later_with_the_sides_swapped(n: int, seed: int) -> None:
    pairs = draw_pairs(assessment("M1", 70), assessment("M3", 70), n, seed)
    shown = [p for p in pairs if not p.identical]
    returned = [p for p in shown if p.returned]
    n_first = len(shown) - len(returned)
    assert len(returned) == (0 if n_first < 10 else min(max(round(n_first / 10), 2), 5))
    for back in returned:
        place = next(i for i, p in enumerate(shown) if p.prompt_id == back.prompt_id)
        assert shown[place].first == back.second
        assert shown[place].second == back.first
        assert shown.index(back) - place >= n_first // 3


def test_sides_are_shuffled_and_differ_between_readers() -> None:
    left = [[p.first.side.model for p in draw_pairs(ONE, OTHER, 24, 0, who) if not p.returned] for who in "xy"]
    assert left[0] != left[1]
    assert all(6 <= side.count("M1") <= 18 for side in left)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(EmptyDataError, match="M1 and M2 have the same weights"):
        draw_pairs(ONE, assessment("M2", digest="M1-weights"), 5)
    with pytest.raises(EmptyDataError, match="no evaluation prompt in common"):
        draw_pairs(ONE, replace(OTHER, replies=OTHER.replies[:0]), 5)


# How votes are kept


@given(st.text("abtsu", max_size=40), st.integers(0, 40))
@settings(max_examples=60)
def test_who_stops_anywhere_and_comes_back_ends_where_who_stays_ends(
    tmp_path_factory: pytest.TempPathFactory, keys: str, stop: int
) -> None:
    # What was skipped is shown again next time, so skipping is left out here.
    keys = keys.replace("s", "")
    folder = tmp_path_factory.mktemp("votes")
    books = [VoteBook(folder / "stayed.jsonl"), VoteBook(folder / "left.jsonl")]
    pairs = draw_pairs(ONE, OTHER, 12)
    stayed = Reading(pairs, books[0], "ann")
    press(stayed, keys)
    press(Reading(pairs, books[1], "ann"), keys[:stop])
    back = Reading(pairs, books[1], "ann")
    press(back, keys[stop:])
    assert back.current == stayed.current
    assert back.number == stayed.number
    assert back.n_voted == stayed.n_voted
    assert gist(books[1]) == gist(books[0])


@given(st.text("abts", max_size=12), st.text("abts", min_size=1, max_size=6))
@settings(max_examples=40)
def test_undo_takes_back_as_much_as_was_pressed(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str
) -> None:
    book = VoteBook(tmp_path_factory.mktemp("votes") / "votes.jsonl")
    reading = Reading(draw_pairs(ONE, OTHER, 24), book, "ann")
    press(reading, before)
    shown = reading.current
    votes = {v.key for v in book.all() if not v.identical}
    skipped = reading.n_skipped
    for key in after:
        press(reading, key)
    for _ in after:
        assert reading.undo()
    assert reading.current == shown
    assert {v.key for v in book.all() if not v.identical} == votes
    assert reading.n_skipped == skipped


def test_there_is_nothing_to_undo_at_first(tmp_path: Path) -> None:
    reading = Reading(draw_pairs(ONE, OTHER, 3), VoteBook(tmp_path / "v.jsonl"), "ann")
    assert not reading.undo()
    assert reading.number == 1


def test_what_was_skipped_is_shown_again_next_time_and_nothing_comes_back_of_it(tmp_path: Path) -> None:
    pairs = draw_pairs(ONE, OTHER, 24)
    book = VoteBook(tmp_path / "v.jsonl")
    reading = Reading(pairs, book, "ann")
    press(reading, "s" * 30)
    assert reading.current is None
    assert reading.n_skipped == sum(not p.identical and not p.returned for p in pairs)
    assert reading.n_voted == 0
    assert {v.identical for v in book.all()} == {True}
    again = Reading(pairs, book, "ann")
    assert again.number == 1
    press(again, "a" * 40)
    assert again.n_voted == again.total


def test_who_stops_early_has_no_more_identical_replies_counted_than_came_up(tmp_path: Path) -> None:
    pairs = draw_pairs(ONE, OTHER, 24)
    book = VoteBook(tmp_path / "v.jsonl")
    press(Reading(pairs, book, "ann"), "aaa")
    shown = [p for p in pairs if not p.identical and not p.returned]
    until = pairs.index(shown[3])
    assert tally(book.all(), ONE, OTHER).identical == sum(p.identical for p in pairs[:until])


def test_a_pair_that_was_read_in_another_draw_is_not_asked_again_and_comes_back_swapped(tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "v.jsonl")
    press(Reading(draw_pairs(ONE, OTHER, 24, seed=0), book, "ann"), "a" * 40)
    read = Reading(draw_pairs(ONE, OTHER, 24, seed=1), book, "ann")
    first = {v.prompt_id: v.first.model for v in book.all() if not v.returned}
    while read.current is not None:
        assert read.current.returned
        assert read.current.second.side.model == first[read.current.prompt_id]
        read.vote("tie")
    assert Reading(draw_pairs(ONE, OTHER, 24), book, "bob").number == 1


@given(st.integers(0, 400))
@settings(max_examples=40)
def test_a_torn_last_line_is_no_vote_and_hinders_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("votes") / "v.jsonl"
    book = VoteBook(path)
    kept, torn, more = vote_on(1, "first"), vote_on(2, "second"), vote_on(3, "tie")
    book.append(kept)
    whole = path.stat().st_size
    book.append(torn)
    length = path.stat().st_size - whole
    with path.open("r+b") as stream:
        stream.truncate(whole + min(cut, length))
    # Without its line feed alone, the line is whole.
    expected = [kept, torn] if cut >= length - 1 else [kept]
    assert book.all() == expected
    book.append(more)
    assert book.all() == [*expected, more]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "v.jsonl")
    book.path.write_text('{"key": 1}\n')
    with pytest.raises(DataError, match=r"v\.jsonl, line 1: is not a vote"):
        book.all()


def test_undo_is_written_down_and_nothing_is_rubbed_out(tmp_path: Path) -> None:
    book = VoteBook(tmp_path / "sub" / "v.jsonl")
    assert book.all() == []
    votes = [vote_on(1, "first"), vote_on(2, "second")]
    for vote in votes:
        book.append(vote)
    book.retract(votes[0])
    assert book.all() == votes[1:]
    assert len(book.path.read_text().splitlines()) == 3


# What votes add up to

OPINIONS = st.lists(
    st.builds(
        vote_on,
        st.integers(1, 12),
        st.sampled_from(["first", "second", "tie"]),
        st.sampled_from(["ann", "bob", "cid"]),
        st.booleans(),
    ),
    max_size=30,
)


@given(OPINIONS, st.lists(st.booleans(), min_size=30, max_size=30))
@settings(max_examples=60)
def test_neither_the_side_nor_which_model_is_named_first_matters(votes: list[Vote], turned: list[bool]) -> None:
    mine = tally(votes, ONE, OTHER)
    theirs = tally([swap(v) if t else v for v, t in zip(votes, turned, strict=False)], OTHER, ONE)
    assert (mine.wins, mine.ties, mine.losses) == (theirs.losses, theirs.ties, theirs.wins)
    assert mine.win_rate == pytest.approx(1 - theirs.win_rate)
    assert (mine.low, mine.high) == pytest.approx((1 - theirs.high, 1 - theirs.low))
    assert (mine.p_value, mine.consistent, mine.readers) == (theirs.p_value, theirs.consistent, theirs.readers)
    assert mine.prompts == len({v.prompt_id for v in votes if not v.returned})
    assert not mine.outdated


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("a", 1),
        ("b", -1),
        ("t", 0),
        ("ab", 0),
        ("at", 0),
        ("aab", 1),
        ("abt", 0),
        ("att", 0),
        ("aabt", 0),
        ("bbbt", -1),
    ],
)
def test_more_than_half_of_the_readers_decide_a_prompt(said: str, verdict: int) -> None:
    votes = [vote_on(1, CHOICES[key], reader=f"reader {i}") for i, key in enumerate(said)]
    result = tally(votes, ONE, OTHER)
    assert result.wins - result.losses == verdict
    assert result.prompts == 1
    assert len(result.readers) == len(said)


def test_of_a_reader_who_voted_twice_the_last_vote_counts() -> None:
    result = tally([vote_on(1, "first"), vote_on(1, "second")], ONE, OTHER)
    assert (result.wins, result.losses, dict(result.readers)) == (0, 1, {"ann": 1})


def test_consistency_is_of_what_came_back_with_the_same_reader() -> None:
    votes = [
        vote_on(1, "first"),
        vote_on(2, "tie"),
        vote_on(3, "second", "bob"),
        swap(vote_on(1, "first", returned=True)),
        swap(vote_on(2, "second", returned=True)),
        swap(vote_on(3, "second", returned=True)),
    ]
    assert consistency(votes) == Count(1, 2)
    assert tally(votes, ONE, OTHER).consistent == Count(1, 2)
    assert tally(votes, ONE, OTHER).prompts == 3


def test_a_reader_with_an_opinion_is_consistent_and_one_who_likes_the_left_is_not(tmp_path: Path) -> None:
    pairs = draw_pairs(ONE, OTHER, 24)
    back = sum(p.returned for p in pairs)
    results = {}
    deciders: dict[str, Callable[[Pair], Choice]] = {
        "judge": lambda pair: "first" if pair.first.side.model == "M3" else "second",
        "lefty": lambda pair: "first",
    }
    for who, decide in deciders.items():
        book = VoteBook(tmp_path / f"{who}.jsonl")
        reading = Reading(pairs, book, who)
        while reading.current is not None:
            reading.vote(decide(reading.current))
        results[who] = tally(book.all(), OTHER, ONE)
    assert results["judge"].consistent == Count(back, back)
    assert results["judge"].losses == 0
    assert results["judge"].ties == results["judge"].identical == 3
    assert results["judge"].low > 0.5
    assert results["judge"].p_value < 0.001
    assert results["lefty"].consistent == Count(0, back)


def test_votes_of_an_earlier_model_or_of_other_replies_are_named_and_do_not_count() -> None:
    votes = [vote_on(i, "first") for i in (1, 2, 3)]
    trained_again = assessment("M3", digest="new", says="M3 anew")
    assert tally(votes, ONE, trained_again).outdated == {"an earlier M3": 3}
    assert tally(votes, assessment("M1", digest="new"), trained_again).outdated == {
        "an earlier M1 and an earlier M3": 3
    }
    reworded = tally(votes, ONE, assessment("M3", says="Somebody"))
    assert reworded.outdated == {"other replies": 3}
    assert (reworded.prompts, reworded.win_rate, reworded.low, reworded.high) == (0, 0.5, 0.0, 1.0)
    elsewhere = tally(votes, ONE, assessment("M4"))
    assert not elsewhere.outdated
    assert elsewhere.prompts == 0


def test_people_are_an_arbiter_by_what_they_read() -> None:
    votes = [vote_on(1, "first"), vote_on(2, "second"), vote_on(3, "tie"), vote_on(4, "second", returned=True)]
    arbiter = PeopleArbiter(votes)
    pairs = [Comparison(f"evaluation question {i}", f"M1 says {i}", f"\nM3 says {i} ") for i in (1, 2, 3, 4)]
    pairs.append(Comparison("whatever", "42", "42"))
    said = arbiter.prefer_first(pairs, NullProgress())
    assert arbiter.name == "people"
    np.testing.assert_array_equal(said, [1, -1, 0, np.nan, 0])
    np.testing.assert_array_equal(arbiter.prefer_first([p.swap() for p in pairs], NullProgress()), -said)
    table, result = play_match(
        [(str(i), p.prompt) for i, p in enumerate(pairs[:3])],
        [p.first for p in pairs[:3]],
        [p.second for p in pairs[:3]],
        "M3",
        arbiter,
        NullProgress(),
    )
    assert (result.wins, result.ties, result.losses, result.position_bias) == (1, 1, 1, 0)
    assert len(table) == 6


def test_a_vote_says_whether_there_was_anything_to_choose_between() -> None:
    side = Side(model="M1", digest="d", reply="r")
    same = vote_on(1, "tie").model_copy(update={"first": side, "second": side.model_copy(update={"model": "M2"})})
    assert same.identical
    assert not vote_on(1, "tie").identical


# The command

Srlm = Callable[..., tuple[int, str]]


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "dagster_home" / "srlm" / "quickstart", tmp_path / "dagster_home" / "srlm")


def keep(store: ProjectStore, name: str, weights: str = "", says: str = "", assessed: bool = True) -> None:
    folder = store.model_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(weights or name)
    write_marker(folder, name, None, {})
    checkpoint = read_checkpoint(folder)
    if assessed:
        write_assessment(assessment(name, digest=checkpoint.digest, says=says), store, checkpoint)


@pytest.fixture
def srlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Srlm:
    """Run `srlm ...` in a fresh folder with lines for its input; return its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    for variable in ("DAGSTER_HOME", "SRLM_CONFIG", OVERRIDES_VARIABLE):
        # Set first, so that what the command sets is taken back afterwards.
        monkeypatch.setenv(variable, "x")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(console, "width", 120)

    def run(*words: str, keys: Sequence[str] = ()) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["srlm", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        code = ended.value.code
        return (code if isinstance(code, int) else 0), capsys.readouterr().out

    return run


def test_a_reader_reads_blind_stops_goes_on_and_is_told_who_is_who(srlm: Srlm, store: ProjectStore) -> None:
    for name in ("M1", "M3"):
        keep(store, name, says="blue" if name == "M1" else "green")
    code, said = srlm("read", "M1", "M3", "--prompts", "12", "--reader", "ann", keys=["a", "2", "x", "s", "u", " "])
    assert code == 0
    pages, end = said.rsplit("voted, kept in", 1)
    assert "M1" not in pages
    assert "M3" not in pages
    assert "There is no key 'x'" in pages
    assert "The last one again" in pages
    assert "goes on from there" in end
    numbers = [int(n) for n in re.findall(r"(\d+) of \d+  a", said)]
    assert numbers == [1, 2, 3, 4, 3, 4]
    path = store.root / "votes" / "votes.jsonl"
    assert [v.vote for v in VoteBook(path).all() if not v.identical] == ["first", "second", "tie"]

    code, said = srlm("read", "M3", "M1", "--prompts", "12", "--reader", "ann", keys=["left"] * 20)
    assert code == 0
    assert re.findall(r"(\d+) of \d+  a", said)[0] == "4"
    assert "Who is who" in said
    assert "M3 : M1" in said
    assert re.search(r"[012] of 2\b", said)
    assert str(path) in said
    assert len(VoteBook(path).all()) == 14

    code, said = srlm("read", "M3", "M1", "--prompts", "12", "--reader", "ann")
    assert "Who is who" in said
    assert len(VoteBook(path).all()) == 14


def test_results_are_told_by_models_and_reader_and_name_what_does_not_count(srlm: Srlm, store: ProjectStore) -> None:
    assert "no votes yet" in srlm("read", "--results")[1]
    for name in ("M1", "M2", "M3"):
        keep(store, name)
    for reader in ("ann", "bob"):
        srlm("read", "M1", "M3", "--prompts", "3", "--reader", reader, keys="aaa")
    srlm("read", "M1", "M2", "--prompts", "2", "--reader", "ann", keys="bb")
    code, said = srlm("read", "--results")
    assert code == 0
    assert [line.split()[3] for line in said.splitlines() if " : " in line] == ["ann", "ann", "bob", "the"]
    assert "not" not in said.split("What people say")[1].replace("nothing", "")
    keep(store, "M3", weights="other", says="new")
    assert "6 votes on M1 and M3 are of an earlier M3 and do not count" in srlm("read", "M1", "M3", "--results")[1]
    keep(store, "M2", weights="other", assessed=False)
    said = srlm("read", "--results")[1]
    assert "not counted: 2 votes on M1 and M2; M2 has not been assessed as it is now" in said


def test_what_cannot_be_read_is_said_in_a_sentence(srlm: Srlm, store: ProjectStore) -> None:
    keep(store, "M1")
    keep(store, "M3", assessed=False)
    assert "model M9: does not exist; there are: base, M1, M3" in srlm("read", "M1", "M9")[1]
    code, said = srlm("read", "M1", "M3")
    assert code == 1
    assert "materialize assessment[iter_002] first" in said
    assert "name the two models" in srlm("read", "M1")[1]
    assert "have the same weights" in srlm("read", "M1", "M1")[1]
    assert "--reader must have a name" in srlm("read", "M1", "M1", "--reader", " ")[1]
    assert "name two models, or none" in srlm("read", "M1", "--results")[1]
    assert not (store.root / "votes").exists()


def test_replies_are_shown_as_they_are_written_and_nothing_of_them_is_left_out() -> None:
    pair = draw_pairs(ONE, OTHER, 1)[0]
    words = "[bold]x[/] **y** " + "z" * 500 + "\n\n```\n\tdef\n```\n" + " ".join(f"word{i}" for i in range(300))
    long = Written(pair.first.side, words + "\x1b[2J\x07", True)
    shown = Pair("e", "k", "Why?", long, Written(pair.second.side, " \n", False))
    for width in (120, 80, 30):
        with console.capture() as capture:
            console.print(command._pair_text(shown, width), width=width)
        text = capture.get()
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert text.count("z") == 500
        assert all(f"word{i}" in text for i in range(300))
        assert "**y**" in text
        assert "an empty reply" in " ".join(text.split())
        assert ("left" in text) == (width >= command.SIDE_BY_SIDE)
        assert "limit of its" in text


def test_single_keys_are_read_from_a_terminal_which_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = os.openpty()
    before = termios.tcgetattr(inner)
    with os.fdopen(outer, "wb", buffering=0) as keyboard, os.fdopen(inner) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with command._single_keys() as stream:
            keyboard.write(b"A1\x1b[D\x1bOC\x1b[6~\x03\r= \xc3\x1b")
            keys = [command._next_key(stream, 1) for _ in range(9)]
            assert keys == ["a", "1", "left", "right", "page down", "q", "enter", "=", " "]
            assert command._next_key(stream, 1) not in command._KEYS
            assert command._next_key(stream, 1) is None
            assert command._next_key(stream, 0) is None
        assert termios.tcgetattr(inner) == before
