"""Closed tasks made by program, with their answers known: none is of a template by which models are measured.

Every maker takes random numbers and a level of difficulty from 1 to `LEVELS`, and returns a question, its accepted
answers and what a right reply does not say as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from srlm_pipeline.checks.checkable import DrawnTask
from srlm_pipeline.checks.closed_tasks import ClosedTask
from srlm_pipeline.prompting.constraints import LEVELS
from srlm_pipeline.prompting.drawing import draw_wording, draw_words

_NAMES = (
    "Tom", "Lena", "Omar", "Ida", "Ravi", "Nora", "Ben", "Mei", "Carl", "Ruth", "Yusuf", "Elsa",
)  # fmt: skip
_THINGS = (
    "apples", "pencils", "stamps", "buttons", "shells", "coins", "marbles", "cards", "candles", "stickers",
)  # fmt: skip
_NOUNS = (
    "lamp", "river", "stone", "bread", "cloud", "horse", "chair", "apple", "train", "glove", "piano", "sugar",
    "tiger", "rope", "mirror", "pillow", "candle", "bottle", "ladder", "basket", "pepper", "rocket", "hammer",
    "window",
)  # fmt: skip
_GOODS = (
    "bread", "milk", "tea", "rice", "soap", "salt", "honey", "paper", "butter", "cheese",
)  # fmt: skip
_DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth",
)  # fmt: skip
_NUMBER_ONLY = "Reply with the number only."
_ONE_WORD = "Answer with one word."

Made = tuple[str, Sequence[str], Sequence[str]]
Maker = Callable[[np.random.Generator, int], Made]
TASKS: dict[str, Maker] = {}


def draw_task(random: np.random.Generator, kind: str, level: int) -> DrawnTask:
    """Return a task.

    Args:
        random: Where it is drawn from.
        kind: One of `TASKS`.
        level: From 1 to `LEVELS`.
    """
    assert 1 <= level <= LEVELS
    prompt, answers, wrong = TASKS[kind](random, level)
    return DrawnTask(ClosedTask("", kind, prompt, tuple(answers), tuple(wrong)), level)


def _task(kind: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        TASKS[kind] = make
        return make

    return register


@_task("word_problem")
def _word_problem(random: np.random.Generator, level: int) -> Made:
    (name,), (things,) = draw_words(random, _NAMES, 1), draw_words(random, _THINGS, 1)
    most = (5, 9, 20, 50, 200)[level - 1]
    has, more = (int(random.integers(2, most + 1)) for _ in range(2))
    if random.random() < 0.5:
        text = draw_wording(
            random,
            (
                "{name} has {has} {things} and gets {more} more. How many {things} does {name} have now?",
                "There are {has} {things} in a box. {name} puts in {more} more. How many {things} are in the box?",
            ),
            name=name,
            has=has,
            more=more,
            things=things,
        )
        return f"{text} {_NUMBER_ONLY}", [str(has + more)], []
    text = draw_wording(
        random,
        (
            "{name} has {has} {things} and gives away {more}. How many {things} are left?",
            "Of {has} {things}, {name} loses {more}. How many {things} remain?",
        ),
        name=name,
        has=has + more,
        more=more,
        things=things,
    )
    return f"{text} {_NUMBER_ONLY}", [str(has)], []


@_task("counting")
def _counting(random: np.random.Generator, level: int) -> Made:
    n = int(random.integers(2, 3 + level))
    words = ", ".join(draw_words(random, _NOUNS, n))
    text = draw_wording(random, ("How many things are listed here: {words}?", "Count the words: {words}."), words=words)
    return f"{text} {_NUMBER_ONLY}", [str(n)], []


@_task("position")
def _position(random: np.random.Generator, level: int) -> Made:
    words = draw_words(random, _NOUNS, 2 + level)
    place = int(random.integers(len(words)))
    text = draw_wording(
        random,
        ("Here is a list: {words}. Which word is the {place} one?", "What is the {place} word of this list: {words}?"),
        words=", ".join(words),
        place=_ORDINALS[place],
    )
    return f"{text} {_ONE_WORD}", [words[place]], [word for word in words if word != words[place]]


@_task("price")
def _price(random: np.random.Generator, level: int) -> Made:
    goods = draw_words(random, _GOODS, 1 + level)
    prices = [int(price) for price in random.choice(np.arange(2, 30), len(goods), replace=False)]
    asked = int(random.integers(len(goods)))
    listed = ", ".join(f"{good} {price} dollars" for good, price in zip(goods, prices, strict=True))
    text = draw_wording(
        random,
        (
            "A shop sells {listed}. What does the {good} cost?",
            "Prices: {listed}. How many dollars is the {good}?",
        ),
        listed=listed,
        good=goods[asked],
    )
    wrong = [str(price) for price in prices if price != prices[asked]]
    return f"{text} {_NUMBER_ONLY}", [str(prices[asked])], wrong


@_task("sequence")
def _sequence(random: np.random.Generator, level: int) -> Made:
    step = int(random.integers(1, (2, 3, 5, 9, 20)[level - 1] + 1))
    start = int(random.integers(1, 10 * level))
    shown = [start + step * k for k in range(4)]
    text = draw_wording(
        random,
        ("Which number comes next: {shown}?", "Continue this row of numbers: {shown}, ..."),
        shown=", ".join(map(str, shown)),
    )
    return f"{text} {_NUMBER_ONLY}", [str(start + 4 * step)], []


@_task("comparison")
def _comparison(random: np.random.Generator, level: int) -> Made:
    names = draw_words(random, _NAMES, 2 + (level > 2))
    most, least = random.random() < 0.5, names[-1]
    chain = " ".join(f"{a} is older than {b}." for a, b in pairwise(names))
    if level % 2 == 0:
        chain = " ".join(f"{b} is younger than {a}." for a, b in pairwise(names))
    who = "oldest" if most else "youngest"
    answer = names[0] if most else least
    return f"{chain} Who is the {who}? {_ONE_WORD}", [answer], [name for name in names if name != answer]


@_task("weekday")
def _weekday(random: np.random.Generator, level: int) -> Made:
    today, on = int(random.integers(7)), int(random.integers(1, level + 1))
    then = _DAYS[(today + on) % 7]
    when = "tomorrow" if on == 1 else f"in {on} days"
    return f"Today is {_DAYS[today]}. Which day is it {when}? {_ONE_WORD}", [then], []


@_task("spelling")
def _spelling(random: np.random.Generator, level: int) -> Made:
    (word,) = draw_words(random, [noun for noun in _NOUNS if len(noun) <= 3 + level] or _NOUNS, 1)
    first = random.random() < 0.5
    text = draw_wording(
        random,
        ('What is the {which} letter of "{word}"?', 'With which letter does "{word}" {does}?'),
        which="first" if first else "last",
        word=word,
        does="begin" if first else "end",
    )
    return f"{text} Answer with the letter only.", [word[0] if first else word[-1]], []
