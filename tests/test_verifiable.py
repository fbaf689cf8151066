"""Verifiable instructions: each kind on cases worked by hand, both data sets, the figures, and the arbiter."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srlm_pipeline.checks.instructions import KINDS
from srlm_pipeline.checks.text import detect_language, likely_language
from srlm_pipeline.checks.verifiable import (
    Instruction,
    VerifiablePrompt,
    load_verifiable,
    verifiable_digest,
)
from srlm_pipeline.config import DataSettings, VerifiableSettings, load_settings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.evaluation.head_to_head import Comparison, play_match
from srlm_pipeline.evaluation.verifiable_accuracy import (
    check_reply,
    measure_verifiable,
    shares_followed,
    verifiable_table,
)
from srlm_pipeline.evaluation.verifier_arbiter import VerifierArbiter
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.prompting.filters import NoveltyIndex
from srlm_pipeline.tables import VERIFIABLE, read_table, write_table

IFEVAL = Path(__file__).parents[2] / "shared" / "data" / "ifeval" / "input_data.jsonl"
EMBEDDED = load_verifiable(VerifiableSettings())

# Kind, what it asks for, a reply, whether the reply follows it.
CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("punctuation:no_comma", {}, "No. Commas; here: at all!", True),
    ("punctuation:no_comma", {}, "1,000", False),
    ("change_case:english_lowercase", {}, "this is all written in small letters, as you can see.", True),
    ("change_case:english_lowercase", {}, "this is written in small letters, except for One.", False),
    ("change_case:english_lowercase", {}, "das hier ist ganz und gar in deutscher sprache geschrieben.", False),
    ("change_case:english_capital", {}, "THIS IS WRITTEN IN CAPITAL LETTERS, AND IT IS IN ENGLISH.", True),
    ("change_case:english_capital", {}, "THIS IS WRITTEN IN CAPITAL LETTERS, nearly.", False),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 3},
        "I SAW A cat",
        True,
    ),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 3}, "AN ice", False),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "A-B-C", True),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "DON'T", False),
    ("keywords:existence", {"keywords": ["art", "sea"]}, "A party by the SEASIDE", True),
    ("keywords:existence", {"keywords": ["art", "sea"]}, "A party in the woods", False),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Gone is the goat.", True),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Gone.", False),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Gone.", True),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Go on, go.", False),
    ("keywords:forbidden_words", {"forbidden_words": ["art", "sea"]}, "A party at the seaside", True),
    ("keywords:forbidden_words", {"forbidden_words": ["art", "sea"]}, "At SEA.", False),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, "Even eels", True),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 4, "let_relation": "at least"}, "Eels see", True),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 5, "let_relation": "at least"}, "Eels see", False),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, "Oh!", True),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, "Oh!!", False),
    ("language:response_language", {"language": "fr"}, "Bonjour, je voudrais savoir où se trouve la gare.", True),
    ("language:response_language", {"language": "fr"}, "Good morning, I would like to know the way.", False),
    ("language:response_language", {"language": "th"}, "สวัสดีครับ ยินดีที่ได้รู้จัก", True),
    ("language:response_language", {"language": "fr"}, "1 + 1 = 2!", True),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "Dr. Li ran. So? Yes!", True),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "Dr. Li ran. So?", False),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "It cost 3.50 p.a.", True),
    # NLTK's Punkt takes every mark for an end.
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "What?!", False),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "well-known, isn't", True),
    ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}, "well-known, isn't", False),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "Only two!", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "Now three words", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\nOne *** Two\n***", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n\nTwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n***\nTwo", False),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "One.\n\n'\"then, two.",
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "One.\n\nThen two.\n\nThen three.",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "One.\n\nThenceforth two.",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "One.\n\n\n\nThen two.",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], see you at [place] on [", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name\n], see you at [place]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\np. s. one more thing", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nPS one more thing", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP. P.S one more thing", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.S. one more thing", False),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "Bye\nn.b. one more thing", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "These:\n * one\n- two", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two\n* three", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* one", True),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe. Sorry.", True),
    ("detectable_format:constrained_response", {}, "my answer is yes.", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and ** ** and *t\nwo*", False),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1\nx\nDay2 y", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "day 1\nx\nDay 2 y", False),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, null]}\n```', True),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:json_format", {}, 'Here it is: {"a": 1}', False),
    ("detectable_format:json_format", {}, "[" * 100_000, False),
    ("detectable_format:title", {}, "A song\n<<old bridge>> and more", True),
    ("detectable_format:title", {}, "<old bridge> and << >>", False),
    ("combination:two_responses", {}, "******\nTea.\n******\nCoffee.\n******", True),
    ("combination:two_responses", {}, "Tea.\n******\nTea.", False),
    ("combination:two_responses", {}, "Tea.\n******\n******\nCoffee.", False),
    ("combination:two_responses", {}, "Tea.\n******\nCoffee.\n******\nMilk.", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a tree. "}, " NAME a tree. Oak.", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a tree."}, "Sure! Name a tree. Oak.", False),
    ("startend:end_checker", {"end_phrase": "That is all."}, '"Well. THAT is all." ', True),
    ("startend:end_checker", {"end_phrase": "That is all."}, "That is all. Bye", False),
    ("startend:quotation", {}, ' "Ahoy" said the "parrot"\n', True),
    ("startend:quotation", {}, '"', False),
    ("startend:quotation", {}, "“Ahoy”", False),
]
# One of each kind, with arguments that it takes.
EXAMPLES = {name: arguments for name, arguments, *_ in CASES}


def instruction(name: str, arguments: dict[str, Any] | None = None) -> Instruction:
    kind = KINDS[name]
    return Instruction(kind, kind.arguments.model_validate(arguments or {}))


def asking(*names: str, key: str = "1") -> VerifiablePrompt:
    return VerifiablePrompt(key, f"prompt {key}", tuple(instruction(name, EXAMPLES[name]) for name in names))


def no_comma_in(lines: int) -> VerifiablePrompt:
    """A prompt whose reply may have no comma and must have so many sentences."""
    sentences = instruction("length_constraints:number_sentences", {"num_sentences": lines, "relation": "at least"})
    return VerifiablePrompt("1", "prompt", (instruction("punctuation:no_comma"), sentences))


@pytest.mark.parametrize(("name", "arguments", "reply", "followed"), CASES)
def test_a_reply_follows_an_instruction_or_not(
    name: str, arguments: dict[str, Any], reply: str, followed: bool
) -> None:
    assert instruction(name, arguments).follows(reply) is followed


def test_the_cases_show_every_kind_followed_and_not_followed() -> None:
    assert {(name, followed) for name, _, _, followed in CASES} == {(k, f) for k in KINDS for f in (True, False)}
    assert len(KINDS) == 25


@given(st.text(), st.sampled_from(sorted(EXAMPLES)))
@settings(max_examples=200)
def test_any_text_can_be_checked_and_loose_is_never_stricter(text: str, name: str) -> None:
    check = check_reply(asking(name), text)
    assert check.loose >= check.strict
    assert text.strip() or check.loose == (False,)


@given(st.text(), st.integers(1, 5))
@pytest.mark.parametrize(
    ("name", "count", "relation", "arguments"),
    [
        ("length_constraints:number_words", "num_words", "relation", {}),
        ("length_constraints:number_sentences", "num_sentences", "relation", {}),
        ("keywords:frequency", "frequency", "relation", {"keyword": "a"}),
        ("keywords:letter_frequency", "let_frequency", "let_relation", {"letter": "a"}),
        ("change_case:capital_word_frequency", "capital_frequency", "capital_relation", {}),
    ],
)
def test_a_reply_has_either_less_than_so_many_or_at_least_so_many(
    name: str, count: str, relation: str, arguments: dict[str, Any], text: str, n: int
) -> None:
    verdicts = {
        instruction(name, {**arguments, count: n, relation: words}).follows(text) for words in ("less than", "at least")
    }
    assert verdicts == ({True, False} if text.strip() else {False})


@pytest.mark.parametrize(
    ("reply", "strict", "loose"),
    [
        ('"A reply"', True, True),
        ('Sure:\n"A reply"', False, True),
        ('"A reply"\nAnything else?', False, True),
        ('Sure:\n"A reply"\nAnything else?', False, True),
        ('**"A reply"**', False, True),
        ('Sure:\n*"A reply"*\nAnything else?', False, True),
        ('Sure:\nhere:\n"A reply"', False, False),
        ('_"A reply"_', False, False),
    ],
)
def test_loose_forgives_first_and_last_line_and_asterisks_and_nothing_else(
    reply: str, strict: bool, loose: bool
) -> None:
    check = check_reply(asking("startend:quotation"), reply)
    assert (check.strict, check.loose) == ((strict,), (loose,))


def test_loose_instructions_may_be_followed_by_different_variants() -> None:
    prompt = VerifiablePrompt("1", "p", (instruction("punctuation:no_comma"), instruction("startend:quotation")))
    check = check_reply(prompt, 'Well, sure\n"A, b"')
    assert check.strict == (False, False)
    assert check.loose == (False, True)
    check = check_reply(prompt, 'Sure\n"A, b"')
    assert check.loose == (True, True)


def test_a_text_has_one_language_however_often_it_is_asked_for() -> None:
    assert len({detect_language("no me sit on a la sun") for _ in range(20)}) == 1
    assert detect_language("?!") is None


def test_a_language_is_told_only_where_it_is_certain() -> None:
    assert likely_language(PLAIN) == "en"
    assert {code: likely_language(text) for code, text in FOREIGN.items()} == {code: code for code in FOREIGN}
    for text in ("", "?!", "1 + 1 = 2", "\U0001f642"):
        assert likely_language(text) is None, text
    # Of a text in two languages it is not sure, or sure of one.
    assert likely_language(f"{PLAIN} {FOREIGN['de']}", least=1.0) is None


# Reading


Write = Callable[..., VerifiableSettings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: dict[str, Any], **changes: Any) -> VerifiableSettings:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return VerifiableSettings(source=str(path), **changes)

    return write


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    plain = {
        "key": number,
        "prompt": f"prompt {number}",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 10, "relation": "at least"}],
    }
    return plain | changes


def test_nulls_and_whole_fractions_of_other_exports_mean_what_they_should(write: Write) -> None:
    given_here = {"num_words": 10.0, "relation": "at least", "num_bullets": None, "keywords": None}
    (plain,) = load_verifiable(write(row()))
    (exported,) = load_verifiable(write(row(kwargs=[given_here])))
    assert exported == plain


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"instruction_id_list": ["length_constraints:number_word"]}, "instruction_id_list.0", "number_words"),
        ({"instruction_id_list": []}, "instruction_id_list", "at least 1"),
        ({"kwargs": []}, "kwargs", "0 for 1"),
        ({"kwargs": [{"num_words": 10}]}, "kwargs.0.relation", "required"),
        ({"kwargs": [{"num_words": 10, "relation": None}]}, "kwargs.0.relation", "required"),
        ({"kwargs": [{"num_words": 0, "relation": "at least"}]}, "kwargs.0.num_words", "greater than or equal to 1"),
        ({"kwargs": [{"num_words": 9.5, "relation": "at least"}]}, "kwargs.0.num_words", "integer"),
        ({"kwargs": [{"num_words": 10, "relation": "at most"}]}, "kwargs.0.relation", "'less than' or 'at least'"),
        (
            {"kwargs": [{"num_words": 10, "relation": "at least", "num_word": 1}]},
            "kwargs.0.num_word",
            "takes num_words, relation",
        ),
        ({"prompt": " \n"}, "prompt", "match"),
        ({"prompt": None}, "prompt", "string"),
        (
            {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]},
            "kwargs.0.language",
            "'xx' is no language",
        ),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["(sic"]}]},
            "kwargs.0.keywords.0",
            "regular expression",
        ),
        (
            {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"n": 1}]},
            "kwargs.0.n",
            "takes nothing",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused_with_file_line_and_field(
    write: Write, changes: dict[str, Any], field: str, reason: str
) -> None:
    broken = write(row(1), row(2, **changes))
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 2") as caught:
        load_verifiable(broken)
    assert caught.value.line == 2
    assert caught.value.reason.startswith(f"{field}: ")
    assert reason in caught.value.reason


@pytest.mark.parametrize("changes", [{"key": 1}, {"key": "1"}, {"prompt": "prompt 1"}])
def test_a_key_or_prompt_may_occur_once(write: Write, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"line 3: (key|prompt): the same as in line 1"):
        load_verifiable(write(row(1), row(2), row(3, **changes)))


def test_a_limit_takes_prompts_of_all_kinds_in_turn_and_the_same_each_time(write: Write) -> None:
    words = [row(n) for n in range(1, 5)]
    commas = [row(n, instruction_id_list=["punctuation:no_comma"], kwargs=[{}]) for n in (5, 6)]
    json_asked = [row(7, instruction_id_list=["detectable_format:json_format"], kwargs=[{}])]
    keys = {
        limit: [prompt.key for prompt in load_verifiable(write(*words, *commas, *json_asked, limit=limit))]
        for limit in (1, 3, 4, 6, 7, 100)
    }
    assert keys[1] == ["1"]
    assert keys[3] == ["1", "5", "7"]
    assert keys[4] == ["1", "2", "5", "7"]
    assert keys[6] == ["1", "2", "3", "5", "6", "7"]
    assert keys[7] == keys[100] == ["1", "2", "3", "4", "5", "6", "7"]


def test_what_a_limit_leaves_out_is_read_all_the_same(write: Write) -> None:
    with pytest.raises(DataError, match="line 3"):
        load_verifiable(write(row(1), row(2), row(3, prompt=None), limit=2))


def test_without_prompts_there_is_nothing_to_ask_and_an_empty_file_is_an_error(write: Write) -> None:
    assert load_verifiable(VerifiableSettings(source="none")) == ()
    with pytest.raises(EmptyDataError):
        load_verifiable(write())


def test_an_edited_file_has_another_digest(write: Write) -> None:
    before = verifiable_digest(write(row(1)))
    assert before == verifiable_digest(write(row(1)))
    assert before != verifiable_digest(write(row(2)))
    assert verifiable_digest(VerifiableSettings(source="none")) == ""


def test_files_named_in_a_configuration_are_relative_to_it(write: Write, tmp_path: Path) -> None:
    write(row(1))
    evaluation = {
        "verifiable": {"source": "prompts.jsonl"},
        "other_answers": ["prompts.jsonl"],
        "harness_tasks": ["arc_easy", "prompts.jsonl"],
    }
    (tmp_path / "srlm.yaml").write_text(json.dumps({"evaluation": evaluation}))
    read = load_settings(tmp_path / "srlm.yaml").evaluation
    assert [prompt.key for prompt in load_verifiable(read.verifiable)] == ["1"]
    assert read.other_answers == (str(tmp_path / "prompts.jsonl"),)
    assert read.harness_tasks == ("arc_easy", str(tmp_path / "prompts.jsonl"))


@pytest.mark.skipif(not IFEVAL.is_file(), reason="the shared data is not here")
def test_all_of_ifeval_can_be_read_and_checked() -> None:
    prompts = load_verifiable(VerifiableSettings(source=str(IFEVAL)))
    instructions = [i for prompt in prompts for i in prompt.instructions]
    assert (len(prompts), len(instructions)) == (541, 834)
    assert {i.kind.name for i in instructions} == set(KINDS)
    table = verifiable_table("echo", prompts, [prompt.prompt for prompt in prompts], [False] * len(prompts))
    accuracy = measure_verifiable(table)
    assert 0 < accuracy.prompt_strict < accuracy.instruction_strict < 1


# The embedded set

FOREIGN = {
    "de": "Guten Tag und herzlich willkommen in unserem Haus.",
    "es": "Bienvenido a nuestro hotel y muchas gracias por su visita.",
    "fi": "Tervetuloa meidän mökille ja kiitos kun tulitte tänne.",
    "fr": "Bienvenue dans notre maison et merci beaucoup pour votre visite.",
    "it": "Vi auguriamo delle bellissime vacanze con tutta la vostra famiglia.",
    "nl": "Welkom in ons huis en hartelijk dank voor uw bezoek.",
    "pl": "Serdecznie witamy w naszym domu i bardzo dziękujemy za przybycie.",
    "pt": "Bem-vindo à nossa casa e muito obrigado pela sua visita.",
    "sv": "Välkommen till vårt hus och tack så mycket för ditt besök.",
    "tr": "Evimize hoş geldiniz ve ziyaretiniz için çok teşekkür ederiz.",
}
PLAIN = "This is a plain answer and it says what was asked for."
# Has hardly any letters.
TERSE = "A dog ran."


def obedient_reply(prompt: VerifiablePrompt) -> str:
    """Write a reply that follows every instruction of an embedded prompt."""
    asked: dict[str, dict[str, Any]] = {}
    for i in prompt.instructions:
        asked.setdefault(i.kind.name, dict(i.arguments))

    def get(name: str, argument: str, default: Any = None) -> Any:
        return asked.get(name, {}).get(argument, default)

    plain = FOREIGN.get(get("language:response_language", "language"), PLAIN)
    if "detectable_format:constrained_response" in asked:
        plain = "My answer is no."
    if get("keywords:letter_frequency", "let_relation") == "less than":
        plain = TERSE
    sentences = get("length_constraints:number_sentences", "num_sentences", 2)
    if get("length_constraints:number_sentences", "relation") == "less than":
        sentences -= 1
    if get("length_constraints:number_words", "relation") == "less than" or plain in (TERSE, "My answer is no."):
        sentences = 1
    elif "length_constraints:number_words" in asked:
        sentences = math.ceil(get("length_constraints:number_words", "num_words") / len(plain.split()))
    words = [*get("keywords:existence", "keywords", [])]
    if get("keywords:frequency", "relation") == "at least":
        words += [get("keywords:frequency", "keyword")] * get("keywords:frequency", "frequency")
    if get("keywords:letter_frequency", "let_relation") == "at least":
        words += [get("keywords:letter_frequency", "letter")] * get("keywords:letter_frequency", "let_frequency")
    if get("change_case:capital_word_frequency", "capital_relation") == "at least":
        words += ["NOW"] * get("change_case:capital_word_frequency", "capital_frequency")
    words += ["*plain*"] * get("detectable_format:number_highlighted_sections", "num_highlights", 0)
    words += ["[name]"] * get("detectable_content:number_placeholders", "num_placeholders", 0)
    if "detectable_format:json_format" in asked:
        return json.dumps({"answer": [plain, *words]})
    text = " ".join([plain] * (sentences - 1) + [plain.removesuffix(".") + "".join(f" {word}" for word in words) + "."])
    if "length_constraints:number_paragraphs" in asked:
        text = "\n***\n".join([text] * get("length_constraints:number_paragraphs", "num_paragraphs"))
    if "length_constraints:nth_paragraph_first_word" in asked:
        arguments = asked["length_constraints:nth_paragraph_first_word"]
        paragraphs = [text] * arguments["num_paragraphs"]
        paragraphs[arguments["nth_paragraph"] - 1] = f"{arguments['first_word'].title()} we go on. {text}"
        text = "\n\n".join(paragraphs)
    if "detectable_format:multiple_sections" in asked:
        arguments = asked["detectable_format:multiple_sections"]
        text = "\n".join(f"{arguments['section_spliter']} {n + 1}\n{text}" for n in range(arguments["num_sections"]))
    if "combination:two_responses" in asked:
        text = f"{text}\n******\nOr this."
    text += "\n* one more" * get("detectable_format:number_bullet_lists", "num_bullets", 0)
    text = "<<a plain answer>>\n" * ("detectable_format:title" in asked) + text
    text = get("combination:repeat_prompt", "prompt_to_repeat", "") + text
    if "detectable_content:postscript" in asked:
        text += f"\n{get('detectable_content:postscript', 'postscript_marker')} Bye."
    text += " " * ("startend:end_checker" in asked) + get("startend:end_checker", "end_phrase", "")
    if "change_case:english_lowercase" in asked:
        text = text.lower()
    if "change_case:english_capital" in asked:
        text = text.upper()
    return f'"{text}"' if "startend:quotation" in asked else text


def disobedient_reply(asked: Instruction, obedient: str) -> str:
    """Write a reply, not blank, that does not follow one instruction."""
    arguments = dict(asked.arguments)
    fewer = {"less than"} & set(map(str, arguments.values()))
    match asked.kind.name:
        case "punctuation:no_comma":
            return obedient + " So, no."
        case "change_case:english_lowercase":
            return obedient + " So"
        case "change_case:english_capital":
            return obedient + " so"
        case "keywords:forbidden_words":
            return f"{obedient} {arguments['forbidden_words'][-1]}"
        case "keywords:frequency" if fewer:
            return f"{arguments['keyword']} " * arguments["frequency"]
        case "keywords:letter_frequency" if fewer:
            return arguments["letter"] * arguments["let_frequency"]
        case "change_case:capital_word_frequency" if fewer:
            return "NOW " * arguments["capital_frequency"]
        case "length_constraints:number_words" if fewer:
            return "well " * arguments["num_words"]
        case "length_constraints:number_sentences" if fewer:
            return "That is so. " * arguments["num_sentences"]
        case "length_constraints:number_paragraphs":
            return obedient + "\n***\nand more"
        case "detectable_format:number_bullet_lists":
            return obedient + "\n* and more"
        case "startend:end_checker":
            return obedient + " And more"
        case "language:response_language":
            return PLAIN
        case _:
            return "Why not"


@pytest.mark.parametrize("prompt", EMBEDDED, ids=lambda prompt: prompt.key)
def test_every_embedded_prompt_can_be_followed_and_each_of_its_instructions_broken(prompt: VerifiablePrompt) -> None:
    obedient = obedient_reply(prompt)
    check = check_reply(prompt, obedient)
    names = [i.kind.name for i in prompt.instructions]
    assert dict(zip(names, check.strict, strict=True)) == dict.fromkeys(names, True), obedient
    for place, asked in enumerate(prompt.instructions):
        assert not check_reply(prompt, disobedient_reply(asked, obedient)).strict[place], asked


def test_the_embedded_set_is_large_and_varied_enough() -> None:
    assert len(EMBEDDED) >= 80
    assert {i.kind.name for prompt in EMBEDDED for i in prompt.instructions} == set(KINDS)


def test_embedded_prompts_are_like_no_other_prompt_of_the_package() -> None:
    data = DataSettings()
    tables = (load_instructions(data), load_ranked_replies(data), load_evaluation_prompts(data))
    known = NoveltyIndex(prompt for loaded in tables for prompt in loaded.table["prompt"].unique())
    for prompt in EMBEDDED:
        assert known.nearest(prompt.prompt) < 0.7, prompt.prompt
        known.add(prompt.prompt)


# Figures


def test_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    prompts = [replace(no_comma_in(2), key=str(n), prompt=f"prompt {n}") for n in range(4)]
    # Both; only one; both, but for the first line; none.
    replies = ["This goes. So does this.", "This goes.", "Well, so\nThis goes. So does this.", "Well, no"]
    table = verifiable_table("m", prompts, replies, [False] * 4)
    assert table["n_strict"].tolist() == [2, 1, 1, 0]
    assert table["n_loose"].tolist() == [2, 1, 2, 0]
    no_comma, sentences = "punctuation:no_comma", "length_constraints:number_sentences"
    assert table["failed"].tolist() == ["", sentences, no_comma, f"{no_comma},{sentences}"]
    write_table(table, VERIFIABLE, tmp_path / "t.parquet")
    accuracy = measure_verifiable(read_table(VERIFIABLE, tmp_path / "t.parquet"))
    assert (accuracy.prompt_strict, accuracy.prompt_loose) == (1 / 4, 2 / 4)
    assert (accuracy.instruction_strict, accuracy.instruction_loose) == (4 / 8, 5 / 8)
    assert (accuracy.n_prompts, accuracy.n_instructions) == (4, 8)
    assert [(k.kind, k.n, k.share) for k in accuracy.kinds] == [(sentences, 4, 0.5), (no_comma, 4, 0.5)]
    assert shares_followed(table).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert set(accuracy.metrics()) == {
        *(f"{of}_{how}{end}" for of in ("prompt", "instruction") for how in ("strict", "loose") for end in ENDS),
        "n_prompts",
        "n_instructions",
    }


ENDS = ("", "_low", "_high")


def test_a_wrecked_reply_follows_nothing_even_where_it_has_no_comma_by_accident() -> None:
    prompts = [replace(no_comma_in(2), key=str(n), prompt=f"prompt {n}") for n in range(2)]
    table = verifiable_table("m", prompts, ["This goes. So does this."] * 2, [False, True])
    assert table["n_strict"].tolist() == table["n_loose"].tolist() == [2, 0]
    assert table["failed"].tolist() == ["", "punctuation:no_comma,length_constraints:number_sentences"]


def test_a_kind_that_a_prompt_asks_for_twice_counts_twice() -> None:
    few, many = (
        instruction("length_constraints:number_words", {"num_words": n, "relation": relation})
        for n, relation in ((2, "at least"), (4, "less than"))
    )
    table = verifiable_table("m", [VerifiablePrompt("1", "p", (few, many))], ["one two three four"], [False])
    (share,) = measure_verifiable(table).kinds
    assert (share.n, share.share) == (2, 0.5)


def counted(followed: list[int], asked: int) -> pd.DataFrame:
    kinds = ",".join(["punctuation:no_comma"] * asked)
    rows = [
        {
            "instructions": kinds,
            "n_instructions": asked,
            "n_strict": n,
            "n_loose": n,
            "failed": kinds[: 20 * (asked - n)],
        }
        for n in followed
    ]
    return pd.DataFrame(rows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
@settings(max_examples=30)
def test_the_interval_of_prompts_is_wilsons_and_all_intervals_hold_their_share(followed: list[int]) -> None:
    accuracy = measure_verifiable(counted(followed, 3), resamples=200)
    share, n, z = np.mean([f == 3 for f in followed]), len(followed), stats.norm.ppf(0.975)
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    ends = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    assert [accuracy.prompt_strict_low, accuracy.prompt_strict_high] == pytest.approx(ends, abs=1e-9)
    figures = accuracy.metrics()
    bootstrapped = ("instruction_strict", "instruction_loose") if n > 1 else ()
    assert ("instruction_strict_low" in figures) == bool(bootstrapped), "one prompt tells no interval of instructions"
    for name in ("prompt_strict", "prompt_loose", *bootstrapped):
        ordered = [0.0, figures[f"{name}_low"], figures[name], figures[f"{name}_high"], 1.0]
        assert all(a <= b + 1e-9 for a, b in pairwise(ordered)), name


def test_instructions_of_one_prompt_are_not_taken_for_independent() -> None:
    """Of 20 prompts with 3 instructions each, half are followed wholly and half not at all."""
    accuracy = measure_verifiable(counted([3, 0] * 10, 3))
    width = accuracy.instruction_strict_high - accuracy.instruction_strict_low
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 20), rel=0.15)


def test_no_replies_have_no_figures() -> None:
    with pytest.raises(EmptyDataError):
        measure_verifiable(verifiable_table("m", [], [], []))


# The arbiter


def test_the_arbiter_prefers_the_reply_that_follows_more_whatever_the_order() -> None:
    prompt = no_comma_in(2)
    both, one, none = "This goes. So does this.", "This goes.", "Well, no"
    comparisons = [Comparison(prompt.prompt, first, second) for first, second in ((both, one), (one, none), (one, one))]
    comparisons.append(Comparison("another prompt", both, none))
    arbiter = VerifierArbiter([prompt])
    forward = arbiter.prefer_first(comparisons, NullProgress())
    backward = arbiter.prefer_first([c.swap() for c in comparisons], NullProgress())
    assert forward.tolist() == pytest.approx([0.5, 0.5, 0.0, float("nan")], nan_ok=True)
    assert backward.tolist() == pytest.approx((-forward).tolist(), nan_ok=True)


def test_the_arbiter_knows_a_prompt_whose_outer_blanks_were_lost() -> None:
    prompt = replace(no_comma_in(1), prompt=" Why? \n")
    arbiter = VerifierArbiter([prompt])
    assert arbiter.prefer_first([Comparison("Why?", "Because.", "Well, no")], NullProgress()).tolist() == [0.5]


def test_a_match_is_won_by_following_instructions() -> None:
    prompts = [asking("punctuation:no_comma", key=str(n)) for n in range(3)]
    named = [(prompt.key, prompt.prompt) for prompt in prompts]
    arbiter = VerifierArbiter(prompts)
    _, match = play_match(named, ["a", "b", "c, d"], ["a, b", "c", "e, f"], "other", arbiter, NullProgress())
    assert (match.wins, match.ties, match.losses) == (1, 2, 0)
    assert (match.position_bias, match.disagreement) == (0, 0)
