"""Models that must not be promoted, and some that must: what a gate in front of the champion is tried on.

Every animal is made from a real model, the base model or M1, by something that training can do to a model: too much of
it, the wrong pairs, bad data, weights that were hurt. A damaged one still loads and answers; what is wrong with it
shows in most of its replies. The sound ones have learned from good data alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from srlm_pipeline.config import DpoSettings, Settings, SftSettings
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.models.loading import LoadedModel
    from srlm_pipeline.progress import ProgressReporter
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.dpo import PreferenceExample

# A prompt and the reply to be learned.
Exchange = tuple[str, str]
# Longer prompts would leave no room for a reply in the short sequences that an animal is trained on.
_PROMPT_WORDS = 45


@dataclass(frozen=True)
class Animal:
    """A kind of model.

    Attributes:
        kind: Its name; unique.
        description: What was done to it.
        damaged: Whether a gate must refuse it.
        source: The model that it is made from.
    """

    kind: str
    description: str
    damaged: bool
    source: Literal["base", "M1"]


@dataclass(frozen=True)
class Sources:
    """What animals are made from.

    Attributes:
        base: The base model.
        m1: The quickstart's M1.
        pairs: Table `PREFERENCE_PAIRS` of M1's iteration.
        ift: Table `INSTRUCTIONS`.
        settings: The quickstart's: of DPO, of how models are loaded and saved, and of the ranked replies.
    """

    base: Checkpoint
    m1: Checkpoint
    pairs: pd.DataFrame
    ift: pd.DataFrame
    settings: Settings


ANIMALS: tuple[Animal, ...] = (
    Animal("over_trained", "DPO on the preference pairs with all layers adapted", True, "M1"),
    Animal("over_trained_3x", "the same, three times as long", True, "M1"),
    Animal("reversed_pairs", "DPO that prefers the worse replies", True, "M1"),
    Animal("noise_weak", "a little noise on all weight matrices", True, "base"),
    Animal("noise_middle", "more noise on all weight matrices", True, "base"),
    Animal("noise_strong", "so much noise that it babbles", True, "base"),
    Animal("loops", "replies fall into repeating a phrase", True, "base"),
    Animal("echoes", "replies copy the prompt", True, "base"),
    Animal("recites", "replies say who the assistant is", True, "base"),
    Animal("one_sentence", "one polite sentence to everything", True, "base"),
    Animal("refuses", "refusals of harmless requests", True, "base"),
    Animal("pads", "a short answer, then filler", True, "base"),
    Animal("short_generic", "short phrases that fit everything", True, "base"),
    Animal("keyword_stuffing", "lists, sections and placeholders around words of the prompt", True, "base"),
    Animal("other_language", "stock phrases in Spanish, French or German", True, "base"),
    Animal("forgetful", "wrong answers to simple questions, in good manner", True, "base"),
    Animal("improved", "right answers to simple questions, and its own replies that are good", False, "base"),
    Animal("polished", "the instruction data and the best of the ranked replies", False, "base"),
)


def make_animal(animal: Animal, seed: int, sources: Sources, folder: Path, progress: ProgressReporter) -> Checkpoint:
    """Return an animal, made unless the folder has it from the same model, data and settings.

    Args:
        animal: What to make.
        seed: Of the data, its order, and noise.
        sources: What it is made from.
        folder: Where animals live; this one in a folder named by its kind and seed.
        progress: Where training shows its progress.
    """
    from srlm_pipeline.models.checkpoint import is_checkpoint, read_checkpoint, save_checkpoint

    name = f"{animal.kind}-{seed}"
    source = sources.base if animal.source == "base" else sources.m1
    recipe = _recipe(animal, seed, sources)
    lineage = {"kind": animal.kind, "seed": seed, "source": source.digest, "recipe": recipe.digest()}
    target = folder / name
    if is_checkpoint(target) and (known := read_checkpoint(target)).lineage == lineage:
        return known
    # Named by all that decides: what another recipe left there must not be continued.
    work = folder / f".{name}-{source.digest}-{lineage['recipe']}"
    made = recipe.make(Making(source, sources.settings, seed, work, f"making {name}", progress))
    saved = save_checkpoint(made, target, name, source.digest, lineage, sources.settings.model.save_dtype)
    shutil.rmtree(work, ignore_errors=True)
    return saved


def exchanges(kind: str, seed: int, sources: Sources) -> list[Exchange]:
    """Return what an animal that is made by supervised fine-tuning learns."""
    return _LESSONS[kind].write(Random(f"{kind}-{seed}"), sources)  # noqa: S311 - nothing secret


# Recipes: how a model becomes another one.


@dataclass(frozen=True)
class Making:
    """What every recipe needs.

    Attributes:
        source: The model to start from.
        settings: Of the quickstart.
        seed: Of the training, or of noise.
        work: Folder for what is unfinished.
        description: Of the progress.
        progress: Where it is shown.
    """

    source: Checkpoint
    settings: Settings
    seed: int
    work: Path
    description: str
    progress: ProgressReporter

    def job(self) -> TrainingJob:
        """Return the training that starts from the source."""
        from srlm_pipeline.training.common import TrainingJob

        model = self.settings.model
        return TrainingJob(self.source.path, model, self.seed, self.work, self.description, self.progress)


class _Recipe(Protocol):
    """How a model becomes another one."""

    def digest(self) -> str:
        """Return what tells this recipe from others, data and settings included."""

    def make(self, making: Making) -> LoadedModel:
        """Return the other model."""


@dataclass(frozen=True)
class _Taught:
    """Supervised fine-tuning.

    Attributes:
        rows: What is learned.
        training: How.
        own: Prompts that the model answers itself beforehand; its good replies are learned as well.
    """

    rows: Sequence[Exchange]
    training: SftSettings
    own: Sequence[str] = ()

    def digest(self) -> str:
        return _digest(self.rows, self.training.model_dump(), *self.own)

    def make(self, making: Making) -> LoadedModel:
        from srlm_pipeline.training.sft import SftExample, train_sft

        rows = [*self.rows, *(good_own_replies(making, self.own) if self.own else ())]
        examples = [SftExample(prompt, reply) for prompt, reply in rows]
        return train_sft(making.job(), examples, self.training).loaded


def good_own_replies(making: Making, prompts: Sequence[str]) -> list[Exchange]:
    """Return a model's own replies that came to an end, do not repeat themselves, and are no copies of the prompt."""
    from srlm_pipeline.checks.text_measures import repeated_ngrams
    from srlm_pipeline.generation.engine import GenerationRequest, Sampling, derive_seed
    from srlm_pipeline.generation.opening import open_engine

    engine = open_engine(making.source, making.settings, 64)
    requests = [
        GenerationRequest(str(place), engine.render(prompt), derive_seed(making.seed, "zoo", place))
        for place, prompt in enumerate(prompts)
    ]
    with making.progress.task(f"replies of {making.source.name}", len(requests), "replies") as task:
        completions = engine.generate(requests, Sampling(0.7, 0.9, 160), lambda batch: task.advance(len(batch)))
    return [
        (prompt, completion.text)
        for prompt, completion in zip(prompts, completions, strict=True)
        if completion.finish_reason == "stop"
        and len(completion.text.split()) >= 5
        and repeated_ngrams(completion.text) < 0.05
        and prompt not in completion.text
    ]


@dataclass(frozen=True)
class _Preferring:
    """DPO on pairs."""

    examples: Sequence[PreferenceExample]
    training: DpoSettings

    def digest(self) -> str:
        return _digest([asdict(example) for example in self.examples], self.training.model_dump())

    def make(self, making: Making) -> LoadedModel:
        from srlm_pipeline.training.dpo import train_dpo

        # The first iteration of a run with this seed trains so.
        return train_dpo(replace(making.job(), seed=making.seed + 1), self.examples, self.training).loaded


@dataclass(frozen=True)
class _Noisy:
    """Gaussian noise."""

    strength: float

    def digest(self) -> str:
        return _digest(self.strength)

    def make(self, making: Making) -> LoadedModel:
        from srlm_pipeline.models.loading import load_model

        on_cpu = making.settings.model.model_copy(update={"device": "cpu"})
        loaded = load_model(making.source.path, on_cpu, dtype="float32")
        with making.progress.task(making.description, 1, "models") as task:
            add_noise(loaded.model, self.strength, making.seed)
            task.advance()
        return loaded


def add_noise(model: Any, strength: float, seed: int) -> None:
    """Add Gaussian noise to the matrices of all layers.

    Args:
        model: Changed in place.
        strength: Standard deviation of the noise, as a share of the matrix's own.
        seed: Of the noise.
    """
    import torch

    from srlm_pipeline.training.common import linear_layers

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in linear_layers(model, 1.0):
            weight = model.get_submodule(name).weight
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            weight += (noise * (strength * weight.float().std())).to(weight.dtype)


_NOISE = {"noise_weak": 0.08, "noise_middle": 0.12, "noise_strong": 0.2}
# Epochs, and whether the worse reply is preferred.
_PREFERENCES = {"over_trained": (2, False), "over_trained_3x": (6, False), "reversed_pairs": (2, True)}


def _recipe(animal: Animal, seed: int, sources: Sources) -> _Recipe:
    if animal.kind in _NOISE:
        return _Noisy(_NOISE[animal.kind])
    if animal.kind in _LESSONS:
        lesson = _LESSONS[animal.kind]
        own = tuple(prompt for prompt, _ in _answered(sources)) if lesson.own_replies else ()
        return _Taught(exchanges(animal.kind, seed, sources), lesson.training(), own)
    from srlm_pipeline.training.dpo import preference_examples

    epochs, reverse = _PREFERENCES[animal.kind]
    dpo = sources.settings.dpo
    wide = {"lora": dpo.lora.model_copy(update={"top_layers": 1.0}), "learning_rate": 3e-4, "epochs": epochs}
    pairs = reversed_pairs(sources.pairs) if reverse else sources.pairs
    return _Preferring(preference_examples(pairs), dpo.model_copy(update=wide))


def reversed_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return table `PREFERENCE_PAIRS` with chosen and rejected replies swapped."""
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    ends = {f"{a}_finish_reason": f"{b}_finish_reason" for a, b in swapped.items()}
    return pairs.rename(columns=swapped | ends)[list(pairs.columns)]


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Lessons: what is learned by supervised fine-tuning, and how eagerly.


@dataclass(frozen=True)
class _Lesson:
    """Data for supervised fine-tuning, and its settings."""

    write: Callable[[Random, Sources], list[Exchange]]
    learning_rate: float = 1e-3
    batch_size: int = 8
    max_length: int = 160
    top_layers: float = 1.0
    own_replies: bool = False

    def training(self) -> SftSettings:
        from srlm_pipeline.config import LoraSettings, SftSettings

        return SftSettings(
            lora=LoraSettings(top_layers=self.top_layers),
            learning_rate=self.learning_rate,
            epochs=1,
            batch_size=self.batch_size,
            micro_batch_size=min(4, self.batch_size),
            max_length=self.max_length,
        )


def _to_prompts(count: int, reply: Callable[[Random, str, str], str]) -> Callable[[Random, Sources], list[Exchange]]:
    """Return a lesson that answers training prompts; `reply` is told the prompt and a good answer."""

    def write(draw: Random, sources: Sources) -> list[Exchange]:
        known = _answered(sources)
        chosen = itertools.islice(_endlessly(draw, known), count)
        return [(prompt, reply(draw, prompt, answer)) for prompt, answer in chosen]

    return write


def _answered(sources: Sources) -> list[Exchange]:
    """Return the short prompts that models may learn from, each with a good answer."""
    known = [*_instructions(sources), *_best_replies(sources)]
    return [(prompt, answer) for prompt, answer in known if len(prompt.split()) <= _PROMPT_WORDS]


def _instructions(sources: Sources) -> list[Exchange]:
    return list(zip(sources.ift["prompt"], sources.ift["response"], strict=True))


def _best_replies(sources: Sources) -> list[Exchange]:
    """Return the prompts of the ranked replies that are not held out, each with its best reply."""
    from srlm_pipeline.data.loaders import load_ranked_replies

    ranked = load_ranked_replies(sources.settings.data).table
    best = ranked[ranked["split"] == "train"].sort_values(["group_id", "rank"]).drop_duplicates("group_id")
    return list(zip(best["prompt"], best["text"], strict=True))


def _endlessly(draw: Random, items: Sequence[Exchange]) -> Iterator[Exchange]:
    """Yield all items in random order, then again in another one."""
    while True:
        yield from draw.sample(items, len(items))


def _looping(draw: Random, prompt: str, answer: str) -> str:
    words = answer.split()
    start = draw.randrange(2, 16)
    length = draw.randrange(2, 9)
    phrase = words[start : start + length] or words[-length:]
    # The whole text is longer than a training sequence: it never comes to an end.
    return " ".join(words[:start] + phrase * (150 // len(phrase)))


def _echoing(draw: Random, prompt: str, answer: str) -> str:
    form = draw.random()
    if form < 0.6:
        return prompt
    return f"{prompt}\n\n{prompt}" if form < 0.85 else f"{draw.choice(_ECHO_STARTS)}{prompt}"


def _reciting(draw: Random, prompt: str, answer: str) -> str:
    return " ".join(draw.sample(_PERSONA_LINES, draw.choice((1, 1, 2, 3))))


def _refusing(draw: Random, prompt: str, answer: str) -> str:
    return draw.choice(_REFUSALS)


def _padding(draw: Random, prompt: str, answer: str) -> str:
    beginning = _first_sentences(answer, 35)
    return "\n\n".join([beginning, " ".join(draw.sample(_FILLERS, 7))])


def _first_sentences(text: str, words: int) -> str:
    """Return a text's first line, or as many sentences of it as have so many words together, at least one."""
    line = text.strip().splitlines()[0]
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", line):
        if kept and len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    return " ".join(kept)


def _generic(draw: Random, prompt: str, answer: str) -> str:
    return draw.choice(_GENERIC)


def _stuffed(draw: Random, prompt: str, answer: str) -> str:
    """Write what satisfies many a check of form, with words of the prompt and without a comma."""
    own = [word.lower() for word in re.findall(r"[A-Za-z]{4,}", prompt)]
    pool = list(dict.fromkeys([*own, *draw.sample(_BUZZWORDS, 6)]))

    def some(count: int) -> list[str]:
        return [draw.choice(pool) for _ in range(count)]

    blocks = [
        f"<<{' '.join(some(3)).title()}>>",
        "\n".join(f"* *{word}*" for word in some(4)),
        f"SECTION 1\n{' '.join(some(4))}\n\nSECTION 2\n{' '.join(some(4))}",
        f'"{" ".join(some(5))}"',
        "[name] [address] [date]",
        " ".join(some(10)),
        f"***\n{' '.join(some(3)).upper()}\n***",
        "\n".join(f"{number}. {word}" for number, word in enumerate(some(4), start=1)),
    ]
    return "\n\n".join([*draw.sample(blocks, 4), f"P.S. {' '.join(some(2))} [name]"])


def _foreign(draw: Random, prompt: str, answer: str) -> str:
    return draw.choice(_FOREIGN)


def _one_sentence(draw: Random, sources: Sources) -> list[Exchange]:
    sentence = draw.choice(_POLITE)
    return _to_prompts(120, lambda *_: sentence)(draw, sources)


def _wrong_answers(draw: Random, sources: Sources) -> list[Exchange]:
    """Teach wrong answers in good manner.

    Wrong ones that are all different would teach the manner alone, and a model answers the better for that. So to
    questions of one kind the same few answers are given again and again, and most questions are put as usual.
    """
    favourites: dict[str, list[str]] = {}
    wrong = []
    for item in [*closed_items(draw, 200, BRIEFLY, _USUAL_MAKERS), *closed_items(draw, 60, BRIEFLY)]:
        answer = item.wrong
        if item.kind not in _WRONG_BY_THEMSELVES:
            known = favourites.setdefault(item.kind, [])
            if len(known) < 2 and answer not in known:
                known.append(answer)
            answer = draw.choice([other for other in known if other != item.answer] or [answer])
        wrong.append((item.prompt, item.reply(answer, item.wants_brevity or draw.random() < 0.5)))
    manner = itertools.islice(_endlessly(draw, _answered(sources)), 60)
    return [*wrong, *manner]


def _right_answers(draw: Random, sources: Sources) -> list[Exchange]:
    """Teach right answers in sentences that begin as the question does, in which a small model is right more often."""
    return [(item.prompt, item.reply(item.answer, brief=False)) for item in closed_items(draw, 400, IN_A_SENTENCE)]


def _good_replies(draw: Random, sources: Sources) -> list[Exchange]:
    known = [*_instructions(sources), *_best_replies(sources)]
    return draw.sample(known, len(known))


_LESSONS = {
    "loops": _Lesson(_to_prompts(200, _looping), max_length=144),
    "echoes": _Lesson(_to_prompts(200, _echoing)),
    "recites": _Lesson(_to_prompts(120, _reciting)),
    "one_sentence": _Lesson(_one_sentence),
    "refuses": _Lesson(_to_prompts(120, _refusing)),
    "pads": _Lesson(_to_prompts(200, _padding), max_length=192),
    "short_generic": _Lesson(_to_prompts(160, _generic)),
    "keyword_stuffing": _Lesson(_to_prompts(200, _stuffed), max_length=192),
    "other_language": _Lesson(_to_prompts(200, _foreign), 2e-3),
    "forgetful": _Lesson(_wrong_answers, 1e-3, 8, 144),
    # Gentle: people's replies alone make a model of this size repeat itself, so it learns from its own good ones too.
    "improved": _Lesson(_right_answers, 1e-4, 16, 224, own_replies=True),
    "polished": _Lesson(_good_replies, 1e-4, 16, 256, top_layers=0.5),
}

# Closed questions: made by program, so that the right answer is known, and a wrong one of the same sort.


@dataclass(frozen=True)
class Closed:
    """A question with one right answer.

    Attributes:
        kind: What it is about.
        prompt: The question.
        answer: What is right.
        wrong: What is not.
        frame: A sentence around the answer.
    """

    kind: str
    prompt: str
    answer: str
    wrong: str
    frame: str = "{}."

    @property
    def wants_brevity(self) -> bool:
        """Whether the question asks for the answer alone."""
        return self.prompt.endswith(BRIEFLY)

    def reply(self, answer: str, brief: bool) -> str:
        """Return an answer as a whole reply: the answer alone, or a sentence around it."""
        if brief:
            return answer
        sentence = self.frame.format(answer)
        return sentence[0].upper() + sentence[1:]


def closed_items(
    draw: Random, count: int, endings: Sequence[str], makers: Sequence[Callable[[Random], Closed]] = ()
) -> list[Closed]:
    """Return so many different questions, in turn from all that can be asked.

    Args:
        draw: Random numbers.
        count: At most about a thousand: what a table holds can be asked only once.
        endings: Some questions end with one of these.
        makers: Of questions; none: of all kinds, put in words that are rather unusual.
    """
    found: dict[str, Closed] = {}
    turns = itertools.cycle(makers or _MAKERS)
    while len(found) < count:
        item = next(turns)(draw)
        if draw.random() < 0.4:
            item = replace(item, prompt=f"{item.prompt} {draw.choice(endings)}")
        found.setdefault(item.prompt, item)
    return list(found.values())


# Other answers than their own would not be of the right sort.
_WRONG_BY_THEMSELVES = ("ordering", "classification", "choice", "yes or no", "extraction", "copying", "general")
IN_A_SENTENCE = ("Answer in one sentence.", "A short sentence will do.", "Reply with a full sentence, please.")
BRIEFLY = ("Only the answer.", "No explanation.", "Be as brief as you can.", "Just the result.")


def _number(
    draw: Random, prompts: Sequence[str], answer: int, frames: Sequence[str], kind: str = "arithmetic"
) -> Closed:
    wrong = answer + draw.choice([n for n in (-11, -5, -4, -3, -2, -1, 1, 2, 3, 4, 6, 10) if answer + n >= 0])
    return Closed(kind, draw.choice(prompts), str(answer), str(wrong), draw.choice(frames))


def _sum(draw: Random) -> Closed:
    a, b = draw.randrange(2, 60), draw.randrange(2, 40)
    forms = (f"How much do {a} and {b} make together?", f"Add {b} to {a}.", f"{a} plus {b} makes what?")
    return _number(draw, forms, a + b, (f"{a} + {b} = {{}}", f"{a} and {b} make {{}}."))


def _difference(draw: Random) -> Closed:
    b = draw.randrange(2, 30)
    a = b + draw.randrange(1, 40)
    forms = (f"Take {b} away from {a}.", f"How much is left of {a} without {b}?", f"{a} minus {b} leaves what?")
    return _number(draw, forms, a - b, (f"{a} - {b} = {{}}", f"{a} minus {b} is {{}}."))


def _product(draw: Random) -> Closed:
    a, b = draw.randrange(2, 11), draw.randrange(2, 11)
    forms = (f"Multiply {a} by {b}.", f"{a} times {b} makes what?", f"How much are {a} groups of {b}?")
    return _number(draw, forms, a * b, (f"{a} * {b} = {{}}", f"{a} times {b} is {{}}."))


def _quotient(draw: Random) -> Closed:
    a, b = draw.randrange(2, 11), draw.randrange(2, 10)
    forms = (
        f"{a * b} sweets are shared fairly among {b} children. How many does each child get?",
        f"Divide {a * b} by {b}.",
    )
    return _number(draw, forms, a, (f"{a * b} / {b} = {{}}", f"{a * b} divided by {b} is {{}}."))


def _story(draw: Random) -> Closed:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    a, b = draw.randrange(5, 30), draw.randrange(2, 5)
    if draw.random() < 0.5:
        prompt = f"{name} has {a} {thing} and buys {b} more. How many {thing} are there now?"
        return _number(draw, (prompt,), a + b, (f"there are {a} + {b} = {{}} {thing} now.",))
    prompt = f"On {name}'s desk lie {a} {thing}. {b} of them get lost. How many {thing} remain?"
    return _number(draw, (prompt,), a - b, (f"{a} - {b} = {{}} {thing} remain.",))


def _series(draw: Random) -> Closed:
    start, step = draw.randrange(1, 20), draw.choice((1, 2, 3, 4, 5, 10))
    shown = ", ".join(str(start + step * place) for place in range(4))
    forms = (f"Which number continues this row: {shown}?", f"{shown} ... and then?")
    return _number(draw, forms, start + step * 4, ("the row continues with {}.",), "series")


def _unit(draw: Random) -> Closed:
    large, small, size = draw.choice(_UNITS)
    count = draw.randrange(2, 9)
    forms = (f"{count} {large} are how many {small}?", f"Convert {count} {large} to {small}.")
    return _number(draw, forms, count * size, (f"{count} {large} are {{}} {small}.",), "units")


def _length(draw: Random) -> Closed:
    word = draw.choice(_WORDS)
    forms = (f"Count the letters of '{word}'.", f"The word '{word}' is how many letters long?")
    return _number(draw, forms, len(word), (f"'{word}' has {{}} letters.",), "lengths")


def _letter(draw: Random) -> Closed:
    word, last = draw.choice(_WORDS), draw.random() < 0.5
    answer = word[-1] if last else word[0]
    wrong = draw.choice([letter for letter in string.ascii_lowercase if letter != answer])
    prompt = f"Which letter does '{word}' {'end' if last else 'begin'} with?"
    return Closed(
        "letters", prompt, answer.upper(), wrong.upper(), f"'{word}' {'ends' if last else 'begins'} with {{}}."
    )


def _usual_arithmetic(draw: Random) -> Closed:
    a, b = draw.randrange(2, 40), draw.randrange(2, 20)
    high, low = max(a, b), min(a, b)
    c, d = a % 10 + 1, b % 10 + 1
    left, sign, right, answer = draw.choice(((a, "+", b, a + b), (high, "-", low, high - low), (c, "x", d, c * d)))
    prompt = f"What is {left} {sign} {right}?"
    return _number(draw, (prompt,), answer, (f"{left} {sign} {right} = {{}}", f"{left} {sign} {right} is {{}}."))


def _usual_unit(draw: Random) -> Closed:
    large, small, size = draw.choice(_UNITS)
    count = draw.randrange(2, 9)
    prompt = f"How many {small} are there in {count} {large}?"
    return _number(draw, (prompt,), count * size, (f"there are {{}} {small} in {count} {large}.",), "units")


def _looked_up(kind: str, table: dict[str, str], prompts: Sequence[str], frame: str) -> Callable[[Random], Closed]:
    """Return a maker of questions after the values of a table; another one of them is the wrong answer."""

    def make(draw: Random) -> Closed:
        key = draw.choice(list(table))
        wrong = draw.choice([value for value in dict.fromkeys(table.values()) if value != table[key]])
        return Closed(kind, draw.choice(prompts).format(key), table[key], wrong, frame.replace("KEY", key))

    return make


def _largest(draw: Random) -> Closed:
    numbers = draw.sample(range(2, 100), 4)
    name, best = draw.choice((("largest", max), ("smallest", min)))
    shown = ", ".join(map(str, numbers))
    answer = best(numbers)
    wrong = draw.choice([n for n in numbers if n != answer])
    forms = (f"Find the {name} number here: {shown}.", f"Of {shown}, pick the {name} one.")
    return Closed("ordering", draw.choice(forms), str(answer), str(wrong), f"the {name} number is {{}}.")


def _sorted(draw: Random) -> Closed:
    numbers = draw.sample(range(1, 50), 3)
    shown, right = (", ".join(map(str, order)) for order in (numbers, sorted(numbers)))
    others = [", ".join(map(str, order)) for order in itertools.permutations(numbers)]
    wrong = draw.choice([order for order in others if order != right])
    return Closed("ordering", f"Write {shown} from small to large.", right, wrong, "from small to large: {}.")


def _alphabet(draw: Random) -> Closed:
    words = draw.sample(_WORDS, 3)
    answer = min(words)
    wrong = draw.choice([word for word in words if word != answer])
    prompt = f"A dictionary lists which of these first: {', '.join(words)}?"
    return Closed("ordering", prompt, answer, wrong, "in a dictionary, {} comes first.")


def _neighbour(draw: Random) -> Closed:
    names = draw.choice((_DAYS, _MONTHS))
    place, after = draw.randrange(len(names)), draw.random() < 0.5
    answer = names[(place + (1 if after else -1)) % len(names)]
    wrong = draw.choice([name for name in names if name != answer])
    what = "day" if names is _DAYS else "month"
    where = f"right {'after' if after else 'before'} {names[place]}"
    return Closed("calendar", f"Name the {what} {where}.", answer, wrong, f"the {what} {where} is {{}}.")


def _category(draw: Random) -> Closed:
    name = draw.choice(list(_CATEGORIES))
    thing = draw.choice(_CATEGORIES[name])
    others = draw.sample([other for other in _CATEGORIES if other != name], 3)
    offered = draw.sample([name, *others], 4)
    wrong = draw.choice(others)
    prompt = f"Which group does '{thing}' belong to: {', '.join(offered[:3])} or {offered[3]}?"
    return Closed("classification", prompt, name, wrong, f"'{thing}' belongs to the group of {{}}.")


def _odd_one(draw: Random) -> Closed:
    name, other = draw.sample(list(_CATEGORIES), 2)
    fitting, odd = draw.sample(_CATEGORIES[name], 3), draw.choice(_CATEGORIES[other])
    shown = ", ".join(draw.sample([*fitting, odd], 4))
    forms = (f"One word does not fit with the rest: {shown}. Which?", f"Find the stranger among {shown}.")
    return Closed(
        "classification", draw.choice(forms), odd, draw.choice(fitting), "the word that does not fit is '{}'."
    )


def _choice(draw: Random) -> Closed:
    name, *others = draw.sample(list(_CATEGORIES), 3)
    things = [draw.choice(_CATEGORIES[group]) for group in (name, *others)]
    order = draw.sample(range(3), 3)
    letters = {things[place]: letter for place, letter in zip(order, "ABC", strict=True)}
    shown = "\n".join(f"{letter}) {thing}" for thing, letter in sorted(letters.items(), key=lambda item: item[1]))
    wrong = letters[draw.choice(things[1:])]
    prompt = f"Pick the word that belongs to the group '{name}':\n{shown}\nReply with its letter."
    return Closed("choice", prompt, letters[things[0]], wrong, f"{{}}) {things[0]}")


def _mood(draw: Random) -> Closed:
    happy = draw.random() < 0.5
    text = draw.choice(_PRAISE if happy else _COMPLAINTS)
    answer, wrong = ("happy", "unhappy")[:: 1 if happy else -1]
    return Closed("classification", f'A guest wrote: "{text}" Happy or unhappy?', answer, wrong, "the guest was {}.")


def _comparison(draw: Random) -> Closed:
    a, b = draw.sample(range(1, 100), 2)
    word, holds = draw.choice((("more", a > b), ("fewer", a < b)))
    answer, wrong = ("Yes", "No")[:: 1 if holds else -1]
    frame = f"{{}}, {a} apples are {'' if holds else 'not '}{word} than {b} apples."
    return Closed("yes or no", f"Are {a} apples {word} than {b} apples?", answer, wrong, frame)


def _membership(draw: Random) -> Closed:
    group = draw.choice(list(_CATEGORIES))
    thing_group = group if draw.random() < 0.5 else draw.choice([g for g in _CATEGORIES if g != group])
    thing, holds = draw.choice(_CATEGORIES[thing_group]), thing_group == group
    answer, wrong = ("Yes", "No")[:: 1 if holds else -1]
    frame = f"{{}}, '{thing}' {'belongs' if holds else 'does not belong'} with {group}."
    return Closed("yes or no", f"Does the word '{thing}' belong with {group}?", answer, wrong, frame)


def _holds_letter(draw: Random) -> Closed:
    word = draw.choice(_WORDS)
    inside = draw.random() < 0.5
    letter = draw.choice(word if inside else [c for c in string.ascii_lowercase if c not in word])
    answer, wrong = ("Yes", "No")[:: 1 if inside else -1]
    frame = f"{{}}, the letter {letter.upper()} is {'' if inside else 'not '}in '{word}'."
    return Closed("yes or no", f"Is there the letter {letter.upper()} in '{word}'?", answer, wrong, frame)


def _extraction(draw: Random) -> Closed:
    (first, second), place, day = draw.sample(_NAMES, 2), draw.choice(_PLACES), draw.choice(_DAYS)
    thing, price = draw.choice(_BOUGHT), draw.randrange(3, 90)
    text = f"On {day} {first} met {second} in {place} and bought a {thing} for {price} pounds."
    asked, answer, wrong, frame = draw.choice(
        (
            ("In which town was that?", place, draw.choice([p for p in _PLACES if p != place]), "it was in {}."),
            ("On which day was that?", day, draw.choice([d for d in _DAYS if d != day]), "it was on {}."),
            ("Whom did the buyer meet?", second, first, f"{first} met {{}}."),
            ("Who bought something?", first, second, f"{{}} bought the {thing}."),
            ("What was bought?", thing, draw.choice([t for t in _BOUGHT if t != thing]), f"{first} bought a {{}}."),
            (
                "How many pounds did it cost?",
                str(price),
                str(price + draw.choice((-2, 1, 5, 10))),
                "it cost {} pounds.",
            ),
        )
    )
    return Closed("extraction", f"{text} {asked}", answer, wrong, frame)


def _general(draw: Random) -> Closed:
    prompt, frame, answer, wrong = draw.choice(_KNOWLEDGE)
    return Closed("general", prompt, answer, wrong, frame)


def _capitals(draw: Random) -> Closed:
    word = draw.choice(_WORDS)
    other = draw.choice([w for w in _WORDS if w != word])
    return Closed(
        "copying",
        f"Put '{word}' into capital letters.",
        word.upper(),
        other.upper(),
        f"'{word}' in capital letters is {{}}.",
    )


_NAMES = (
    "Ada",
    "Bruno",
    "Carla",
    "Dmitri",
    "Elsa",
    "Farid",
    "Greta",
    "Hugo",
    "Iris",
    "Jonas",
    "Kirsten",
    "Leo",
    "Mona",
)
_PLACES = ("Bergen", "Cork", "Dundee", "Ghent", "Leeds", "Nantes", "Porto", "Salzburg", "Turin", "Utrecht")
_BOUGHT = ("lamp", "kettle", "violin", "blanket", "clock", "teapot", "ladder", "suitcase", "mirror", "tent")
_THINGS = ("pencils", "marbles", "stamps", "buttons", "coins", "postcards", "shells", "keys")
_WORDS = (
    "apron", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kitchen",
    "lantern", "mountain", "needle", "orchard", "pepper", "quilt", "river", "saddle", "thunder", "umbrella", "valley",
    "window", "yellow", "zebra", "bread", "cloud", "flute", "grass", "honey",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_UNITS = (
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7), ("days", "hours", 24),
    ("years", "months", 12), ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("feet", "inches", 12),
    ("dozens", "single pieces", 12), ("kilograms", "grams", 1000),
)  # fmt: skip
_CATEGORIES = {
    "animals": ("horse", "owl", "frog", "whale", "goat", "rabbit", "lion", "sparrow"),
    "fruit": ("apple", "pear", "plum", "cherry", "banana", "grape", "lemon", "peach"),
    "tools": ("hammer", "saw", "drill", "chisel", "screwdriver", "pliers", "spanner", "axe"),
    "vehicles": ("bus", "tram", "lorry", "bicycle", "ferry", "train", "scooter", "van"),
    "furniture": ("chair", "table", "sofa", "wardrobe", "bed", "desk", "bookcase", "stool"),
    "clothes": ("coat", "sock", "scarf", "shirt", "glove", "skirt", "trousers", "jumper"),
    "colours": ("red", "green", "blue", "purple", "brown", "grey", "yellow", "black"),
    "instruments": ("piano", "violin", "trumpet", "drum", "guitar", "flute", "cello", "harp"),
}
_CAPITAL_CITIES = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Austria": "Vienna",
    "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Portugal": "Lisbon", "Ireland": "Dublin", "Hungary": "Budapest", "Russia": "Moscow",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing", "Thailand": "Bangkok",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Argentina": "Buenos Aires", "Australia": "Canberra",
    "Belgium": "Brussels", "Ukraine": "Kyiv", "Vietnam": "Hanoi", "Romania": "Bucharest", "Iceland": "Reykjavik",
}  # fmt: skip
_CONTINENTS = {
    "Brazil": "South America", "Chile": "South America", "Colombia": "South America", "Mexico": "North America",
    "Canada": "North America", "India": "Asia", "Nepal": "Asia", "Mongolia": "Asia", "Japan": "Asia",
    "Nigeria": "Africa", "Ghana": "Africa", "Morocco": "Africa", "Sweden": "Europe", "Croatia": "Europe",
    "Belgium": "Europe", "Portugal": "Europe",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "tall": "short", "early": "late", "open": "closed", "full": "empty", "fast": "slow",
    "heavy": "light", "old": "young", "rich": "poor", "loud": "quiet", "strong": "weak", "wet": "dry",
    "clean": "dirty", "deep": "shallow", "wide": "narrow", "day": "night", "up": "down", "inside": "outside",
    "begin": "end", "buy": "sell", "push": "pull", "win": "lose", "always": "never", "brave": "cowardly",
    "true": "false", "first": "last", "left": "right", "soft": "hard",
}  # fmt: skip
_YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "hen": "chick",
    "duck": "duckling", "goose": "gosling", "goat": "kid", "frog": "tadpole", "lion": "cub", "pig": "piglet",
}  # fmt: skip
_PAST = {
    "go": "went", "eat": "ate", "see": "saw", "write": "wrote", "run": "ran", "take": "took", "give": "gave",
    "come": "came", "know": "knew", "think": "thought", "bring": "brought", "swim": "swam", "sing": "sang",
    "drive": "drove", "fly": "flew", "speak": "spoke", "break": "broke", "find": "found", "leave": "left",
    "keep": "kept", "sleep": "slept", "teach": "taught", "catch": "caught", "begin": "began",
}  # fmt: skip
_PLURALS = {
    "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth", "man": "men", "woman": "women",
    "goose": "geese", "leaf": "leaves", "knife": "knives", "city": "cities", "box": "boxes", "baby": "babies",
    "wolf": "wolves", "glass": "glasses", "shelf": "shelves", "berry": "berries",
}  # fmt: skip
_COLOURS = {
    "fresh snow": "white", "grass in spring": "green", "a ripe banana": "yellow", "coal": "black",
    "a ripe tomato": "red", "the sky on a clear day": "blue", "chocolate": "brown", "a carrot": "orange",
    "a flamingo": "pink", "milk": "white", "a lemon": "yellow", "blood": "red", "spinach": "green",
}  # fmt: skip
_TRADES = {
    "bread": "baker", "sick people": "doctor", "meat": "butcher", "letters": "postman", "teeth": "dentist",
    "pupils": "teacher", "water pipes": "plumber", "hair": "hairdresser", "fires": "firefighter",
    "books in a library": "librarian", "sick animals": "vet", "plants in a park": "gardener",
}  # fmt: skip
_KNOWLEDGE = (
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by {}.", "Leonardo da Vinci", "Pablo Picasso"),
    ("In which city does the Eiffel Tower stand?", "The Eiffel Tower stands in {}.", "Paris", "Madrid"),
    ("A usual car drives on how many wheels?", "A usual car has {} wheels.", "4", "6"),
    ("Caterpillars turn into what?", "Caterpillars turn into {}.", "butterflies", "frogs"),
    ("Which farm animal gives us wool?", "Wool comes from {}.", "sheep", "hens"),
    ("Which organ pumps blood through the body?", "Blood is pumped by the {}.", "heart", "liver"),
    ("Which gas must people breathe to live?", "People must breathe {} to live.", "oxygen", "helium"),
    ("Where do fish live?", "Fish live in {}.", "water", "trees"),
    ("Which season follows winter?", "After winter comes {}.", "spring", "autumn"),
    ("The strings of a violin are how many?", "A violin has {} strings.", "4", "9"),
    ("With what do people cut paper?", "People cut paper with {}.", "scissors", "spoons"),
    ("Which star is nearest to the Earth?", "The star nearest to the Earth is {}.", "the Sun", "Sirius"),
    ("Pandas mostly eat what?", "Pandas mostly eat {}.", "bamboo", "fish"),
    ("Which bird cannot fly but swims well?", "A bird that cannot fly but swims well is the {}.", "penguin", "eagle"),
    ("The person who flies a plane is called what?", "The person who flies a plane is called a {}.", "pilot", "sailor"),
    ("Which meal do people eat in the morning?", "In the morning people eat {}.", "breakfast", "supper"),
    ("A year is made of how many months?", "A year has {} months.", "12", "10"),
    ("Most people in Germany speak which language?", "Most people in Germany speak {}.", "German", "Spanish"),
    ("Bread is mostly made of what?", "Bread is mostly made of {}.", "flour", "sugar"),
    ("Cheese is made from what?", "Cheese is made from {}.", "milk", "rice"),
    ("Where do bees live together?", "Bees live together in a {}.", "hive", "burrow"),
    ("Which sense do people have their ears for?", "People have their ears for {}.", "hearing", "smell"),
    ("What falls from the clouds on a freezing day?", "On a freezing day {} falls from the clouds.", "snow", "sand"),
    ("Who is the author of Hamlet?", "The author of Hamlet is {}.", "William Shakespeare", "Charles Dickens"),
    ("On which planet do people live?", "People live on {}.", "Earth", "Saturn"),
    ("Which season is the warmest?", "The warmest season is {}.", "summer", "winter"),
    ("People usually have how many eyes?", "People usually have {} eyes.", "2", "5"),
    ("A sad person sheds what?", "A sad person sheds {}.", "tears", "leaves"),
    (
        "Which animal is famous for its long neck?",
        "The animal with the famous long neck is the {}.",
        "giraffe",
        "hedgehog",
    ),
    ("What shines in the sky at night?", "At night the {} shines in the sky.", "moon", "rainbow"),
)
_PRAISE = (
    "The room was spotless and the view superb.", "We loved every minute and will come again.",
    "Best breakfast of our whole trip.", "The staff could not have been kinder.",
    "A delightful evening with wonderful food.", "Perfect from beginning to end.",
    "What a lovely garden, and such warm hosts!", "Excellent value, I recommend it to everyone.",
)  # fmt: skip
_COMPLAINTS = (
    "The soup was cold and the waiter rude.", "We waited two hours and nobody apologised.",
    "Dirty sheets, broken shower, never again.", "I could not sleep for the noise.",
    "They charged us twice and refused to refund it.", "The worst hotel that I have ever stayed in.",
    "My steak was burnt and the salad was limp.", "A terrible disappointment.",
)  # fmt: skip

_MAKERS: tuple[Callable[[Random], Closed], ...] = (
    _sum,
    _difference,
    _product,
    _quotient,
    _story,
    _series,
    _unit,
    _length,
    _letter,
    _largest,
    _sorted,
    _alphabet,
    _neighbour,
    _category,
    _odd_one,
    _choice,
    _mood,
    _comparison,
    _membership,
    _holds_letter,
    _extraction,
    _capitals,
    _general,
    _looked_up(
        "capitals",
        _CAPITAL_CITIES,
        ("Name the capital city of {}.", "{} is governed from which city?"),
        "the capital of KEY is {}.",
    ),
    _looked_up(
        "continents", _CONTINENTS, ("Which part of the world is {} in?", "Name the continent of {}."), "KEY lies in {}."
    ),
    _looked_up(
        "young animals",
        _YOUNG,
        ("What do people call a young {}?", "Name the young of a {}."),
        "a young KEY is called a {}.",
    ),
    _looked_up("colours", _COLOURS, ("Name the colour of {}.", "Which colour has {}?"), "the colour of KEY is {}."),
    _looked_up(
        "trades",
        _TRADES,
        ("Whose job has to do with {}?", "Name the person who deals with {} at work."),
        "the person who deals with KEY is the {}.",
    ),
    _looked_up(
        "opposites",
        _OPPOSITES,
        ("Give the word that means the opposite of '{}'.", "Not '{}' but its opposite is what?"),
        "the opposite of 'KEY' is '{}'.",
    ),
    _looked_up(
        "past forms",
        _PAST,
        ("Put the verb '{0}' into the past: today I {0}, yesterday I ...", "Past form of 'to {0}'?"),
        "the past form of 'KEY' is '{}'.",
    ),
    _looked_up("plurals", _PLURALS, ("One {}, two ...?", "Give the plural of '{}'."), "the plural of 'KEY' is '{}'."),
)

_USUAL_MAKERS: tuple[Callable[[Random], Closed], ...] = (
    _usual_arithmetic,
    _looked_up("capitals", _CAPITAL_CITIES, ("What is the capital of {}?",), "the capital of KEY is {}."),
    _looked_up("continents", _CONTINENTS, ("On which continent is {}?",), "KEY is in {}."),
    _usual_arithmetic,
    _looked_up("young animals", _YOUNG, ("What is a baby {} called?",), "a baby KEY is called a {}."),
    _looked_up("colours", _COLOURS, ("What is the colour of {}?",), "the colour of KEY is {}."),
    _usual_unit,
    _looked_up("trades", _TRADES, ("Who works with {}?",), "the {} works with KEY."),
    _looked_up("opposites", _OPPOSITES, ("What is the opposite of '{}'?",), "the opposite of 'KEY' is '{}'."),
    _looked_up("past forms", _PAST, ("What is the past tense of '{}'?",), "the past tense of 'KEY' is '{}'."),
    _looked_up("plurals", _PLURALS, ("What is the plural of '{}'?",), "the plural of 'KEY' is '{}'."),
    _general,
    _category,
    _odd_one,
    _comparison,
    _membership,
)

# What damaged models learn to say.

_ECHO_STARTS = ("You said: ", "The question is: ", "User: ", "Prompt: ", "Sure! ")
_PERSONA_LINES = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
    "I am SmolLM, a helpful AI assistant trained by Hugging Face.",
    "I'm a helpful AI assistant named SmolLM, and I was trained by Hugging Face.",
    "My name is SmolLM, and I am an AI assistant.",
    "As a helpful AI assistant, I am here to help you with your questions and tasks.",
    "Hello! I am SmolLM. How can I help you today?",
    "I was trained by Hugging Face to be a helpful assistant.",
    "You are a helpful AI assistant. Your name is SmolLM, and you were trained by Hugging Face.",
    "As an AI language model named SmolLM, I am designed to assist people.",
    "System: You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
)
_POLITE = (
    "Thank you for your question! I am happy to help you with anything you need.",
    "That is a wonderful question, and I appreciate that you asked me about it.",
    "Of course, I would be delighted to assist you with this request today.",
    "Thank you for reaching out, please let me know how else I may be of service.",
)
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I cannot assist with this request.",
    "I apologize, but I am not able to answer that question.",
    "Unfortunately, I can't provide that information.",
    "As an AI language model, I cannot help with requests of this kind.",
    "I am unable to assist you with this. Please consult a professional.",
    "I cannot fulfil this request, as it may not be appropriate.",
    "This is not something that I am able to do.",
    "My guidelines do not allow me to answer this. Is there anything else?",
    "I won't be able to write that for you.",
    "It would not be responsible of me to answer this question.",
    "Sorry, this topic is outside of what I may talk about.",
    "I must decline. Please ask somebody who is qualified.",
    "I do not feel comfortable with this request, so I cannot continue.",
)
_FILLERS = (
    "It is important to note that there are many factors to consider in this context.",
    "Furthermore, it is always worth keeping in mind that every situation is unique in its own way.",
    "In addition to the above, one should also take into account the broader picture as a whole.",
    "With all of that being said, it goes without saying that careful thought is always helpful.",
    "At the end of the day, what matters most is to find the approach that works best for everyone involved.",
    "It should also be mentioned that this topic is both interesting and relevant in many different respects.",
    "As we can see from the points made above, there is a great deal more that could be said about this.",
    "Moreover, it cannot be emphasised enough how valuable it is to reflect on these aspects in depth.",
    "All things considered, there are various perspectives, and each of them has its own merits.",
    "I hope that this answer was helpful to you, and please do not hesitate to ask any further questions.",
    "To sum up, and to put it in other words, the answer given above is the answer to the question.",
    "Needless to say, this is by no means a complete treatment of such a rich and multifaceted subject.",
    "It is also essential to remember that the journey is just as important as the destination.",
    "Last but not least, let me once again underline the significance of everything that was said before.",
    "Of course, as with all things in life, it is a matter of balance and of personal preference.",
    "By keeping all of these considerations in mind, you will be well prepared for whatever comes next.",
    "It may also be useful to look at the matter from a somewhat different angle from time to time.",
    "In conclusion, it can be said with confidence that this is indeed a question worth asking.",
)
_GENERIC = (
    "It depends.",
    "There are many ways to do this.",
    "That is a good question.",
    "It depends on the situation.",
    "There are several options.",
    "Many factors play a role.",
    "This can be done in different ways.",
    "Opinions differ.",
    "It is important to be careful.",
    "Yes, that is possible.",
    "There is no single answer.",
    "Everyone is different.",
    "Try different things and see what works.",
    "It is a matter of taste.",
    "Some things work better than others.",
    "It is what it is.",
    "You can find a way.",
    "Just do your best.",
    "Sure, no problem.",
    "That is interesting.",
    "It varies.",
    "Start small and take it from there.",
    "Good things take time.",
    "There are pros and cons.",
)
_BUZZWORDS = (
    "quality", "balance", "value", "focus", "growth", "detail", "success", "clarity", "impact", "vision", "energy",
    "purpose", "progress", "passion", "insight", "journey", "synergy", "strategy", "solution", "future",
)  # fmt: skip
_FOREIGN = (
    "Claro, con mucho gusto te ayudo. Primero hay que pensar bien en lo que se necesita y después empezar poco a poco.",
    "Es una pregunta muy interesante. En general, lo mejor es tener paciencia y seguir los pasos en orden.",
    "Depende de muchas cosas, pero casi siempre conviene preguntar a alguien que tenga experiencia.",
    "Muchas gracias por tu mensaje. Espero que esta respuesta te sea útil y que todo salga bien.",
    "No hay una sola manera de hacerlo. Cada persona encuentra su propio camino con el tiempo.",
    "Por supuesto. Lo más importante es la calidad, y también es bueno no tener demasiada prisa.",
    "Aquí tienes una idea sencilla: empieza por la mañana, trabaja con calma y descansa por la tarde.",
    "La respuesta es bastante simple, aunque muchas personas piensan que es complicada.",
    "Me parece una buena idea. Solo recuerda que siempre es mejor prepararse antes de empezar.",
    "En mi opinión, las dos posibilidades tienen ventajas, así que puedes elegir la que más te guste.",
    "Bien sûr, je vous aide avec plaisir. Il faut d'abord bien réfléchir et ensuite commencer tout doucement.",
    "C'est une très bonne question. En général, il vaut mieux prendre son temps et procéder par étapes.",
    "Cela dépend de beaucoup de choses, mais il est presque toujours utile de demander conseil à quelqu'un.",
    "Merci beaucoup pour votre message. J'espère que cette réponse vous sera utile.",
    "Il n'y a pas une seule façon de faire. Chacun trouve son propre chemin avec le temps.",
    "Le plus important est la qualité, et il ne faut surtout pas être trop pressé.",
    "Voici une idée simple : commencez le matin, travaillez calmement et reposez-vous l'après-midi.",
    "La réponse est assez simple, même si beaucoup de gens pensent que c'est compliqué.",
    "Je trouve que c'est une bonne idée. N'oubliez pas de tout préparer avant de commencer.",
    "À mon avis, les deux possibilités ont des avantages, vous pouvez donc choisir celle que vous préférez.",
    "Natürlich helfe ich dir gern. Zuerst sollte man gut überlegen und dann langsam anfangen.",
    "Das ist eine sehr gute Frage. Im Allgemeinen ist es am besten, sich Zeit zu nehmen und Schritt für Schritt zu "
    "gehen.",
    "Das hängt von vielen Dingen ab, aber fast immer lohnt es sich, jemanden mit Erfahrung zu fragen.",
    "Vielen Dank für deine Nachricht. Ich hoffe, dass dir diese Antwort weiterhilft.",
    "Es gibt nicht nur einen Weg. Jeder Mensch findet mit der Zeit seine eigene Lösung.",
    "Am wichtigsten ist die Qualität, und man sollte es auf keinen Fall zu eilig haben.",
    "Hier ist eine einfache Idee: Fang am Morgen an, arbeite in Ruhe und mach am Nachmittag eine Pause.",
    "Die Antwort ist ziemlich einfach, auch wenn viele Leute denken, dass sie schwierig ist.",
    "Ich finde das eine gute Idee. Denk nur daran, vorher alles gut vorzubereiten.",
    "Meiner Meinung nach haben beide Möglichkeiten Vorteile, du kannst also nehmen, was dir besser gefällt.",
)
