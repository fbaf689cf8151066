"""A prompt is one text everywhere, also where it is the end of a conversation: then its turns stand in it, with marks.

The mark is ASCII's record separator, which no person types: Python takes it for a blank, so that whatever compares
words sees nothing of it. What is shown to a judge or to people is a transcript.
"""

from __future__ import annotations

from collections.abc import Sequence

TURN_MARK = "\x1e"
_SPEAKERS = ("User", "Assistant")


def join_turns(turns: Sequence[str]) -> str:
    """Return a prompt with its history.

    Args:
        turns: What user and assistant said in turn; the user first and last.
    """
    return TURN_MARK.join(without_marks(turn).strip() for turn in turns)


def split_turns(prompt: str) -> list[str]:
    """Return what user and assistant said in turn, the user first and last; a prompt without history alone."""
    turns = prompt.split(TURN_MARK)
    # Marks that nobody set: a turn is never blank, and the user has the last word.
    return turns if len(turns) % 2 and all(turn.strip() for turn in turns) else [without_marks(prompt)]


def opening(prompt: str) -> str:
    """Return the user's first message, which is understood without anything before it."""
    return split_turns(prompt)[0]


def without_marks(text: str) -> str:
    """Return a text that can be no conversation."""
    return text.replace(TURN_MARK, " ")


def transcript(prompt: str) -> str:
    """Return a prompt as it can be read: with the names of the speakers where there is a history."""
    turns = split_turns(prompt)
    if len(turns) == 1:
        return turns[0]
    return "\n\n".join(f"{_SPEAKERS[place % 2]}: {turn}" for place, turn in enumerate(turns))
