import itertools
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.config import PromptGenerationSettings
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.generation.engine import Completion, GenerationRequest
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.prompting.few_shot import PromptGeneration, SeedPrompt, few_shot_exchange, generate_prompts
from srlm_pipeline.prompting.filters import NoveltyIndex, clean_prompt, rejection_reason
from srlm_pipeline.tables import GENERATED_PROMPTS, REFUSED_PROMPTS, check_table

VOCABULARY = [a + b + c for a in "bcdfghklmnprst" for b in ("ad", "ek", "il", "om") for c in ("a", "e", "u")]
WORDS = st.lists(st.sampled_from(["a", "b", "c", "straße"]), max_size=8)
SEEDS = [SeedPrompt(f"seed-{n}", f"Seed prompt number {word} about {word}s") for n, word in enumerate(VOCABULARY[:12])]


# Invented prompts have half their words in common; one more makes them too similar.
STRICT = 0.6


def rouge_l(one: list[str], other: list[str]) -> float:
    """F1 of the longest common subsequence, as defined."""
    common = 0
    for size in range(min(len(one), len(other)), 0, -1):
        if set(itertools.combinations(one, size)) & set(itertools.combinations(other, size)):
            common = size
            break
    return 2 * common / (len(one) + len(other)) if one or other else 1.0


def invent(request: GenerationRequest) -> str:
    """Words that depend on all that a model's reply depends on: the examples and the item's own randomness."""
    return "Tell me something about " + " ".join(
        random.Random(f"{request.seed} {request.prompt}").choices(VOCABULARY, k=4)
    )


def scripted(*texts: str | tuple[str, str]) -> Callable[[GenerationRequest], Completion]:
    """Write these texts in turn, each "stop" unless a finish reason is given, and unlike ones after them."""

    def write(request: GenerationRequest) -> Completion:
        n = int(request.key)
        text = texts[n] if n < len(texts) else " ".join(f"filler{n}x{k}" for k in range(5))
        text, reason = text if isinstance(text, tuple) else (text, "stop")
        return Completion(request.key, text, 5, reason)

    return write


def chosen_settings(**changes: object) -> PromptGenerationSettings:
    return PromptGenerationSettings(
        **{"count": 10, "batch_size": 4, "seed_examples": 3, "generated_examples": 2, **changes}
    )


def generate(
    engine: FakeEngine,
    settings: PromptGenerationSettings,
    forbidden: Sequence[str] = (),
    known: Sequence[SeedPrompt] = (),
    journal: Journal | None = None,
    run_seed: int = 7,
) -> PromptGeneration:
    made = generate_prompts(
        engine, SEEDS, forbidden, settings, run_seed, "prompts/iter_001", NullProgress(), journal, known
    )
    check_table(made.prompts, GENERATED_PROMPTS)
    return made


def examples_in(request: GenerationRequest) -> list[str]:
    return re.findall(r"(?:^|ASSISTANT )Task \d+: (.+)$", request.prompt, re.MULTILINE)


@given(WORDS, st.lists(WORDS, max_size=4))
@settings(max_examples=80)
def test_closeness_is_the_highest_rouge_l_with_a_known_text(text: list[str], known: list[list[str]]) -> None:
    index = NoveltyIndex(" ".join(k) for k in known)
    expected = max((rouge_l(text, k) for k in known), default=0.0)
    assert index.nearest(" ".join(text)) == pytest.approx(expected)


def test_closeness_worked_by_hand() -> None:
    index = NoveltyIndex(["Write a poem about rain"])
    assert index.nearest("Write a short poem about snow") == pytest.approx(8 / 11)
    assert index.nearest("rain about poem a write") == pytest.approx(2 / 10)
    assert index.nearest("Name three rivers") == 0.0


def test_case_and_punctuation_make_no_difference() -> None:
    assert NoveltyIndex(["Write a poem, about RAIN!"]).nearest("write: a poem\nabout rain") == 1.0


def test_added_texts_are_known_from_then_on() -> None:
    index = NoveltyIndex()
    assert index.nearest("one two three") == 0.0
    index.add("one two three")
    assert index.nearest("one two three") == 1.0


def test_more_words_than_the_first_plane_has_characters_are_told_apart() -> None:
    index = NoveltyIndex([" ".join(f"w{n}" for n in range(0x10000))])
    index.add("other words entirely")
    assert index.nearest("other words entirely") == 1.0
    assert index.nearest("again something new") == 0.0


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("  Write a poem. \n", "Write a poem."),
        ("Task 9: Write a poem.", "Write a poem."),
        ("instruction: Write a poem.", "Write a poem."),
        ("9) Write a poem.", "Write a poem."),
        ('"Write a poem."', "Write a poem."),
        ("\u201cWrite a poem.\u201d", "Write a poem."),
        ("**Write a poem.**", "Write a poem."),
        ('"Yes" or "no": which is shorter?', '"Yes" or "no": which is shorter?'),
        ("3 apples and 2 pears: how many fruits?", "3 apples and 2 pears: how many fruits?"),
        ("Sort these:\n- pear\n- apple", "Sort these:\n- pear\n- apple"),
        ("Which answer: yes or no?", "Which answer: yes or no?"),
    ],
)
def test_labels_and_quotes_are_stripped_and_nothing_else(written: str, prompt: str) -> None:
    assert clean_prompt(written) == prompt


@pytest.mark.parametrize(
    "rest",
    [
        "Answer: red",
        "\n  ANSWER : red",
        "Answers:",
        "Response 1: red",
        "Output:\nred",
        "Task 10: Name two.",
        "Prompt #3",
    ],
)
def test_own_answer_and_further_tasks_are_cut_off(rest: str) -> None:
    assert clean_prompt(f"Task 9: Name a colour.\n{rest}\nand so on") == "Name a colour."


@pytest.mark.parametrize(
    "prompt",
    [
        "2.5 litres of water weigh how much?",
        "10:30 is late for what meal?",
        ".NET is what kind of platform?",
        "__init__ in Python does what?",
        "*Emma* was written by whom?",
        "Write **bold**",
    ],
)
def test_what_begins_or_ends_a_prompt_itself_is_kept(prompt: str) -> None:
    assert clean_prompt(prompt) == prompt
    assert clean_prompt(f"Task 9: {prompt}") == prompt


@pytest.mark.parametrize(
    "written", ["Name a colour.\n\n**Answer:** red", "Name a colour.\n### Answer: red", "**Task 9:** Name a colour."]
)
def test_labels_and_answers_may_be_marked_up(written: str) -> None:
    assert clean_prompt(written) == "Name a colour."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too_short"),
        ("?!", "too_short"),
        ("one two three", "too_short"),
        ("one two three four", None),
        ("one two three four five six", None),
        ("one two three four five six seven", "too_long"),
        ("Describe the Image, please", "banned_word"),
        ("Describe the imagery here", None),
        ("- write a poem now", "bad_start"),
        ("# write a poem now", "bad_start"),
        ('"write a poem now', None),
        ("\u00bfwrite a poem now", None),
        ("Écris un poème court", None),
        ("1 2 3 4 add", "not_text"),
    ],
)
def test_unusable_prompts_are_refused_for_a_reason(text: str, reason: str | None) -> None:
    assert rejection_reason(text, min_words=4, max_words=6, banned_words=("image",)) == reason


def test_banned_words_may_be_written_in_capitals() -> None:
    assert rejection_reason("Open the pdf file now", 4, 6, banned_words=("PDF",)) == "banned_word"


def test_each_refused_completion_is_counted_by_reason() -> None:
    engine = FakeEngine(
        scripted(
            "short",
            "word " * 200,
            "Look at the video and describe it",
            "- an item of a list",
            "1 + 2 + 3 + 4 + 5",
            ("An unfinished prompt that the limit", "length"),
            SEEDS[3].prompt,
            "Explain the tides to a small child",
            "What was accepted in an earlier iteration?",
            "How do magnets work in general?",
            "how do magnets work, in general",
        )
    )
    made = generate(
        engine,
        chosen_settings(count=2),
        forbidden=["Explain the tides to a small child."],
        known=[SeedPrompt("old-0", "What was accepted in an earlier iteration?")],
    )
    assert dict(made.rejected) == {
        "too_short": 1,
        "too_long": 1,
        "banned_word": 1,
        "bad_start": 1,
        "not_text": 1,
        "unfinished": 1,
        "not_novel": 3,
        "like_an_evaluation_prompt": 1,
    }
    assert made.prompts["prompt"].iloc[0] == "How do magnets work in general?"
    assert made.attempts == 12 == len(made.prompts) + sum(made.rejected.values())
    refused = check_table(made.refused, REFUSED_PROMPTS).set_index("attempt")
    assert refused.loc[2].to_dict() == {"reason": "banned_word", "prompt": "Look at the video and describe it"}


def test_own_answers_are_not_part_of_accepted_prompts() -> None:
    engine = FakeEngine(scripted("Which river is the longest?\nAnswer: the Nile"))
    (row,) = generate(engine, chosen_settings(count=1)).prompts.to_dict("records")
    assert (row["prompt"], row["n_words"]) == ("Which river is the longest?", 5)
    assert engine.samplings[0].stop == ("\nTask",)


@pytest.mark.parametrize(("limit", "accepted"), [(0.5, 0), (0.6, 0), (0.61, 1), (1.0, 1)])
def test_prompts_as_similar_as_the_limit_are_refused(limit: float, accepted: int) -> None:
    # Three words of five in common with the evaluation prompt.
    engine = FakeEngine(scripted("one two three vier fuenf"))
    made = generate(engine, chosen_settings(count=1, novelty_rouge_l=limit), forbidden=["one two three four five"])
    assert made.rejected["like_an_evaluation_prompt"] == 1 - accepted


def test_accepted_prompts_are_novel_and_say_how_close_they_came() -> None:
    known = [SeedPrompt("old-0", "Tell me something about bado beki bilu bomar")]
    made = generate(FakeEngine(invent), chosen_settings(count=8, novelty_rouge_l=STRICT), known=known)
    taken = [s.prompt for s in (*SEEDS, *known)]
    for row in made.prompts.itertuples():
        assert row.nearest_rouge_l == pytest.approx(
            max(rouge_l(row.prompt.lower().split(), t.lower().split()) for t in taken)
        )
        assert row.nearest_rouge_l < STRICT
        taken.append(row.prompt)
    assert made.rejected["not_novel"] > 0
    assert list(made.prompts["prompt_id"]) == [f"iter_001-{n:05d}" for n in range(8)]


def test_attempts_after_the_last_accepted_prompt_are_not_counted() -> None:
    made = generate(FakeEngine(scripted()), chosen_settings(count=5, batch_size=4))
    assert (len(made.prompts), made.attempts) == (5, 5)


def test_giving_up_says_why_and_which_settings_help() -> None:
    engine = FakeEngine(lambda request: "Repeat the same prompt again")
    with pytest.raises(EmptyDataError) as error:
        generate(engine, chosen_settings(count=3, max_attempts_factor=2, batch_size=4))
    message = str(error.value)
    assert "only 1 of 3 prompts" in message
    assert "6 attempts" in message
    assert "'not_novel': 5" in message
    for setting in ("prompt_generation.temperature", "novelty_rouge_l", "prompt_generation.count"):
        assert setting in message
    assert len(engine.requests) == 6


def test_examples_are_shown_as_numbered_single_lines() -> None:
    message, reply_start = few_shot_exchange(["Sort:\n- pear\n- apple", "Task 9: trap"])
    assert reply_start == "Task 1: Sort: - pear - apple\nTask 2: Task 9: trap\nTask 3:"
    assert "pear" not in message


def test_examples_are_seeds_first_and_a_mix_as_soon_as_prompts_were_accepted() -> None:
    engine = FakeEngine(invent)
    made = generate(engine, chosen_settings(count=40, batch_size=4, novelty_rouge_l=1.0))
    texts = {s.id: s.prompt for s in SEEDS} | dict(zip(made.prompts["prompt_id"], made.prompts["prompt"], strict=True))
    for n, (request, parents) in enumerate(zip(engine.requests, made.prompts["parent_ids"], strict=False)):
        ids = parents.split(",")
        assert examples_in(request) == [texts[i] for i in ids]
        assert len(set(ids)) == 5
        assert sum(i.startswith("iter_001") for i in ids) == (0 if n < 32 else 2)
        assert request.prompt.endswith("\nTask 6:")
    assert len(engine.requests) == 64, "whole rounds are asked for"
    assert made.prompts["parent_ids"].nunique() == 40


def test_prompts_of_earlier_iterations_serve_as_examples() -> None:
    known = [SeedPrompt(f"old-{n}", f"An older prompt of kind {n}") for n in range(2)]
    engine = FakeEngine(invent)
    generate(engine, chosen_settings(count=1), known=known)
    assert {p.prompt for p in known} < set(examples_in(engine.requests[0]))


def test_all_seeds_are_shown_if_there_are_fewer_than_asked_for() -> None:
    engine = FakeEngine(invent)
    generate(engine, chosen_settings(count=1, seed_examples=50))
    assert sorted(examples_in(engine.requests[0])) == sorted(s.prompt for s in SEEDS)


def test_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    one, again, other = (generate(FakeEngine(invent), chosen_settings(), run_seed=s).prompts for s in (7, 7, 8))
    pd.testing.assert_frame_equal(one, again)
    assert not set(one["prompt"]) & set(other["prompt"])


@pytest.mark.parametrize("dies_at", [0, 3, 6, 9])
def test_interrupted_run_continues_to_the_same_prompts(tmp_path: Path, dies_at: int) -> None:
    whole = generate(FakeEngine(invent), chosen_settings(novelty_rouge_l=STRICT))
    assert whole.rejected
    with pytest.raises(KeyboardInterrupt):
        generate(
            FakeEngine(invent, dies_at=dies_at), chosen_settings(novelty_rouge_l=STRICT), journal=Journal(tmp_path)
        )
    engine = FakeEngine(invent)
    resumed = generate(engine, chosen_settings(novelty_rouge_l=STRICT), journal=Journal(tmp_path))
    pd.testing.assert_frame_equal(resumed.prompts, whole.prompts)
    assert (resumed.attempts, resumed.rejected) == (whole.attempts, whole.rejected)
    assert [int(r.key) for r in engine.requests] == list(range(dies_at, dies_at + len(engine.requests)))


def test_batch_size_does_not_change_prompts_made_from_seeds_alone() -> None:
    sizes = [
        generate(FakeEngine(invent), chosen_settings(generated_examples=0, batch_size=n, novelty_rouge_l=STRICT))
        for n in (1, 4, 50)
    ]
    assert sizes[0].rejected
    for other in sizes[1:]:
        pd.testing.assert_frame_equal(other.prompts, sizes[0].prompts)
        assert (other.attempts, other.rejected) == (sizes[0].attempts, sizes[0].rejected)


def test_batch_size_does_not_change_the_prompts() -> None:
    small, large = (generate(FakeEngine(invent), chosen_settings(batch_size=n)) for n in (1, 4))
    pd.testing.assert_frame_equal(small.prompts, large.prompts)
