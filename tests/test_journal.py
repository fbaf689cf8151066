import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.progress import LogProgress, NullProgress

TEXT = st.text(max_size=12) | st.sampled_from(['"', "\\", "\n", "\r\n", "\u2028", "}\n{", "é", "日本", "\x00", "\x85"])
ITEMS = st.dictionaries(TEXT, st.fixed_dictionaries({"text": TEXT, "n": st.integers()}), min_size=1, max_size=5)


class CountingEngine:
    """Repeats the prompt, two requests a batch, and stops working after so many batches."""

    digest = "abc"

    def __init__(self, dies_after: int | None = None) -> None:
        self._dies_after = dies_after
        self.asked: list[str] = []

    def render(self, text: str, reply_start: str = "") -> str:
        return text

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        results: list[Completion] = []
        # Another order than that of the requests, as an engine that sorts by length has.
        pending = sorted(requests, key=lambda r: r.key, reverse=True)
        for start in range(0, len(pending), 2):
            if self._dies_after is not None and start // 2 >= self._dies_after:
                raise KeyboardInterrupt
            batch = [Completion(r.key, f"{r.prompt}! ({r.seed})\n", 3, "stop") for r in pending[start : start + 2]]
            self.asked += [r.key for r in pending[start : start + 2]]
            results += batch
            if on_finished:
                on_finished(batch)
        return results


@pytest.fixture
def requests() -> list[Ask]:
    return [Ask(f"item-{n}", f"prompt {n}", n) for n in range(9)]


def run(engine: CountingEngine, requests: list[Ask], journal: Journal | None) -> list[Completion]:
    return generate_all(engine, requests, Sampling(), "writing", NullProgress(), journal)  # type: ignore[arg-type]


def test_new_journal_is_empty(tmp_path: Path) -> None:
    assert dict(Journal(tmp_path / "stage" / "iter_001").items) == {}


def whole_lines(content: bytes, cut: int) -> int:
    """Return how many lines are whole in so many bytes; of the last one the line's end may be missing."""
    return sum(1 for place, byte in enumerate(content) if byte == ord("\n") and place <= cut)


@given(st.lists(ITEMS, max_size=4))
@settings(max_examples=50)
def test_appended_items_are_read_back(batches: list[dict[str, dict[str, object]]]) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        expected: dict[str, dict[str, object]] = {}
        for batch in batches:
            journal.append(batch)
            expected |= batch
        assert dict(journal.items) == expected
        assert dict(Journal(Path(folder)).items) == expected


def test_items_are_on_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"a": {"text": "1"}})
    assert [json.loads(line) for line in journal.path.read_text("utf-8").splitlines()] == [{"key": "a", "text": "1"}]


@given(ITEMS, st.floats(0, 1))
@example({"a": {"text": "\n", "n": 1}, "b": {"text": "é", "n": 2}}, 0.99)
@settings(max_examples=80)
def test_killed_at_any_byte_the_whole_lines_survive_and_the_torn_one_is_dropped(
    items: dict[str, dict[str, object]], share: float
) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.append(items)
        content = journal.path.read_bytes()
        cut = round(len(content) * share)
        journal.path.write_bytes(content[:cut])
        whole = whole_lines(content, cut)

        recovered = Journal(Path(folder))
        assert list(recovered.items.items()) == list(items.items())[:whole]

        recovered.append({"later": {"text": "after the crash", "n": 0}})
        reread = Journal(Path(folder))
        assert dict(reread.items) == dict(list(items.items())[:whole]) | {"later": {"text": "after the crash", "n": 0}}


def test_every_single_cut_of_a_small_journal_is_recovered(tmp_path: Path) -> None:
    items = {"a": {"text": "x\ny"}, "bé": {"text": "日本"}, "c": {"text": "}"}}
    journal = Journal(tmp_path)
    journal.append(items)
    content = journal.path.read_bytes()
    for cut in range(len(content) + 1):
        journal.path.write_bytes(content[:cut])
        whole = whole_lines(content, cut)
        assert list(Journal(tmp_path).items.items()) == list(items.items())[:whole]


@given(ITEMS, ITEMS, st.binary(max_size=40))
@settings(max_examples=80)
def test_a_line_damaged_in_the_middle_costs_itself_alone_and_is_counted(
    before: dict[str, dict[str, object]], after: dict[str, dict[str, object]], damage: bytes
) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.append(before)
        journal.append({"damaged": {"text": "paid for"}})
        journal.append(after)
        lines = journal.path.read_bytes().splitlines(keepends=True)
        lines[len(before)] = b"\x00" + damage.replace(b"\n", b"") + b"\n"
        journal.path.write_bytes(b"".join(lines))
        again = Journal(Path(folder))
        assert dict(again.items) == before | after
        assert again.broken == 1
        again.append({"later": {"n": 1}})
        assert journal.path.read_bytes().count(b"\n") == len(lines) + 1, "nothing is discarded on disk"


def test_how_many_lines_were_broken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.append({"a": {"text": "1"}})
    with journal.path.open("ab") as stream:
        stream.write(b"broken\n" + b"[" * 100_000 + b'\n\n{"key": "b"}\n' + b'{"key": "being writ')
    assert set(Journal(tmp_path).items) == {"a", "b"}
    assert "broken lines passed over: 2" in caplog.text


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 50, b"\xff\xfe\n", b"3\n", b"null\n", b'"text"\n', b"[]\n", b"{}\n", b"\n"]
)
def test_garbage_is_passed_over_and_costs_nothing_before_or_after_it(tmp_path: Path, garbage: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append({"a": {"text": "1"}})
    before = journal.path.read_bytes()
    journal.path.write_bytes(before + garbage)
    again = Journal(tmp_path)
    assert dict(again.items) == {"a": {"text": "1"}}
    assert journal.path.read_bytes() == before + garbage, "reading changes nothing"
    again.append({"b": {"text": "2"}})
    assert dict(Journal(tmp_path).items) == {"a": {"text": "1"}, "b": {"text": "2"}}


def test_who_reads_while_another_writes_costs_the_other_nothing(tmp_path: Path) -> None:
    writer = Journal(tmp_path)
    writer.append({"a": {"text": "1"}})
    with writer.path.open("ab") as stream:
        stream.write(b'{"key": "b", "te')
        stream.flush()
        assert dict(Journal(tmp_path).items) == {"a": {"text": "1"}}
        stream.write(b'xt": "2"}\n')
    writer.append({"c": {"text": "3"}})
    assert dict(Journal(tmp_path).items) == {"a": {"text": "1"}, "b": {"text": "2"}, "c": {"text": "3"}}


def test_what_the_stage_did_not_use_goes_when_it_is_done(tmp_path: Path) -> None:
    Journal(tmp_path).append({"old": {"text": "1"}, "kept": {"text": "2"}})
    (tmp_path / "0123456789abcdef.jsonl").write_text("of an earlier version")
    journal = Journal(tmp_path)
    assert journal.find(["kept", "unknown"]) == {"kept": {"text": "2"}}
    journal.append({"new": {"text": "3"}})
    assert set(journal.items) == {"old", "kept", "new"}, "until then it stays"
    assert dict(journal.added) == {"new": {"text": "3"}}
    journal.prune()
    for found in (journal, Journal(tmp_path)):
        assert dict(found.items) == {"kept": {"text": "2"}, "new": {"text": "3"}}
    assert [path.name for path in tmp_path.iterdir()] == ["items.jsonl"]


def test_stages_do_not_disturb_each_other(tmp_path: Path) -> None:
    Journal(tmp_path / "judging").append({"a": {"text": "1"}})
    Journal(tmp_path / "replies").append({"a": {"text": "2"}})
    assert dict(Journal(tmp_path / "judging").items) == {"a": {"text": "1"}}


def test_results_come_in_the_order_of_the_requests(requests: list[Ask]) -> None:
    completions = run(CountingEngine(), requests, None)
    assert [c.key for c in completions] == [r.key for r in requests]


@pytest.mark.parametrize("batches", range(6))
def test_interrupted_run_does_only_the_rest_and_ends_with_the_same_result(
    tmp_path: Path, requests: list[Ask], batches: int
) -> None:
    straight = run(CountingEngine(), requests, None)
    first = CountingEngine(dies_after=batches)
    if batches < 5:
        with pytest.raises(KeyboardInterrupt):
            run(first, requests, Journal(tmp_path))
    else:
        run(first, requests, Journal(tmp_path))
    second = CountingEngine()
    assert run(second, requests, Journal(tmp_path)) == straight
    assert sorted(first.asked + second.asked) == sorted(r.key for r in requests)


@given(st.floats(0, 1))
@settings(max_examples=30)
def test_run_killed_while_writing_ends_with_the_same_result(share: float) -> None:
    requests = [Ask(f"item-{n}", f"prompt é {n}", n) for n in range(7)]
    with TemporaryDirectory() as folder:
        straight = run(CountingEngine(), requests, Journal(Path(folder)))
        path = Path(folder) / "items.jsonl"
        content = path.read_bytes()
        cut = content[: round(len(content) * share)]
        path.write_bytes(cut)
        again = CountingEngine()
        assert run(again, requests, Journal(Path(folder))) == straight
        assert len(again.asked) == len(requests) - whole_lines(content, len(cut))


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ({}, 0),
        ({"asks": "fewer"}, 0),
        ({"asks": "one more"}, 1),
        ({"asks": "another message"}, 1),
        ({"asks": "another beginning"}, 1),
        ({"asks": "other seeds"}, 9),
        ({"digest": "another model"}, 9),
        ({"temperature": 0.8}, 9),
        ({"top_p": 0.5}, 9),
        ({"max_new_tokens": 5}, 9),
        ({"stop": ("x",)}, 9),
        ({"stop_after": "x"}, 9),
    ],
)
def test_only_what_a_result_depends_on_is_asked_again(
    tmp_path: Path, requests: list[Ask], change: dict[str, Any], asked_again: int
) -> None:
    def write(digest: str, asks: list[Ask], sampling: Sampling) -> CountingEngine:
        engine = CountingEngine()
        engine.digest = digest
        generate_all(engine, asks, sampling, "writing", NullProgress(), Journal(tmp_path))  # type: ignore[arg-type]
        return engine

    others = {
        "fewer": requests[2:5],
        "one more": [*requests, Ask("item-9", "prompt 9", 9)],
        "another message": [replace(requests[0], message="Another."), *requests[1:]],
        "another beginning": [replace(requests[0], reply_start="Score: "), *requests[1:]],
        "other seeds": [replace(ask, seed=ask.seed + 100) for ask in requests],
    }
    asks, digest = others.get(change.get("asks", ""), requests), change.get("digest", "abc")
    sampling = {"temperature": 0.7, **{k: v for k, v in change.items() if k not in ("asks", "digest")}}
    write("abc", requests, Sampling(temperature=0.7))
    assert len(write(digest, asks, Sampling(**sampling)).asked) == asked_again
    assert write("abc", requests, Sampling(temperature=0.7)).asked == [], "what was finished before is still there"


def test_greedy_replies_do_not_depend_on_seeds(tmp_path: Path, requests: list[Ask]) -> None:
    run(CountingEngine(), requests, Journal(tmp_path))
    again = CountingEngine()
    run(again, [replace(ask, seed=ask.seed + 1) for ask in requests], Journal(tmp_path))
    assert again.asked == []


@pytest.mark.parametrize("journaled", [True, False])
def test_two_items_of_one_key_are_refused(tmp_path: Path, journaled: bool) -> None:
    asks = [Ask("same", "prompt 1", 1), Ask("same", "prompt 2", 2)]
    with pytest.raises(ValueError, match="have the same key"):
        run(CountingEngine(), asks, Journal(tmp_path) if journaled else None)


def test_finished_stage_asks_nothing_more_of_the_engine(tmp_path: Path, requests: list[Ask]) -> None:
    run(CountingEngine(), requests, Journal(tmp_path))
    again = CountingEngine()
    run(again, requests[::-1], Journal(tmp_path))
    assert again.asked == []


def test_resumed_progress_says_what_was_finished_before(tmp_path: Path, requests: list[Ask]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(CountingEngine(dies_after=2), requests, Journal(tmp_path))
    lines: list[str] = []
    engine = CountingEngine()
    generate_all(engine, requests, Sampling(), "writing", LogProgress(lines.append), Journal(tmp_path))  # type: ignore[arg-type]
    assert "4 of 9" in lines[0]
    assert "9 replies" in lines[-1]


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fingerprints_of_different_lists_differ(one: list[str], other: list[str]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
    assert (fingerprint(one, "x") == fingerprint(other, "x")) == (one == other)


def test_fingerprint_keeps_the_borders_between_its_parts() -> None:
    distinct = {
        fingerprint(["a", "b"], ["c"]),
        fingerprint(["a"], ["b", "c"]),
        fingerprint(["a", "b", "c"]),
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint(["a", "b"], "c", 1),
        fingerprint(["a", "b"], "c", 2),
        fingerprint(["a", "b"], "c", 1.5),
    }
    assert len(distinct) == 9


def test_fingerprint_is_sixteen_hex_digits() -> None:
    text = fingerprint("a", 1, 0.5, ["b", "c"])
    assert len(text) == 16
    assert int(text, 16) >= 0
