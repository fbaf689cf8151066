"""`srlm read`: two models' replies side by side, without names; one key says which is better."""

from __future__ import annotations

import getpass
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.control import Control
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import SrlmError, TableError
from srlm_pipeline.evaluation.assessment import Assessment, read_assessment
from srlm_pipeline.evaluation.readers import (
    Choice,
    Pair,
    ReaderResult,
    Reading,
    Vote,
    VoteBook,
    Written,
    draw_pairs,
    tally,
)
from srlm_pipeline.store import open_store

SIDE_BY_SIDE = 100
NEITHER = "neither"
Action = Literal["first", "second", "tie", "skip", "undo", "stop"]
_KEYS: dict[str, Action] = {
    **dict.fromkeys(("a", "1", "left"), "first"),
    **dict.fromkeys(("b", "2", "right"), "second"),
    **dict.fromkeys(("t", "=", " ", "space"), "tie"),
    "s": "skip",
    "u": "undo",
    "q": "stop",
}
_CHOICES: dict[Action, Choice] = {"first": "first", "second": "second", "tie": "tie"}
# What terminals send for keys that are no letters, after the escape character and "[" or "O".
_SEQUENCES = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "7~": "home", "4~": "end", "8~": "end", "5~": "page up", "6~": "page down",
}  # fmt: skip
_ESCAPE = "\x1b"
# Ctrl-C, Ctrl-D and a closed terminal stop too.
_CONTROLS = {"\r": "enter", "\n": "enter", "\x03": "q", "\x04": "q", "": "q"}
# Between two looks at the terminal's size, and for the rest of a key's sequence over a slow line.
_LOOK_SECONDS, _SEQUENCE_SECONDS = 0.5, 0.1
# What would move the cursor or ring the bell is shown as a picture of itself.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_CONTROL_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def read_pairs(settings: Settings, names: Sequence[str], prompts: int, seed: int, reader: str | None) -> None:
    """Show pairs of replies until all are voted on or the reader stops; then say who is who.

    Args:
        settings: The project.
        names: Two models.
        prompts: How many prompts.
        seed: Of prompts, order and sides.
        reader: Who reads; None: the user.

    Raises:
        SrlmError: If a model does not exist or was not assessed.
    """
    store = open_store(settings)
    if len(names) != 2:
        raise SrlmError(
            f"name the two models to read, e.g. `srlm read M1 M3`; there are: {', '.join(store.available_models())}. "
            "`srlm read --results` shows what was voted"
        )
    who = _user() if reader is None else reader.strip()
    if not who:
        raise SrlmError("--reader must have a name")
    a, b = (read_assessment(store, store.named_model(settings, name)) for name in names)
    pairs = draw_pairs(a, b, prompts, seed, who)
    drawn = sum(not pair.returned for pair in pairs)
    if drawn < prompts:
        console.print(f"{a.model} and {b.model} have {_many(drawn, 'prompt')} in common; all are read.")
    book = VoteBook(store.votes_path)
    reading = Reading(pairs, book, who)
    if reading.current is not None:
        with suppress(KeyboardInterrupt):
            (_read_keys if _at_a_terminal() else _read_lines)(reading)
    if reading.current is not None:
        command = f"srlm read {a.model} {b.model}"
        console.print(
            f"{reading.n_voted} of {reading.total} voted, kept in {book.path}\n"
            "The same command goes on from there. Who is who is told at the end; "
            f"`{command} --results` tells what the votes add up to so far.",
            highlight=False,
            soft_wrap=True,
        )
        return
    console.print(_who_is_who(reading.said()))
    if reading.n_skipped:
        console.print(f"{reading.n_skipped} skipped: the same command shows them again.")
    _show_results([_Match(a.model, b.model, a, b)], book)


def show_results(settings: Settings, names: Sequence[str]) -> None:
    """Show what the kept votes add up to, by pair of models and reader.

    Args:
        settings: The project.
        names: Two models, or none: all that were voted on.

    Raises:
        SrlmError: If one was named alone, or nobody voted on these two and one of them cannot be read.
    """
    if len(names) not in (0, 2):
        raise SrlmError("name two models, or none to see all that was voted")
    store = open_store(settings)
    book = VoteBook(store.votes_path)
    votes = book.all()
    voted = {frozenset((vote.first.model, vote.second.model)) for vote in votes}
    wanted = [(names[0], names[1])] if names else sorted((min(pair), max(pair)) for pair in voted)
    if not wanted:
        raise SrlmError(f"there are no votes yet at {book.path}: `srlm read M1 M2` asks for them")
    matches = []
    for one, other in wanted:
        try:
            a, b = (read_assessment(store, store.named_model(settings, name)) for name in (one, other))
            matches.append(_Match(one, other, a, b))
        except SrlmError as error:
            if {one, other} not in voted:
                raise
            problem = "; ".join(error.problems) if isinstance(error, TableError) else str(error)
            matches.append(_Match(one, other, problem=problem))
    _show_results(matches, book)


@dataclass(frozen=True)
class _Match:
    """Two models that were read; without their assessments, why their votes do not count."""

    one: str
    other: str
    a: Assessment | None = None
    b: Assessment | None = None
    problem: str = ""


class _Screen:
    """All lines of a screen, already laid out."""

    def __init__(self, lines: Sequence[Sequence[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for place, line in enumerate(self._lines):
            if place:
                yield Segment.line()
            yield from line


def _read_lines(reading: Reading) -> None:
    """Take a key from every line of the input; for pipes."""
    while (pair := reading.current) is not None:
        console.print(_pair_text(pair, console.width))
        console.print(_footer(reading))
        while True:
            line = sys.stdin.readline()
            words = line.strip().lower() or (" " if " " in line else "")
            action = _KEYS.get(words) if line else "stop"
            if action is not None:
                break
            console.print(f"There is no key {words!r}.", highlight=False)
        if action == "stop":
            return
        note = _act(reading, action)
        if note:
            console.print(note)


def _read_keys(reading: Reading) -> None:
    """Show one pair a screen and take single keys; the terminal is left as it was found."""
    note = ""
    with _single_keys() as stream, console.screen():
        while (pair := reading.current) is not None:
            # A key that was pressed for the pair before is no vote on this one.
            termios.tcflush(stream, termios.TCIFLUSH)
            action = _ask(stream, pair, reading, note)
            if action == "stop":
                return
            note = _act(reading, action)


def _ask(stream: int, pair: Pair, reading: Reading, note: str) -> Action:
    """Show a pair, scroll as asked, and return the first key that is an action."""
    top, seen = 0, None
    while True:
        width, height = console.size
        body = _laid_out(_pair_text(pair, width), width)
        footer = _laid_out(_footer(reading, note), width)
        room = max(height - len(footer) - 1, 1)
        last = max(len(body) - room, 0)
        top = min(max(top, 0), last)
        if seen != (width, height, top):
            seen = (width, height, top)
            shown = [*body[top : top + room], *[[Segment(" " * width)]] * (room - len(body))]
            rule = _laid_out(_scroll_rule(top, room, len(body)), width)
            console.control(Control.home())
            console.print(_Screen([*shown, *rule, *footer][:height]), end="")
        key = _next_key(stream, _LOOK_SECONDS)
        if key in _KEYS:
            return _KEYS[key]
        page = max(room - 1, 1)
        moves = {"up": -1, "down": 1, "page up": -page, "page down": page, "enter": page, "home": -top, "end": last}
        top += moves.get(key or "", 0)


def _act(reading: Reading, action: Action) -> str:
    """Do what a key asks for; return what is to be said of it."""
    if action in _CHOICES:
        reading.vote(_CHOICES[action])
    elif action == "skip":
        reading.skip()
    elif action == "undo":
        return "The last one again." if reading.undo() else "There is nothing to undo."
    return ""


def _pair_text(pair: Pair, width: int) -> RenderableType:
    """Return prompt and replies, side by side where there is room."""
    prompt = Panel(_as_written(pair.prompt), title="prompt", title_align="left", border_style="cyan")
    beside = width >= SIDE_BY_SIDE
    names = ("A \u2013 left", "B \u2013 right") if beside else ("A \u2013 upper", "B \u2013 lower")
    replies = [_reply_panel(written, name) for written, name in zip((pair.first, pair.second), names, strict=True)]
    if not beside:
        return Group(prompt, *replies)
    grid = Table.grid(Column(ratio=1), Column(ratio=1), expand=True)
    grid.add_row(*replies)
    return Group(prompt, grid)


def _reply_panel(written: Written, name: str) -> Panel:
    text = _as_written(written.text) if written.text.strip() else Text("(an empty reply)", style="italic dim")
    end = "ends at the limit of its length" if written.cut_off else None
    return Panel(text, title=name, title_align="left", subtitle=end, subtitle_align="left")


def _as_written(text: str) -> Text:
    """Return a text with its markup as letters, broken wherever a line is full, nothing left out."""
    plain = text.strip("\r\n").replace("\r\n", "\n").expandtabs(4).translate(_CONTROL_PICTURES)
    return Text(plain, overflow="fold")


def _laid_out(content: RenderableType, width: int) -> list[list[Segment]]:
    return console.render_lines(content, console.options.update(width=width, height=None))


def _scroll_rule(top: int, room: int, lines: int) -> Rule:
    """Return a line that says what of a long pair is out of sight."""
    if lines <= room:
        return Rule(style="dim")
    hidden = {"\u2191": top, "\u2193": lines - top - room}
    parts = [f"{arrow} {_many(n, 'more line')}" for arrow, n in hidden.items() if n > 0]
    return Rule(Text("   ".join([*parts, "(\u2191 \u2193 PgUp PgDn)"]), style="yellow"), style="dim")


def _footer(reading: Reading, note: str = "") -> Text:
    keys = [
        ("a", "A is better"),
        ("b", "B is better"),
        ("t", "equally good"),
        ("s", "skip"),
        ("u", "undo"),
        ("q", "stop"),
    ]
    footer = Text(f"{reading.number} of {reading.total}", style="bold")
    for key, meaning in keys:
        footer.append("  ").append(key, "cyan").append(f" {meaning}", "not bold")
    if note:
        footer.append(f"  {note}", style="yellow")
    return footer


@contextmanager
def _single_keys() -> Iterator[int]:
    """Give the terminal's input, key by key and unseen; Ctrl-C stops like any key."""
    stream = sys.stdin.fileno()
    before = termios.tcgetattr(stream)
    tty.setcbreak(stream)
    changed = termios.tcgetattr(stream)
    changed[3] &= ~termios.ISIG
    termios.tcsetattr(stream, termios.TCSANOW, changed)
    try:
        yield stream
    finally:
        # Flushed: keys pressed too late are not for the shell.
        termios.tcsetattr(stream, termios.TCSAFLUSH, before)


def _next_key(stream: int, seconds: float) -> str | None:
    """Return the name of the next key; None if there is none in time, or if it is unknown."""
    if not select.select([stream], [], [], seconds)[0]:
        return None
    key = os.read(stream, 1).decode("latin-1")
    if key != _ESCAPE:
        return _CONTROLS.get(key, key.lower())
    sequence = ""
    while select.select([stream], [], [], _SEQUENCE_SECONDS)[0]:
        sequence += os.read(stream, 1).decode("latin-1")
        if len(sequence) > 1 and (sequence[-1].isalpha() or sequence[-1] == "~"):
            break
    return _SEQUENCES.get(sequence[1:])


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal


def _who_is_who(said: Sequence[tuple[Pair, Vote]]) -> Table:
    """Return one row per pair: whose replies they were, and which was preferred."""
    table = Table(
        Column("prompt", no_wrap=True, ratio=1),
        Column("A was", no_wrap=True),
        Column("B was", no_wrap=True),
        Column("you preferred", no_wrap=True),
        title="Who is who",
        expand=True,
        box=box.SIMPLE,
    )
    for pair, vote in said:
        chosen = {"first": vote.first.model, "second": vote.second.model, "tie": NEITHER}[vote.vote]
        table.add_row(
            Text(" ".join(pair.prompt.split()).translate(_CONTROL_PICTURES), overflow="ellipsis"),
            escape(vote.first.model),
            escape(vote.second.model),
            "the same reply" if vote.identical else escape(chosen),
        )
    return table


def _show_results(matches: Sequence[_Match], book: VoteBook) -> None:
    votes = book.all()
    table = Table(
        Column("models", no_wrap=True),
        Column("reader"),
        Column("wins / ties\n/ losses", justify="right", no_wrap=True),
        Column("win rate\n(95 %)", justify="right", no_wrap=True),
        Column("p (sign\ntest)", justify="right", no_wrap=True),
        Column("consistent", justify="right", no_wrap=True),
        box=box.SIMPLE,
        title="What people say",
        caption="Wins and win rate are those of the model named first. Consistent: pairs that came back later with the "
        "sides swapped and were judged the same.",
    )
    notes = []
    for match in matches:
        of_match = [v for v in votes if {v.first.model, v.second.model} == {match.one, match.other}]
        if match.a is None or match.b is None:
            notes.append(
                f"not counted: {_many(len(of_match), 'vote')} on {match.one} and {match.other}; {match.problem}"
            )
            continue
        everyone = tally(of_match, match.a, match.b)
        for reader in everyone.readers:
            of_reader = tally([v for v in of_match if v.reader == reader], match.a, match.b)
            table.add_row(f"{escape(match.one)} : {escape(match.other)}", escape(reader), *_figures(of_reader))
        if len(everyone.readers) > 1:
            table.add_row(
                f"{escape(match.one)} : {escape(match.other)}", "the majority", *_figures(everyone), style="bold"
            )
        if everyone.identical:
            notes.append(
                f"{everyone.identical} of {everyone.prompts} prompts got the same reply from {match.one} and "
                f"{match.other}: ties that nobody was shown"
            )
        for what, n in everyone.outdated.items():
            verbs = "are of {} and do not count" if n > 1 else "is of {} and does not count"
            notes.append(f"{_many(n, 'vote')} on {match.one} and {match.other} {verbs.format(what)}")
        if not everyone.readers:
            notes.append(f"nobody has voted on {match.one} and {match.other} as they are now")
    if table.row_count:
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"The votes are kept in {book.path}", markup=False, highlight=False, soft_wrap=True)


def _figures(result: ReaderResult) -> list[str]:
    same = result.consistent
    return [
        f"{result.wins} / {result.ties} / {result.losses}",
        f"{result.win_rate:.1%}\n({result.low:.0%}\u2013{result.high:.0%})",
        f"{result.p_value:.2g}",
        f"{same.n} of {same.of}" if same.of else "\u2013",
    ]


def _many(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user may have no name.
        return "reader"
