"""What others wrote is printed as text: none of its escape sequences reaches the terminal."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.columns import Columns
from rich.console import RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from srlm_pipeline.commands import talk as talking
from srlm_pipeline.commands.terminal import PlainTextConsole, RichProgress, without_controls
from srlm_pipeline.config import Settings
from srlm_pipeline.generation.engine import Completion

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
EVIL = [
    CLIPBOARD,
    "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "\x9d52;c;cm0gLXJmIH4=\x9c",
    "\x1b]0;a title\x07",
    "\x1b[2J\x1b[1;1H",
    "\x9b31m",
    "\x1bc",
    "\x1bP$q\x1b\\",
    "\x1b]8;;http://elsewhere\x07here\x1b]8;;\x07",
    "\x1b",
    "\r\x08\x7f",
]
# What rich itself writes: colours and links.
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;id=[0-9-]*;[^\x00-\x1f\x7f-\x9f]*\x1b\\|\x1b\]8;;\x1b\\")
WAYS: list[Callable[[str], RenderableType]] = [
    Text,
    Markdown,
    lambda text: Panel(Text(text), title="M2"),
    lambda text: Columns([Panel(Text(text)), Text(text)]),
    lambda text: Markdown(f"[words](http://example.org/{text})"),
    lambda text: Markdown(f"```\n{text}\n```"),
]


def printed(what: RenderableType) -> str:
    stream = io.StringIO()
    PlainTextConsole(file=stream, force_terminal=True, width=80, legacy_windows=False).print(what)
    return stream.getvalue()


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.parametrize("evil", EVIL)
def test_no_control_sequence_of_others_is_printed(way: int, evil: str) -> None:
    shown = OWN.sub("", printed(WAYS[way](f"before {evil} after")))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown), repr(shown)


def test_the_words_around_a_sequence_are_kept_and_its_own_are_not() -> None:
    assert without_controls(f"one{CLIPBOARD} two\x1b[31m three\nfour\tfive") == "one two three\nfour\tfive"


@given(st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x07[]P\\;0m\x9b\x9d\x9c")), max_size=60))
@example("\x1b\x1b[]52;c;AAAA\x07")
def test_whatever_is_printed_nothing_is_obeyed(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", OWN.sub("", printed(Text(text))))


def test_tables_and_progress_are_printed_as_before() -> None:
    table = Table("model")
    table.add_row("M2")
    assert "M2" in printed(table)
    stream = io.StringIO()
    shown = PlainTextConsole(file=stream, force_terminal=True, width=120)
    with RichProgress(shown).task("judging", 2, "replies") as task:
        task.advance(2, f"note {CLIPBOARD}")
    assert "judging" in stream.getvalue()
    assert "\x1b]52" not in stream.getvalue()


def test_a_reply_in_a_chat_cannot_write_to_the_clipboard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def render(self, text: str) -> str:
            return text

        def generate(self, requests: object, sampling: object) -> list[Completion]:
            return [Completion("chat", f"Hello{CLIPBOARD} you", 3, "stop")]

    stream, messages = io.StringIO(), iter(["hi", ""])
    monkeypatch.setattr(talking, "console", PlainTextConsole(file=stream, force_terminal=True, width=80))
    monkeypatch.setattr(talking, "_open", lambda *_: Engine())
    monkeypatch.setattr(talking.Prompt, "ask", lambda *_, **__: next(messages))
    talking.talk(Settings(), ["M2"], 0.0, 8)
    assert "Hello you" in stream.getvalue()
    assert "\x1b]52" not in stream.getvalue()
