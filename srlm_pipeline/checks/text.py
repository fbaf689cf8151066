"""How a text is read: words, sentences and language, in the way that IFEval's published figures count them.

What was learned from text comes with packages; nothing is downloaded. Imports lie inside the functions because some
take seconds.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

_WORD = re.compile(r"\w+")
_SEED = 0


def count_words(text: str) -> int:
    """Return the number of runs of letters, digits and underscores."""
    return sum(1 for _ in _WORD.finditer(text))


def split_sentences(text: str) -> list[str]:
    """Return a text's sentences by the English Punkt model (Kiss and Strunk 2006), whatever the language."""
    return list(_sentence_model().tokenize(text))


def capital_words(text: str) -> int:
    """Return the number of Penn Treebank tokens with capital letters and no small ones."""
    words = _word_rules()
    return sum(token.isupper() for sentence in split_sentences(text) for token in words.tokenize(sentence))


def detect_language(text: str) -> str | None:
    """Return the most likely language's ISO 639-1 code; None for a text without letters.

    The detector draws samples; a fixed seed gives a text the same answer each time.
    """
    from langdetect import LangDetectException

    detector = _language_profiles().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def likely_language(text: str, least: float = 0.95) -> str | None:
    """Return a text's language if the detector is sure of it; None else.

    Args:
        text: Short texts and code are often taken for some language or other, with less certainty.
        least: Probability, by the detector.
    """
    from langdetect import LangDetectException

    detector = _language_profiles().create()
    detector.append(text)
    try:
        found = detector.get_probabilities()
    except LangDetectException:
        return None
    return str(found[0].lang) if found and found[0].prob >= least else None


def known_languages() -> frozenset[str]:
    """Return the codes that `detect_language` can answer."""
    return frozenset(_language_profiles().get_lang_list())


@cache
def _sentence_model() -> PunktSentenceTokenizer:
    import punkt
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    # NLTK has the algorithm but would download the model; the package `punkt` carries the same model as Python
    # literals, but its own algorithm takes "?!" for one end of a sentence and NLTK's for two.
    learned, parameters = punkt.load_model("english"), PunktParameters()
    parameters.abbrev_types = learned.abbrev_types
    parameters.collocations = learned.collocations
    parameters.sent_starters = learned.sent_starters
    parameters.ortho_context.update(learned.ortho_context)
    return PunktSentenceTokenizer(parameters)


@cache
def _word_rules() -> NLTKWordTokenizer:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@cache
def _language_profiles() -> DetectorFactory:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    # Not the module's own one: its seed belongs to everyone in the process.
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(_SEED)
    return factory
