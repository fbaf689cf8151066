"""Prompts made out of prompts, and tasks made by program."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.checkable import DrawnTask, check, checks_of, read_checks
from srlm_pipeline.checks.closed_tasks import is_right, load_closed_tasks
from srlm_pipeline.checks.instructions import KINDS, NEVER_TRAINED
from srlm_pipeline.config import PromptGenerationSettings, load_settings
from srlm_pipeline.errors import EmptyDataError, SettingsError
from srlm_pipeline.generation.engine import GenerationRequest
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.progress import LogProgress, NullProgress, ProgressReporter
from srlm_pipeline.prompting.constraints import CONSTRAINTS, LEVELS, compatible, draw_constraint
from srlm_pipeline.prompting.creation import create_prompts
from srlm_pipeline.prompting.difficulty import Difficulty, Trial, difficulty_curve, gather_trials
from srlm_pipeline.prompting.evolution import Earlier, prompts_by_operator
from srlm_pipeline.prompting.family import family_trees, tree_lines
from srlm_pipeline.prompting.few_shot import PromptGeneration, SeedPrompt
from srlm_pipeline.prompting.filters import NoveltyIndex
from srlm_pipeline.prompting.rewriting import OPERATORS, rewriting_failure
from srlm_pipeline.prompting.tasks import TASKS, draw_task
from srlm_pipeline.tables import GENERATED_PROMPTS, REFUSED_PROMPTS, check_table

SUBJECTS = ["harbour", "kitchen", "mountain", "library", "orchard", "station", "theatre", "meadow", "bridge", "market"]
VOCABULARY = [a + b + c for a in "bcdfghklmnprst" for b in ("adde", "ekko", "illa", "omme") for c in "aeu"]
SEEDS = [SeedPrompt(f"seed-{n}", f"Write two lines about the old {subject}") for n, subject in enumerate(SUBJECTS)]
LEVEL = st.integers(1, LEVELS)


def write(request: GenerationRequest) -> str:
    """Invent something, or rewrite the last task of the list on its subject."""
    tasks = re.findall(r"Task \d+: (.+)", request.prompt)
    words = " ".join(Random(request.seed).choices(VOCABULARY, k=4))
    if re.search(r"(Harder|Particular|Seldom asked) task \d+:$", request.prompt):
        subject = re.findall(r"\w{5,}", tasks[-1])[-1]
        return f"Compare what visitors think of {subject} with {words}"
    return f"Say something of {words}"


def create(
    earlier: Earlier | None = None,
    engine: FakeEngine | None = None,
    journal: Journal | None = None,
    forbidden: tuple[str, ...] = (),
    stage: str = "prompts/iter_001",
    progress: ProgressReporter | None = None,
    **evolution: float,
) -> PromptGeneration:
    chosen = PromptGenerationSettings(count=20, seed_examples=3, generated_examples=1, evolution=evolution)
    shown, engine = progress or NullProgress(), engine or FakeEngine(write)
    made = create_prompts(engine, SEEDS, earlier or Earlier(), forbidden, chosen, 7, stage, shown, journal)
    check_table(made.prompts, GENERATED_PROMPTS)
    check_table(made.refused, REFUSED_PROMPTS)
    return made


EVERYTHING = {"constrain": 0.25, "given": 0.05, "task": 0.2, "deepen": 0.1, "concretise": 0.1, "broaden": 0.05}


def test_every_operator_makes_its_share() -> None:
    made = create(**EVERYTHING)
    counts = {"few_shot": 5, "constrain": 5, "given": 1, "task": 4, "deepen": 2, "concretise": 2, "broaden": 1}
    assert Counter(made.prompts["operator"]) == counts
    assert made.prompts["prompt_id"].is_unique
    assert made.attempts == len(made.prompts) + len(made.refused)


def test_without_evolution_all_are_invented() -> None:
    made = create().prompts
    assert set(made["operator"]) == {"few_shot"}
    assert (made["round"] == 0).all() and (made["checks"] == "").all()


@given(st.dictionaries(st.sampled_from(list(EVERYTHING)), st.floats(0, 0.15)), st.integers(1, 200))
def test_shares_add_up_to_the_count(shares: dict[str, float], count: int) -> None:
    found = prompts_by_operator(PromptGenerationSettings(count=count, evolution=shares))
    assert sum(found.values()) == count
    assert min(found.values()) >= 0 and found["few_shot"] >= 1
    for operator, share in shares.items():
        assert abs(found[operator] - share * count) < 1 + 1e-6


def test_shares_of_few_prompts_do_not_add_up_to_more_than_there_are() -> None:
    found = prompts_by_operator(PromptGenerationSettings(count=3, evolution=dict.fromkeys(EVERYTHING, 0.15)))
    assert sum(found.values()) == 3
    assert found["few_shot"] == 1


def test_what_was_made_out_of_what_is_recorded() -> None:
    prompts = create(**EVERYTHING).prompts
    texts = dict(zip(prompts["prompt_id"], prompts["prompt"], strict=True)) | {s.id: s.prompt for s in SEEDS}
    for row in prompts[prompts["operator"] == "constrain"].itertuples():
        assert row.prompt.startswith(texts[row.parent_ids])
        assert row.round == 1
        checks = read_checks(row.checks, row.prompt)
        assert isinstance(checks, tuple) and 1 <= len(checks) <= 3
    for row in prompts[prompts["operator"].isin(OPERATORS)].itertuples():
        assert row.parent_ids in texts
        assert row.checks == ""
    for row in prompts[prompts["operator"] == "task"].itertuples():
        assert (row.parent_ids, row.round) == ("", 0)
        assert isinstance(read_checks(row.checks, row.prompt), DrawnTask)


def test_nobody_gets_a_second_child_before_everybody_has_one() -> None:
    prompts = create(constrain=0.5).prompts
    parents = prompts["parent_ids"][prompts["operator"] == "constrain"]
    assert parents.is_unique
    assert parents.str.startswith("seed-").sum() == 5


def test_given_prompts_all_come_once_before_one_comes_again() -> None:
    earlier, found = Earlier(), []
    for t in range(1, 4):
        made = create(earlier, stage=f"prompts/iter_{t:03d}", given=0.2).prompts
        one = made[made["operator"] == "given"]
        assert (one["round"] == 0).all() and (one["checks"] == "").all()
        assert dict(zip(one["parent_ids"], one["prompt"], strict=True)).items() <= {(s.id, s.prompt) for s in SEEDS}
        found.append(list(one["parent_ids"]))
        earlier = Earlier(pd.concat([earlier.prompts, made], ignore_index=True))
    assert [len(set(ids)) for ids in found] == [4, 4, 4]
    assert not set(found[0]) & set(found[1]), "ten for eight"
    assert len({*found[0], *found[1], *found[2]}) == 10


def test_more_given_prompts_than_there_are_end_with_what_to_do() -> None:
    with pytest.raises(EmptyDataError, match=r"given made only 10 of 12.*add prompts to data\.ift"):
        create(given=0.6)


def test_an_interrupted_evolution_continues_where_it_was(tmp_path: pytest.TempPathFactory) -> None:
    whole = create(**EVERYTHING)
    journal = Journal(tmp_path / "journal")  # type: ignore[operator]
    dying = FakeEngine(write, dies_at=30)
    with pytest.raises(KeyboardInterrupt):
        create(engine=dying, journal=journal, **EVERYTHING)
    second = FakeEngine(write)
    again = create(engine=second, journal=Journal(tmp_path / "journal"), **EVERYTHING)  # type: ignore[operator]
    assert again.prompts.equals(whole.prompts)
    asked = {request.key for request in dying.requests} & {request.key for request in second.requests}
    assert not asked, "nothing is written twice"


def test_prompts_that_a_journal_holds_are_not_counted_as_made_now(tmp_path: Path) -> None:
    mine = {"deepen": 0.2, "constrain": 0.2}
    lines: list[str] = []
    create(journal=Journal(tmp_path), progress=LogProgress(lines.append, every=3600), **mine)
    assert [" prompts in " in line for line in lines] == [True, True, True]
    lines.clear()
    create(journal=Journal(tmp_path), progress=LogProgress(lines.append, every=3600), **mine)
    assert lines[0] == "inventing prompts: all 12 prompts were finished before"
    assert "evolving prompts: deepen: all 4 prompts were finished before" in lines


def test_later_iterations_repeat_nothing_and_show_no_checked_prompt_as_an_example() -> None:
    first = create(**EVERYTHING).prompts
    engine = FakeEngine(write)
    second = create(Earlier(prompts=first), engine, stage="prompts/iter_002", **EVERYTHING).prompts
    assert not set(first["prompt"]) & set(second["prompt"])
    shown = {task for request in engine.requests for task in re.findall(r"Task \d+: (.+)", request.prompt)}
    assert not shown & set(first["prompt"][first["checks"] != ""])


def test_prompts_like_those_of_the_evaluation_are_not_made() -> None:
    made = create(task=0.5).prompts
    forbidden = made["prompt"][made["operator"] == "task"].iloc[0]
    again = create(forbidden=(forbidden,), task=0.5)
    index = NoveltyIndex([forbidden])
    assert max(map(index.nearest, again.prompts["prompt"])) < 0.7
    assert "task: like_an_evaluation_prompt" in set(again.refused["reason"])


def test_a_model_that_cannot_rewrite_ends_the_stage_with_advice() -> None:
    def stubborn(request: GenerationRequest) -> str:
        tasks = re.findall(r"Task \d+: (.+)", request.prompt)
        return tasks[-1] if request.prompt.endswith("task 5:") else write(request)

    with pytest.raises(EmptyDataError, match=r"deepen made only 0 of 2.*like_its_parent.*evolution\.deepen"):
        create(engine=FakeEngine(stubborn), deepen=0.1)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("Explain which plants of an orchard suffer most from frost, and why.", None),
        ("Describe an orchard in spring.", "like_its_parent"),
        ("Sure! An orchard in spring is full of blossom.", "answer"),
        ("Write a harder task about the orchard in winter.", "leaked_wording"),
        ("Explain how a clock strikes twelve at noon.", "off_its_subject"),
        ("Compare basil, mint and rosemary: which of them needs least care?", "like_an_example"),
    ],
)
def test_failed_rewritings_are_recognised(text: str, failure: str | None) -> None:
    assert rewriting_failure("deepen", text, "Describe an orchard in the spring.", 0.7) == failure


def test_more_than_a_third_of_the_kinds_are_never_trained_on() -> None:
    assert CONSTRAINTS.keys() | NEVER_TRAINED == KINDS.keys()
    assert not CONSTRAINTS.keys() & NEVER_TRAINED
    assert len(NEVER_TRAINED) * 3 >= len(KINDS)
    assert not TASKS.keys() & {task.kind for task in load_closed_tasks("embedded")}


@given(st.integers(0, 2**32), LEVEL, st.sampled_from(list(TASKS)))
@settings(max_examples=300)
def test_a_task_accepts_its_answers_and_nothing_that_is_wrong(seed: int, level: int, kind: str) -> None:
    task = draw_task(np.random.default_rng(seed), kind, level).task
    assert all(is_right(task, answer) for answer in task.answers)
    assert not any(is_right(task, wrong) for wrong in task.wrong)


# A reply that follows each of them at every level, to show that what is asked can be done.
def obedient(kind: str, arguments: dict[str, object]) -> str:
    body = "Quiet streets lead down to the old harbour where boats rest"
    match kind:
        case "keywords:existence":
            return f"{body} {' '.join(arguments['keywords'])}"  # type: ignore[arg-type]
        case "keywords:frequency":
            return " while ".join(f"{arguments['keyword']} {n}" for n in range(int(arguments["frequency"])))  # type: ignore[call-overload]
        case "keywords:forbidden_words":
            return "Boats rest"
        case "length_constraints:number_sentences":
            few = arguments["relation"] == "less than"
            n = 1 if few else int(arguments["num_sentences"])  # type: ignore[call-overload]
            return " ".join(f"Boat {word} rests here." for word in SUBJECTS[:n])
        case "length_constraints:number_words":
            few = arguments["relation"] == "less than"
            n = 3 if few else int(arguments["num_words"])  # type: ignore[call-overload]
            return " ".join(f"{SUBJECTS[i % 10]}{i}" for i in range(n))
        case "length_constraints:number_paragraphs":
            return "\n***\n".join(f"About the {s}" for s in SUBJECTS[: int(arguments["num_paragraphs"])])  # type: ignore[call-overload]
        case "detectable_content:number_placeholders":
            return " ".join(f"[{s}]" for s in SUBJECTS[: int(arguments["num_placeholders"])])  # type: ignore[call-overload]
        case "detectable_content:postscript":
            return f"{body}\nP.S. Come soon"
        case "detectable_format:number_bullet_lists":
            return "\n".join(f"* the {s}" for s in SUBJECTS[: int(arguments["num_bullets"])])  # type: ignore[call-overload]
        case "detectable_format:number_highlighted_sections":
            return " ".join(f"*{s}*" for s in SUBJECTS[: int(arguments["num_highlights"])])  # type: ignore[call-overload]
        case "detectable_format:title":
            return f"<<Boats>>\n{body}"
        case "detectable_format:json_format":
            return '{"boats": "rest"}'
        case "startend:end_checker":
            return f"{body}. {arguments['end_phrase']}"
        case "change_case:english_capital":
            return body.upper()
        case "change_case:english_lowercase":
            return body.lower()
        case "punctuation:no_comma":
            return body
    raise AssertionError(kind)


@given(st.integers(0, 2**32), LEVEL, st.sampled_from(list(CONSTRAINTS)))
@settings(max_examples=300)
def test_every_constraint_can_be_met(seed: int, level: int, kind: str) -> None:
    drawn, sentence = draw_constraint(np.random.default_rng(seed), kind, level, "Say something of the weather today")
    arguments = drawn.instruction.arguments.model_dump()
    prompt = f"Describe any place you like. {sentence}"
    (found,) = check((drawn,), prompt, obedient(kind, arguments))
    assert found.passed, (arguments, sentence)


@given(st.lists(st.sampled_from(list(CONSTRAINTS)), max_size=8))
def test_instructions_of_one_prompt_do_not_contradict_each_other(kinds: list[str]) -> None:
    chosen: list[str] = []
    for kind in kinds:
        if compatible(kind, chosen):
            chosen.append(kind)
    assert not {"change_case:english_capital", "change_case:english_lowercase"} <= set(chosen)
    assert "detectable_format:json_format" not in chosen or len(chosen) == 1
    groups = [CONSTRAINTS[kind].group for kind in chosen]
    assert len(groups) == len(set(groups))


def test_before_anything_is_known_kinds_are_alike_and_easy_levels_are_preferred() -> None:
    difficulty = Difficulty()
    drawn = [difficulty.draw(np.random.default_rng(n), ["a", "b"], LEVELS) for n in range(600)]
    kinds, levels = Counter(kind for kind, _ in drawn), Counter(level for _, level in drawn)
    assert max(kinds.values()) < 1.3 * min(kinds.values())
    assert set(levels) == set(range(1, LEVELS + 1))
    assert levels[1] > 3 * levels[LEVELS]


def test_what_is_passed_half_the_time_is_drawn_most() -> None:
    trials = [Trial("hard", 1, 1, 40, 0), Trial("even", 1, 1, 40, 20), Trial("easy", 1, 1, 40, 40)]
    difficulty = Difficulty(trials)
    drawn = Counter(difficulty.draw(np.random.default_rng(n), ["hard", "even", "easy"], 1)[0] for n in range(300))
    assert drawn["even"] > 0.9 * 300


def test_levels_move_towards_where_half_is_passed() -> None:
    """A model that passes levels 1 and 2 and fails 4 and 5 is mostly asked in between."""
    rates = {1: 1.0, 2: 1.0, 3: 0.5, 4: 0.0, 5: 0.0}
    difficulty = Difficulty([Trial("kind", level, 1, 60, round(60 * rate)) for level, rate in rates.items()])
    drawn = Counter(difficulty.draw(np.random.default_rng(n), ["kind"], 5)[1] for n in range(300))
    assert drawn.most_common(1)[0][0] == 3
    assert drawn[1] + drawn[5] < drawn[3]


@given(
    st.lists(
        st.builds(
            lambda level, age, n, share: Trial("k", level, age, n, round(n * share)),
            LEVEL,
            st.integers(1, 4),
            st.integers(0, 30),
            st.floats(0, 1),
        ),
        max_size=6,
    ),
    LEVEL,
)
def test_expected_pass_rates_lie_strictly_between_nothing_and_all(trials: list[Trial], level: int) -> None:
    assert 0 < Difficulty(trials).pass_rate("k", level) < 1


def test_newer_trials_count_more() -> None:
    older = [Trial("k", 1, 2, 20, 0), Trial("k", 1, 1, 20, 20)]
    assert Difficulty(older).pass_rate("k", 1) > 0.6


def test_trials_and_curve_come_from_the_replies() -> None:
    prompts = create(task=0.5, constrain=0.25).prompts
    checks = checks_of(prompts)
    rows = []
    for prompt_id, prompt in zip(prompts["prompt_id"], prompts["prompt"], strict=True):
        known = checks.get(prompt)
        answer = known.task.answers[0] if isinstance(known, DrawnTask) else ""
        rows += [(prompt_id, prompt, answer, 4.0), (prompt_id, prompt, "no idea", 2.0)]
    scored = pd.DataFrame(rows, columns=["prompt_id", "prompt", "completion", "score"])
    trials = gather_trials(prompts, scored, age=2)
    tasks = [trial for trial in trials if trial.kind in TASKS]
    assert sum(trial.n for trial in tasks) == 20
    assert sum(trial.n_passed for trial in tasks) == 10
    assert {trial.age for trial in trials} == {2}
    curve = difficulty_curve(prompts, scored)
    assert curve["difficulty/pass_rate/tasks"] == 0.5
    assert curve["difficulty/score_spread"] == 1.0
    level = curve["difficulty/level"]
    assert level is not None and 1 <= level <= LEVELS


def test_parents_are_such_as_split_the_scores() -> None:
    first = create().prompts
    torn = first["prompt_id"].iloc[4]
    spreads = dict.fromkeys(first["prompt_id"], 0.0) | {torn: 2.0}
    made = create(Earlier(prompts=first, spreads=spreads), stage="prompts/iter_002", broaden=0.5).prompts
    parents = Counter(made["parent_ids"][made["operator"] == "broaden"])
    assert parents[torn] >= 3
    assert not any(parents[other] for other in first["prompt_id"] if other != torn)


def test_family_trees_hang_on_what_was_invented() -> None:
    columns = ["prompt_id", "prompt", "operator", "parent_ids"]
    table = pd.DataFrame(
        [
            ("a", "One", "few_shot", "seed-1,seed-2"),
            ("b", "Two", "few_shot", "a,seed-1"),
            ("c", "One, harder", "deepen", "a"),
            ("d", "One, harder. No commas.", "constrain", "c"),
            ("e", "Of a seed", "constrain", "seed-9"),
        ],
        columns=columns,
    )
    trees = family_trees(table)
    assert [tree.prompt_id for tree in trees] == ["a", "b", "e"]
    assert list(tree_lines(trees[0])) == [
        "- *few_shot* One",
        "  - *deepen* One, harder",
        "    - *constrain* One, harder. No commas.",
    ]


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"prompt_generation": {"evolution": {"constrain": 0.5, "task": 0.5}}}, "must not exceed 0.9"),
        ({"prompt_generation": {"evolution": {"constrain": 0, "task": 0}}}, "verifiers need checkable prompts"),
        ({"judge": {"panel": ["verifiers"]}}, "name self beside them"),
        ({"judge": {"panel": ["self", {"model": "verifiers", "mode": "sampled"}]}}, "have no mode"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: dict[str, object], field: str) -> None:
    sensible = {
        "prompt_generation": {"evolution": {"constrain": 0.2}},
        "judge": {"panel": ["self", "verifiers"]},
    }
    load_settings("quickstart", sensible)
    with pytest.raises(SettingsError, match=field):
        load_settings("quickstart", sensible | overrides)
