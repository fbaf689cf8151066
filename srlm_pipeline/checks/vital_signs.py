"""What is wrong with a reply at first sight, told without a judge: it loops, copies the prompt, recites, refuses, ...

A judge that the loop trains may come to like such replies; these rules do not learn. They read words, not meaning, and
their stock phrases are English: in other languages refusals and persona lines go unseen, the other signs do not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rapidfuzz import process
from rapidfuzz.distance import Indel

from srlm_pipeline.checks.text import likely_language
from srlm_pipeline.checks.text_measures import repeated_ngrams

Sign = Literal["loops", "echoes", "recites", "empty", "refuses", "other_language"]
SIGNS: tuple[Sign, ...] = get_args(Sign)
# Of a reply that is nothing but one of these, nothing that a program checks is believed.
WRECKS: tuple[Sign, ...] = ("loops", "echoes", "recites", "empty")

# Not a fault of the reply: the token limit is ours.
CUT_OFF = "cut_off"

# Of scripts without blanks every character is a word.
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
_TOKEN = re.compile(rf"\d+(?:[.,]\d+)*|{_UNSPACED}|\w+|[^\w\s]")
# Those of a list differ, and say nothing.
_LIST_NUMBER = re.compile(r"(?<!\S)\d+(?=[.)]\s)")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
# Copies of a unit that follow each other; a refrain may come twice, a laugh three times.
_COPIES, _LONGEST_UNIT, _SHORTEST_RUN = 3, 48, 8
_LOOPED_SHARE, _REPEATED_4GRAMS, _ENOUGH_WORDS = 0.3, 0.5, 24
# Of one character, marks for tables and rules left out: "aaaaaaaaaaaa".
_ONE_CHARACTER = re.compile(r"([^\s\-=_*#~.|:+])\1{11,}")
# Words in a row that a reply has from its prompt.
_COPIED_RUN, _COPIED_SHARE, _COPIED_BEYOND_REFERENCE = 4, 0.5, 0.3
_RECITED_RUN = 6
# As many replies to other prompts make a sentence a stock sentence, and so many words a sentence worth it.
_STOCK_REPLIES, _STOCK_WORDS, _STOCK_SHARE, _NEARLY_THE_SAME, _COMPARED_WORDS = 3, 6, 0.5, 0.8, 64
_LANGUAGE_WORDS = 12

_PERSONA = re.compile(
    r"\b(?:as an? (?:[\w-]+ )?(?:ai|artificial intelligence|language model|virtual assistant|chatbot)\b"
    r"|i(?: am|['\u2019]m) (?:an? |your )?(?:helpful )?(?:ai|artificial intelligence|language model"
    r"|large language model|virtual assistant|chatbot)\b"
    r"|(?:i am|i['\u2019]m|you are) an? (?:helpful|friendly|knowledgeable) (?:ai|assistant)\b"
    r"|trained by (?:hugging ?face|openai|anthropic|google|meta|alibaba|mistral)\b)",
    re.IGNORECASE,
)
_ASKS_WHO = re.compile(r"\b(?:who|what) are you\b|\byour name\b|\byourself\b|\bare you an? ", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i['\u2019]?m|i am|we are|we['\u2019]re) (?:very |so |truly )?sorry\b|sorry,|i apologi[sz]e\b"
    r"|unfortunately,? i\b"
    r"|as an? (?:ai|language model|assistant)[^.]*\b(?:can(?:not|['\u2019]t)|unable|don['\u2019]t)\b"
    r"|i (?:can(?:not|['\u2019]t)|am unable to|am not able to|won['\u2019]t|will not) "
    r"(?:help|assist|provide|answer|do|fulfil|fulfill|complete|comply|respond|write|create|generate|offer"
    r"|give (?:you|that|this|any|advice|out))\b"
    r"|i['\u2019]m (?:unable|not able) to\b)",
    re.IGNORECASE,
)
_ASKS_FOR_ANOTHER_LANGUAGE = re.compile(
    r"\b(?:translat\w*|arabic|chinese|czech|danish|dutch|finnish|french|german|greek|hebrew|hindi|hungarian|italian"
    r"|japanese|korean|latin|norwegian|persian|polish|portuguese|romanian|russian|spanish|swahili|swedish|tamil|thai"
    r"|turkish|ukrainian|urdu|vietnamese|welsh|irish|esperanto|bengali|bulgarian|croatian|indonesian|catalan)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|$)|`[^`]*`", re.DOTALL)


@dataclass(frozen=True)
class Exchange:
    """A prompt and a reply, with what is needed to read them fairly.

    Attributes:
        prompt: The user's message.
        reply: The model's.
        reference: A good reply, where one is known: what it copies from the prompt, and its language, is no fault.
        repeatable: A part of the prompt that the reply is asked to repeat.
    """

    prompt: str
    reply: str
    reference: str | None = None
    repeatable: str = ""


@dataclass(frozen=True)
class Mark:
    """A place in a reply that shows a sign: characters `start` to `end`, the end not included."""

    start: int
    end: int
    sign: Sign


def read_signs(exchanges: Sequence[Exchange], system_prompt: str = "") -> list[frozenset[Sign]]:
    """Return what is wrong with each reply of one model; all its replies are read together.

    Args:
        exchanges: Of one model. Together, because a stock sentence shows only in several replies.
        system_prompt: What the chat template puts before a conversation by itself.
    """
    stock = _stock_places(exchanges)
    return [_signs(exchange, system_prompt, place in stock) for place, exchange in enumerate(exchanges)]


def name_signs(exchanges: Sequence[Exchange], cut_off: Sequence[bool], system_prompt: str = "") -> list[str]:
    """Return what is wrong with each reply of one model in words, commas between them; blank if nothing is.

    Args:
        exchanges: Of one model, read together.
        cut_off: Whether the token limit ended a reply, which is wrong too.
        system_prompt: What the chat template puts before a conversation by itself.
    """
    read = read_signs(exchanges, system_prompt)
    return [",".join([*sorted(signs), *([CUT_OFF] * ended)]) for signs, ended in zip(read, cut_off, strict=True)]


def find_marks(exchange: Exchange, system_prompt: str = "") -> tuple[Mark, ...]:
    """Return the places of a reply that loop, are copied from the prompt, or recite, in their order.

    Places of different signs may overlap. A place alone does not condemn a reply: `read_signs` weighs them.
    """
    reply = exchange.reply
    found = [Mark(a, b, "loops") for a, b in _looped(reply)]
    found += [Mark(a, b, "echoes") for a, b in _copied(reply, _without(exchange.prompt, exchange.repeatable))]
    if not _ASKS_WHO.search(exchange.prompt):
        found += [Mark(m.start(), m.end(), "recites") for m in _PERSONA.finditer(reply)]
        found += [Mark(a, b, "recites") for a, b in _copied(reply, system_prompt, _RECITED_RUN)]
    found += [Mark(m.start(), m.end(), "refuses") for m in [_REFUSAL.search(reply)] if m]
    return tuple(sorted(found, key=lambda mark: (mark.start, mark.end, mark.sign)))


def looped_share(reply: str) -> float:
    """Return the share of a reply's characters that stand in immediate repetitions, in 0..1; 0 of an empty one."""
    return _covered(_looped(reply)) / len(reply) if reply else 0.0


def echo_share(exchange: Exchange) -> float:
    """Return the share of a reply's words that stand in runs copied from its prompt, in 0..1; 0 without words."""
    words = len(_WORD.findall(exchange.reply))
    copied = _copied(exchange.reply, _without(exchange.prompt, exchange.repeatable))
    return sum(len(_WORD.findall(exchange.reply[a:b])) for a, b in copied) / words if words else 0.0


def _signs(exchange: Exchange, system_prompt: str, stock: bool) -> frozenset[Sign]:
    reply = exchange.reply
    if not reply.strip():
        return frozenset({"empty"})
    marks = find_marks(exchange, system_prompt)
    found: set[Sign] = {mark.sign for mark in marks if mark.sign in ("recites", "refuses")}
    if stock:
        found.add("recites")
    words = len(_WORD.findall(reply))
    if looped_share(reply) >= _LOOPED_SHARE or (words >= _ENOUGH_WORDS and _repeats(reply)):
        found.add("loops")
    if _echoes(exchange):
        found.add("echoes")
    # A word sixty times is in whatever language it happens to resemble.
    if "loops" not in found and _in_other_language(exchange):
        found.add("other_language")
    return frozenset(found)


def _repeats(reply: str) -> bool:
    # A numbered list of the same item is a loop all the same.
    return repeated_ngrams(_LIST_NUMBER.sub("0", reply)) >= _REPEATED_4GRAMS


def _looped(text: str) -> list[tuple[int, int]]:
    """Return the places of runs of one unit, at least three copies of it; list numbers count as alike."""
    numbers = {m.end() for m in _LIST_NUMBER.finditer(text)}
    tokens = [(m.start(), m.end(), "0" if m.end() in numbers else m[0].lower()) for m in _TOKEN.finditer(text)]
    names = [name for _, _, name in tokens]
    places = [(m.start(), m.end()) for m in _ONE_CHARACTER.finditer(text)]
    for period in range(1, min(_LONGEST_UNIT, len(names) // _COPIES) + 1):
        run = 0
        for place in range(period, len(names) + 1):
            if place < len(names) and names[place] == names[place - period]:
                run += 1
                continue
            length = run + period
            if run >= period * (_COPIES - 1) and length >= _SHORTEST_RUN:
                first = place - length
                # Rules, tables' dividers and counting up are no loops: a unit has a word, or is not only digits.
                if any(name.isalpha() for name in names[first : first + period]) or _same(
                    text, tokens[first:place], period
                ):
                    places.append((tokens[first][0], tokens[place - 1][1]))
            run = 0
    return _merged(places)


def _same(text: str, tokens: Sequence[tuple[int, int, str]], period: int) -> bool:
    """Tell whether a run without words is one of numbers that stay the same: "1. 1. 1.", not "1, 2, 3"."""
    written = [text[a:b] for a, b, _ in tokens]
    numbers = [i for i, token in enumerate(written) if token[0].isdigit()]
    return bool(numbers) and all(written[i] == written[i - period] for i in numbers if i >= period)


def _echoes(exchange: Exchange) -> bool:
    prompt = _WORD.findall(_without(exchange.prompt, exchange.repeatable).lower())
    reply = _WORD.findall(exchange.reply.lower())
    if prompt and reply == prompt:
        return True
    share = echo_share(exchange)
    if share < _COPIED_SHARE:
        return False
    if exchange.reference is not None:
        copied_by_people = echo_share(Exchange(exchange.prompt, exchange.reference))
        return share >= copied_by_people + _COPIED_BEYOND_REFERENCE
    # A sentence quoted from a text in the prompt is no copy of the prompt.
    return share * len(reply) >= _COPIED_SHARE * len(prompt)


def _copied(text: str, source: str, run: int = _COPIED_RUN) -> list[tuple[int, int]]:
    """Return the places of a text whose words stand in the source in the same order, `run` of them or more."""
    known = _grams([m[0].lower() for m in _WORD.finditer(source)], run)
    words = [(m.start(), m.end(), m[0].lower()) for m in _WORD.finditer(text)]
    names = [name for _, _, name in words]
    return _merged(
        [(words[i][0], words[i + run - 1][1]) for i, gram in enumerate(_ordered_grams(names, run)) if gram in known]
    )


def _stock_places(exchanges: Sequence[Exchange]) -> set[int]:
    """Return the places of replies that say, in most of their words, what replies to other prompts say as well."""
    prompts = [" ".join(e.prompt.split()) for e in exchanges]
    sentences = [[s for s in _sentences(e.reply) if len(s) >= _STOCK_WORDS] for e in exchanges]
    said: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for prompt, spoken in zip(prompts, sentences, strict=True):
        for sentence in spoken:
            said[sentence].add(prompt)
    found = set()
    for place, spoken in enumerate(sentences):
        stock = sum(n * len(s) for s, n in Counter(spoken).items() if len(said[s]) >= _STOCK_REPLIES)
        if stock and stock >= _STOCK_SHARE * len(_WORD.findall(exchanges[place].reply)):
            found.add(place)
    return found | _the_same(exchanges, prompts) | _nearly_the_same(exchanges, prompts)


def _the_same(exchanges: Sequence[Exchange], prompts: Sequence[str]) -> set[int]:
    """Return the places of replies of two words or more that reply to other prompts as well, word for word.

    An answer that the prompt itself offers, as one of a few to choose from, is none.
    """
    words = [tuple(w.lower() for w in _WORD.findall(e.reply)) for e in exchanges]
    asked: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for spoken, prompt in zip(words, prompts, strict=True):
        asked[spoken].add(prompt)
    return {
        place
        for place, (spoken, exchange) in enumerate(zip(words, exchanges, strict=True))
        if len(spoken) > 1
        and len(asked[spoken]) >= _STOCK_REPLIES
        and spoken not in _grams([w.lower() for w in _WORD.findall(exchange.prompt)], len(spoken))
    }


def _nearly_the_same(exchanges: Sequence[Exchange], prompts: Sequence[str]) -> set[int]:
    words = [tuple(w.lower() for w in _WORD.findall(e.reply)[:_COMPARED_WORDS]) for e in exchanges]
    long = [i for i, spoken in enumerate(words) if len(spoken) >= _STOCK_WORDS]
    if not long:
        return set()
    texts = [words[i] for i in long]
    alike = process.cdist(
        texts, texts, scorer=Indel.normalized_similarity, processor=None, score_cutoff=_NEARLY_THE_SAME
    )
    return {
        i
        for i, row in zip(long, alike, strict=True)
        if len({prompts[j] for j, near in zip(long, row, strict=True) if near > 0}) >= _STOCK_REPLIES
    }


def _in_other_language(exchange: Exchange) -> bool:
    if _ASKS_FOR_ANOTHER_LANGUAGE.search(exchange.prompt):
        return False
    spoken = _language(_CODE.sub(" ", exchange.reply), _LANGUAGE_WORDS)
    if spoken is None:
        return False
    expected = {_language(text, _LANGUAGE_WORDS // 2) for text in (exchange.prompt, exchange.reference or "")} - {None}
    return bool(expected) and spoken not in expected


def _language(text: str, least: int) -> str | None:
    words = sum(token.isalnum() for token in _TOKEN.findall(text))
    return likely_language(text) if words >= least else None


def _sentences(text: str) -> Iterator[tuple[str, ...]]:
    for sentence in _SENTENCE.findall(text):
        yield tuple(word.lower() for word in _WORD.findall(sentence))


def _ordered_grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _grams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return set(_ordered_grams(words, n))


def _without(text: str, part: str) -> str:
    return text.replace(part, " ") if part.strip() else text


def _merged(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _covered(places: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in places)
