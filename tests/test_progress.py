from collections.abc import Iterator
from functools import partial

import pytest

from srlm_pipeline.progress import (
    LogProgress,
    Meter,
    NullProgress,
    PartOf,
    TeeProgress,
    listening,
    say,
    show_in_terminal,
    terminal_progress,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def no_terminal() -> Iterator[None]:
    before = terminal_progress()
    show_in_terminal(None)
    yield
    show_in_terminal(before)


def test_meter_knows_rate_and_time_left(clock: Clock) -> None:
    meter = Meter(100, clock=clock)
    clock.now += 10
    meter.advance(20)
    assert (meter.done, meter.elapsed, meter.rate, meter.seconds_left) == (20, 10, 2, 40)


def test_meter_knows_no_time_left_before_the_first_unit(clock: Clock) -> None:
    meter = Meter(100, clock=clock)
    clock.now += 10
    assert meter.seconds_left is None
    assert meter.rate == 0


def test_units_of_an_earlier_run_count_as_done_but_not_for_the_rate(clock: Clock) -> None:
    meter = Meter(100, done=60, clock=clock)
    assert meter.seconds_left is None
    clock.now += 5
    meter.advance(10)
    assert (meter.done, meter.rate, meter.seconds_left) == (70, 2, 15)


def test_finished_meter_has_no_time_left(clock: Clock) -> None:
    meter = Meter(4, clock=clock)
    clock.now += 1
    meter.advance(4)
    assert meter.seconds_left == 0


def test_meter_without_elapsed_time_does_not_fail(clock: Clock) -> None:
    meter = Meter(4, clock=clock)
    meter.advance(1)
    assert meter.rate > 0
    assert meter.seconds_left is not None


def test_log_shows_counts_rate_time_left_and_note() -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=0).task("writing", 4, "replies") as task:
        task.advance(1, "12 tokens")
        task.advance()
        task.advance(2)
    assert len(lines) == 4
    assert all(line.startswith("writing: ") for line in lines)
    assert "1/4 replies" in lines[0] and "replies/s" in lines[0] and " left" in lines[0] and "(12 tokens)" in lines[0]
    assert "2/4 replies" in lines[1] and "(" not in lines[1]
    assert "4 replies in " in lines[-1]


def test_log_is_quiet_between_its_lines() -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=3600).task("writing", 1000, "replies") as task:
        for _ in range(1000):
            task.advance()
    assert len(lines) == 1
    assert "1000 replies" in lines[0]


def test_log_says_what_was_finished_before() -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("writing", 10, "replies", done=7) as task:
        task.advance(3)
    assert "7 of 10 replies" in lines[0]
    assert "10 replies" in lines[-1]


def test_log_of_nothing_to_do_still_ends() -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("writing", 0, "replies"):
        pass
    assert len(lines) == 1


def test_failing_work_is_not_reported_as_finished() -> None:
    lines: list[str] = []
    with pytest.raises(KeyError), LogProgress(lines.append, every=3600).task("writing", 10, "replies"):
        raise KeyError("x")
    assert lines == []


@pytest.fixture
def timed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("srlm_pipeline.progress.Meter", partial(Meter, clock=clock))
    return clock


def test_log_tells_how_far_a_long_batch_is_and_no_time_left_before_one_is_done(timed: Clock) -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=15).task("writing", 64, "replies") as task, listening(task):
        for token in range(400):
            say(f"32 being written, {token} of at most 400 tokens each")
            timed.now += 1
        assert 20 < len(lines) < 30
        assert lines[-1].startswith("writing: 0/64 replies (32 being written, 3")
        assert not any("left" in line or "/s" in line for line in lines)
        timed.now += 5
        task.advance(32)
        assert lines[-1] == "writing: 32/64 replies, 0.08 replies/s, 6 min 45 s left"
    say("nobody hears this")


def test_what_a_journal_held_is_said_and_counts_for_no_speed(timed: Clock) -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=0.01).task("inventing prompts", 100, "prompts") as task:
        timed.now += 0.02
        task.advance(24, "32 attempts", found=24)
        assert lines == ["inventing prompts: 24/100 prompts, 24 of them finished before (32 attempts)"]
        timed.now += 9.98
        task.advance(10, "64 attempts")
        told = "34/100 prompts, 24 of them finished before, 1.00 prompts/s, 1 min 06 s left (64 attempts)"
        assert lines[-1] == f"inventing prompts: {told}"
    assert lines[-1] == "inventing prompts: 34 prompts, 10 of them now in 10 s, 1.00 prompts/s"


def test_where_a_journal_held_everything_that_alone_is_said() -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=3600).task("inventing prompts", 24, "prompts") as task:
        task.advance(20, found=20)
        task.advance(4, found=4)
    assert lines == ["inventing prompts: all 24 prompts were finished before"]


def test_smaller_work_is_shown_within_the_larger(timed: Clock) -> None:
    lines: list[str] = []
    with LogProgress(lines.append, every=0).task("inventing prompts", 24, "prompts") as task:
        shown = PartOf(task)
        with shown.task("attempts", 32, "replies", 30) as attempts, listening(attempts):
            say("2 being written, 5 of at most 60 tokens each")
            attempts.advance(2, "90 tokens")
        assert not shown.found_all
        with shown.task("attempts", 32, "replies", 32):
            assert shown.found_all
    assert lines[:2] == [
        "inventing prompts: 0/24 prompts (next: 30/32 replies, 2 being written, 5 of at most 60 tokens each)",
        "inventing prompts: 0/24 prompts (next: 32/32 replies, 90 tokens)",
    ]


def test_null_progress_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullProgress().task("writing", 10, "replies", 3) as task:
        task.advance()
        task.advance(2, "note")
    assert capsys.readouterr() == ("", "")


def test_tee_shows_the_same_everywhere() -> None:
    one: list[str] = []
    other: list[str] = []
    tee = TeeProgress(LogProgress(one.append, every=0), NullProgress(), LogProgress(other.append, every=0))
    with tee.task("writing", 10, "replies", 2) as task:
        task.advance(3, "note")
    for lines in (one, other):
        assert (
            "2 of 10" in lines[0]
            and "5/10" in lines[1]
            and "(note)" in lines[1]
            and "5 replies, 3 of them now in" in lines[2]
        )


def test_tee_of_nobody_is_silent() -> None:
    with TeeProgress().task("writing", 10, "replies") as task:
        task.advance()


def test_error_passes_through_a_tee() -> None:
    lines: list[str] = []
    tee = TeeProgress(LogProgress(lines.append, every=3600), NullProgress())
    with pytest.raises(KeyError), tee.task("writing", 10, "replies"):
        raise KeyError("x")
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3725, "62 min 05 s")],
)
def test_durations_are_readable(clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float, shown: str) -> None:
    monkeypatch.setattr("srlm_pipeline.progress.Meter", partial(Meter, clock=clock))
    lines: list[str] = []
    with LogProgress(lines.append).task("writing", 3, "replies"):
        clock.now += seconds
    assert f"in {shown}," in lines[-1]


@pytest.mark.usefixtures("no_terminal")
def test_terminal_has_a_reporter_only_once_named() -> None:
    assert terminal_progress() is None
    reporter = NullProgress()
    show_in_terminal(reporter)
    assert terminal_progress() is reporter
    show_in_terminal(None)
    assert terminal_progress() is None
