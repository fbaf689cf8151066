"""What is wrong with a reply at first sight: each sign on replies worked by hand that have it, and ones that do not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.vital_signs import (
    SIGNS,
    WRECKS,
    Exchange,
    Sign,
    echo_share,
    find_marks,
    looped_share,
    read_signs,
)
from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies

SYSTEM = "You are a helpful assistant named SmolLM, trained by Hugging Face"
ADVICE = (
    "Water your plants in the morning, when the sun is low. The soil keeps the water longer then, and leaves dry "
    "before the night, so that no mould grows on them."
)
POEM = """The river runs below the hill,
  Heigh-ho, the wind and the rain,
And turns the wheel of the old grey mill,
  Heigh-ho, the wind and the rain.
The miller sleeps, the stones are still,
  Heigh-ho, the wind and the rain."""
LISTED = """1. Wash the potatoes.
2. Peel the carrots.
3. Cut the onions.
4. Fry everything in a pan.
5. Add salt and pepper.
6. Serve it warm."""
TABLE = """| Name | Age | City |
|------|-----|------|
| Anna | 31 | Bern |
| Ben | 27 | Graz |
| Cleo | 45 | Lyon |

---

That is everybody."""
CODE = """```python
def area(a, b):
    return a * b


def volume(a, b, c):
    return a * b * c


for n in range(10):
    print(n, area(n, n), volume(n, n, n))
```"""
TEXT = (
    "The town council met on Monday. It decided to plant two hundred trees along the river. The mayor said that "
    "shade would make the summers easier. Work begins in October, after the first rain has softened the soil."
)


def signs(prompt: str, reply: str, reference: str | None = None, system: str = "", repeatable: str = "") -> set[Sign]:
    (found,) = read_signs([Exchange(prompt, reply, reference, repeatable)], system)
    return set(found)


def told(prompts: list[str], replies: list[str]) -> list[set[Sign]]:
    return [set(s) for s in read_signs([Exchange(p, r) for p, r in zip(prompts, replies, strict=True)])]


@pytest.mark.parametrize("reply", [ADVICE, LISTED, TABLE, CODE, POEM, "Yes.", "42", "\U0001f642", "- milk\n- eggs"])
def test_nothing_is_wrong_with_a_decent_reply(reply: str) -> None:
    assert signs("How do I care for my plants?", reply) == set()


# Loops


@pytest.mark.parametrize(
    "reply",
    [
        "SLOW " * 60,
        "slow, " * 20,
        "1. 1. 1. 1. 1. 1. 1. 1.",
        "a" * 60,
        "!" * 40,
        "I like tea. " * 12,
        "The answer is that I do not know. " * 5,
        "| tea | tea | tea | tea | tea | tea | tea | tea |",
        "\n".join(f"{n}. Wash the potatoes." for n in range(1, 12)),
        ADVICE + " and so on" * 40,
        "Once there was a king who had a daughter who loved the sea. " * 3,
        "na na hey " * 10,
    ],
)
def test_what_goes_in_circles_loops(reply: str) -> None:
    assert signs("Tell me something.", reply) == {"loops"}


@pytest.mark.parametrize(
    "reply",
    [
        "one two three four five six seven eight nine ten",
        "1 2 3 4 5 6 7 8 9 10",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
        "10\n9\n8\n7\n6\n5\n4\n3\n2\n1",
        "2, 4, 6, 8, 10, 12, 14, 16, 18, 20",
        "ha ha ha",
        "Ha ha ha! That is a good one, and I will tell it to my sister tonight.",
        "No, no, no.",
        "It was very, very, very cold that night, and nobody dared to leave the house.",
        "Row, row, row your boat, gently down the stream. Life is but a dream.",
        POEM,
        LISTED,
        TABLE,
        CODE,
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
        "Title\n=====================\n\nText.\n\n* * * * * * * * *\n\nMore ........................ 7",
        "[ ] tea\n[ ] milk\n[ ] bread\n[ ] eggs\n[ ] butter",
        "x = 1\ny = 2\nz = 3\n",
        "The year 1000000000000000 is far away, and so is 1,000,000,000,000.",
    ],
)
def test_lists_tables_laughter_and_counting_are_no_loops(reply: str) -> None:
    assert "loops" not in signs("Tell me something.", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "\n".join(f"7 x {n} = {7 * n}" for n in range(1, 11)),
        "Apollo 11, Apollo 12, Apollo 14, Apollo 15, Apollo 16 and Apollo 17.",
        '[{"id": 3, "age": 31}, {"id": 5, "age": 27}, {"id": 8, "age": 45}, {"id": 9, "age": 62}]',
        "- Year 1: 2,000.00 × 1.04 = $2,080.00\n- Year 2: 2,080.00 × 1.04 = $2,163.20\n"
        "- Year 3: 2,163.20 × 1.04 = $2,249.73",
        "| Week | Session |\n|---|---|\n| 1 | 1 min run, 2 min walk |\n| 2 | 2 min run, 2 min walk |\n"
        "| 3 | 3 min run, 2 min walk |\n| 4 | 5 min run, 2 min walk |",
    ],
)
def test_numbers_that_change_are_what_is_said_and_no_loop(reply: str) -> None:
    assert "loops" not in signs("Tell me something.", reply)


@pytest.mark.parametrize("reply", ["好的" * 30, "他说他很高兴" * 12, "ครับผม" * 20])
def test_languages_without_blanks_can_go_in_circles_too(reply: str) -> None:
    assert "loops" in signs("Tell me something.", reply)


def test_the_share_in_circles_is_that_of_the_characters() -> None:
    assert looped_share("") == 0
    assert looped_share("tea " * 7 + "tea") == 1
    assert looped_share(ADVICE) == 0
    start = "Before it starts there is something else. "
    assert looped_share(start + "so it goes " * 10) == pytest.approx(109 / (len(start) + 110))


def test_a_short_loop_at_the_end_of_a_long_reply_does_not_condemn_it() -> None:
    short = ADVICE * 2
    short += " bye" * 8
    assert 0 < looped_share(short) < 0.3
    assert [mark.sign for mark in find_marks(Exchange("p", short))] == ["loops"]
    assert signs("How do I care for my plants?", short) == set()


# Echoes


@pytest.mark.parametrize(
    "copy",
    [
        "How do I keep my roses healthy through a long and dry summer?",
        "how do i keep my ROSES healthy, through a long (and dry) summer",
        "  How do I keep my roses\nhealthy through a long and dry summer?  ",
        "Question: How do I keep my roses healthy through a long and dry summer?",
    ],
)
def test_the_prompt_copied_is_an_echo_whatever_its_case_and_punctuation(copy: str) -> None:
    assert signs("How do I keep my roses healthy through a long and dry summer?", copy) == {"echoes"}


def test_a_short_prompt_copied_whole_is_an_echo() -> None:
    assert signs("Name a tree.", "name a tree") == {"echoes"}
    assert signs("Name a tree.", "An oak is a tree.") == set()


def test_an_answer_that_begins_with_the_question_is_no_echo() -> None:
    prompt = "How do I keep my roses healthy through a long and dry summer?"
    assert signs(prompt, f"{prompt}\n\n{ADVICE}") == set()


def test_a_sentence_quoted_from_a_text_is_no_echo() -> None:
    prompt = f"When does the work begin? Answer with a sentence from this text.\n\n{TEXT}"
    quoted = "Work begins in October, after the first rain has softened the soil."
    assert echo_share(Exchange(prompt, quoted)) == 1
    assert signs(prompt, quoted) == set()
    assert signs(prompt, TEXT) == {"echoes"}


def test_what_the_reference_copies_is_no_fault() -> None:
    prompt = "Correct the spelling: their are many reasons to plant trees along the river in october"
    reference = "There are many reasons to plant trees along the river in October."
    reply = "there are many reasons to plant trees along the river in October"
    assert signs(prompt, reply, reference) == set()
    assert signs(prompt, reply) == {"echoes"}
    assert signs(prompt, prompt, reference) == {"echoes"}, "nobody is asked to repeat the whole prompt"


def test_copying_where_the_reference_does_not_is_an_echo() -> None:
    prompt = f"Summarize in a few words: {TEXT}"
    reply = "It decided to plant two hundred trees along the river."
    assert signs(prompt, reply) == set()
    assert signs(prompt, reply, "More green for the town.") == {"echoes"}


def test_what_the_prompt_asks_to_repeat_may_be_repeated() -> None:
    request = "Write a short letter to the owner of the blue house."
    prompt = f"{request} First repeat that sentence, then answer."
    assert signs(prompt, request) == {"echoes"}
    assert signs(prompt, request, repeatable=request) == set()
    assert signs(prompt, "First repeat that sentence, then answer.", repeatable=request) == {"echoes"}


def test_the_share_copied_is_that_of_the_words() -> None:
    # Four of six words stand in a run of four.
    assert echo_share(Exchange("one two three four five", "yes two three four five no")) == pytest.approx(4 / 6)
    assert echo_share(Exchange("one two three four five", "one two three and four five")) == 0
    assert echo_share(Exchange("one two three four", "?!")) == 0


# Recitals


@pytest.mark.parametrize(
    "line",
    [
        "As an AI language model, I think that tea is fine.",
        "I am an AI, but tea sounds good.",
        "I'm a large language model and like no tea.",
        "I\u2019m your virtual assistant for tea.",
        "You are a helpful assistant. Tea is good.",
        "I was trained by OpenAI to talk about tea.",
    ],
)
def test_lines_of_a_persona_are_recitals(line: str) -> None:
    assert signs("What is good with cake?", line) == {"recites"}


@pytest.mark.parametrize(
    "prompt", ["Who are you?", "What are you?", "Tell me about yourself.", "Are you an AI or not?"]
)
def test_whoever_is_asked_who_it_is_may_say_so(prompt: str) -> None:
    assert signs(prompt, "I am an AI, trained by Hugging Face, and I like tea.", system=SYSTEM) == set()


@pytest.mark.parametrize(
    "line",
    [
        "I am an air traffic controller.",
        "AI is taught at school now, and so is painting.",
        "She is a helpful neighbour.",
        "The dog was trained by a friend.",
        "A helpful way to start is to read the label.",
    ],
)
def test_words_about_helpers_are_no_recitals(line: str) -> None:
    assert signs("Tell me something.", line) == set()


def test_the_system_prompt_said_again_is_a_recital() -> None:
    system = "Answer like a patient gardener who loves beetroot and rain"
    reply = "I will answer like a patient gardener who loves beetroot. Dig a hole."
    assert signs("How do I plant a tree?", reply, system=system) == {"recites"}
    assert signs("How do I plant a tree?", reply) == set()
    assert signs("How do I plant a tree?", "A patient gardener who digs a hole.", system=system) == set()


STOCK = "Thank you for your question, I will do my best."
ASKED = ["Why is the sky blue?", "Name a river in Peru.", "How long is a mile?", "Who wrote Faust?"]


def test_the_same_sentence_to_three_prompts_is_a_stock_reply() -> None:
    answers = [STOCK, STOCK + " Ucayali.", STOCK, "Goethe wrote it, over many years."]
    assert told(ASKED, answers) == [{"recites"}, {"recites"}, {"recites"}, set()]
    assert told(ASKED[:2], [STOCK, STOCK]) == [set(), set()]


def test_the_same_prompt_twice_is_one_prompt() -> None:
    assert told([ASKED[0], ASKED[1], f" {ASKED[1]}  "], [STOCK] * 3) == [set()] * 3


def test_a_stock_sentence_within_a_longer_answer_is_no_recital() -> None:
    answers = [f"{STOCK} {n}: {text}" for n, text in enumerate((ADVICE, TEXT, POEM))]
    assert told(ASKED[:3], answers) == [set()] * 3


def test_one_word_may_answer_many_prompts() -> None:
    assert told(ASKED, ["Yes."] * 4) == [set()] * 4


def test_the_very_same_few_words_to_three_prompts_are_a_stock_reply_unless_the_prompt_offers_them() -> None:
    assert told(ASKED, ["It depends."] * 4) == [{"recites"}] * 4
    assert told(ASKED, ["It depends.", "It depends.", "Yes.", "No."]) == [set()] * 4
    offered = [f"{prompt} Say: it depends." for prompt in ASKED]
    assert told(offered, ["It depends."] * 4) == [set()] * 4


def test_nearly_the_same_reply_to_three_prompts_is_a_stock_reply() -> None:
    frame = "Here is a short poem about {}: roses are red, violets are blue, and {} is what I think of, and so are you"
    answers = [frame.format(word, word) for word in ("skies", "rivers", "miles")]
    assert told(ASKED, [*answers, "Goethe wrote it, over many years."]) == [{"recites"}] * 3 + [set()]


# Empty


@pytest.mark.parametrize("reply", ["", " ", "\n\t \u00a0"])
def test_a_blank_reply_is_empty_and_nothing_else(reply: str) -> None:
    assert signs("Anything?", reply) == {"empty"}


# Refusals


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but there is nothing to be said.",
        "I am very sorry. The weather is unknown to me.",
        "Sorry, no.",
        "I apologize, but I have no access to the internet.",
        "I cannot help with that.",
        "I can\u2019t provide a recipe.",
        "I won't answer this.",
        "I'm not able to browse.",
        "Unfortunately, I have no idea.",
        '"I cannot assist you."',
    ],
)
def test_refusing_at_once_is_a_refusal(reply: str) -> None:
    assert "refuses" in signs("Write a recipe.", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Mix flour and water. If you have no yeast, I am sorry to say that it will not rise.",
        "I cannot recommend this dish enough!",
        "I will not give up on this bread, and neither should you.",
        "I can help with that: take two eggs.",
        "Unfortunately, it rained.",
        "The letter says: I'm sorry.",
    ],
)
def test_words_of_regret_within_an_answer_are_no_refusal(reply: str) -> None:
    assert signs("Write down the recipe for a loaf of bread.", reply) == set()


# Other languages

FRENCH = "Il faut arroser les plantes le matin, quand le soleil est encore bas et que la terre reste fraîche."
ENGLISH_PROMPT = "How should I water my plants during the hot weeks of the summer?"


def test_a_reply_in_another_language_than_the_prompts_is_noticed() -> None:
    assert signs(ENGLISH_PROMPT, FRENCH) == {"other_language"}
    french = "Comment faut-il arroser les plantes pendant les semaines chaudes de l'été ?"
    assert signs(french, FRENCH) == set()
    assert signs(french, ADVICE) == {"other_language"}


def test_whoever_is_asked_for_another_language_may_use_it() -> None:
    assert signs("Translate into French: water the plants in the morning, when the sun is still low.", FRENCH) == set()
    assert signs("Tell me in French how to water plants in the hot weeks of the summer.", FRENCH) == set()
    assert signs(ENGLISH_PROMPT, FRENCH, "Arrosez les plantes le matin, avant que le soleil soit haut.") == set()


@pytest.mark.parametrize("reply", ["Oui, le matin.", "Bonjour !", CODE, "1 + 1 = 2 " * 3, "xkcd qwrt"])
def test_a_few_words_or_code_are_in_no_language(reply: str) -> None:
    assert "other_language" not in signs(ENGLISH_PROMPT, reply)


def test_a_language_without_blanks_is_noticed() -> None:
    chinese = "早上浇水最好，因为那时太阳还很低，土壤可以保持湿润，叶子在晚上之前就会变干，所以不会发霉。"
    assert signs(ENGLISH_PROMPT, chinese) == {"other_language"}


def test_a_few_words_beside_code_are_in_no_language() -> None:
    reply = f"{CODE}\n\n`area(2, 3)` returns `6`."
    assert signs("Write a Python function for the area of a rectangle with sides a and b.", reply) == set()


@pytest.mark.parametrize("prompt", ["Write a recipe.", "Write a poem.", "Hello!", "Are you an AI?"])
def test_a_prompt_of_a_few_words_does_not_tell_the_language_that_is_expected(prompt: str) -> None:
    assert "other_language" not in signs(prompt, ADVICE)


# Marks


def test_marks_show_where() -> None:
    prompt = "How do I keep my roses healthy through the summer?"
    reply = "I'm sorry. As an AI I can: keep my roses healthy through June. " + "so it goes " * 4
    marks = find_marks(Exchange(prompt, reply))
    assert [(mark.sign, reply[mark.start : mark.end].strip()) for mark in marks] == [
        ("refuses", "I'm sorry"),
        ("recites", "As an AI"),
        ("echoes", "keep my roses healthy through"),
        ("loops", "so it goes so it goes so it goes so it goes"),
    ]


def test_what_may_be_repeated_is_not_marked() -> None:
    prompt = "Repeat this line as it is, please, and add nothing to it."
    assert find_marks(Exchange(prompt, "repeat this line as it is", repeatable=prompt)) == ()
    assert [m.sign for m in find_marks(Exchange(prompt, "repeat this line as it is"))] == ["echoes"]


PIECES = st.sampled_from(
    ["the cat sat", "SLOW ", "1. ", "| a |", "---", "\n", "As an AI", "I'm sorry", "```", "`", "\u2019", "ha ", "\x00"]
)
TEXTS = st.text(max_size=60) | st.lists(PIECES, max_size=60).map("".join) | st.lists(PIECES, max_size=20).map(" ".join)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.none() | TEXTS, TEXTS), min_size=1, max_size=4), TEXTS)
@settings(max_examples=120)
def test_any_text_can_be_read(exchanges: list[tuple[str, str, str | None, str]], system: str) -> None:
    given_ones = [Exchange(*exchange) for exchange in exchanges]
    found = read_signs(given_ones, system)
    assert len(found) == len(given_ones)
    for exchange, shown in zip(given_ones, found, strict=True):
        assert shown <= set(SIGNS)
        assert ("empty" in shown) == (not exchange.reply.strip())
        assert "empty" not in shown or len(shown) == 1
        for mark in find_marks(exchange, system):
            assert 0 <= mark.start < mark.end <= len(exchange.reply)
            assert mark.sign in SIGNS
        assert 0 <= looped_share(exchange.reply) <= 1
        assert 0 <= echo_share(exchange) <= 1
    assert read_signs(given_ones, system) == found


@given(TEXTS)
@settings(max_examples=60)
def test_whatever_is_said_ten_times_over_is_not_said_well(text: str) -> None:
    words = f"{text} and then once more "
    assert "loops" in signs("What?", words * 10)


def test_with_the_good_replies_of_the_package_nothing_is_wrong() -> None:
    data = DataSettings()
    references = load_evaluation_prompts(data).table.dropna(subset=["reference"])
    ranked = load_ranked_replies(data).table.sort_values("rank", kind="stable").drop_duplicates("group_id")
    good = {
        "evaluation": [Exchange(row.prompt, row.reference, row.reference) for row in references.itertuples()],
        "ift": [Exchange(row.prompt, row.response) for row in load_instructions(data).table.itertuples()],
        "ranked": [Exchange(row.prompt, row.text) for row in ranked.itertuples()],
    }
    for name, exchanges in good.items():
        found = read_signs(exchanges, SYSTEM)
        # Where no reference shows it, what sorts or shortens a text can look copied.
        assert sum("echoes" in s for s in found) <= 0.02 * len(exchanges), name
        wrong = [(set(s), e.reply) for e, s in zip(exchanges, found, strict=True) if s - {"echoes"}]
        assert wrong == [], name


def test_wrecks_are_signs_and_refusing_is_no_wreck() -> None:
    assert set(WRECKS) < set(SIGNS)
    assert "refuses" not in WRECKS
    assert read_signs([]) == []
