"""The experiment: its parts never meet, the pipeline's held-out prompts are its own, its page shows what was found."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.oasst_split import Parts, write_parts
from benchmarks.outside import outside_rankings
from benchmarks.results_page import DOCUMENT, blocks
from benchmarks.self_improvement import CONFIG, arms
from benchmarks.table import MISSING, fill_blocks
from srlm_pipeline.config import DataSettings, load_settings, merge_overrides
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    data = tmp_path_factory.mktemp("data")
    (data / "oasst").mkdir()
    (data / "mt-bench").mkdir()
    groups = [
        {
            "prompt_id": f"g{n}",
            "prompt": f"ranked {n}",
            "replies": [{"text": t, "rank": r} for r, t in enumerate("abc ")],
        }
        for n in range(633)
    ]
    # What the real data has as well: replies with the same text, and prompts that differ in letter case alone.
    groups += [
        {"prompt_id": "twins", "prompt": "twins", "replies": [{"text": "a", "rank": 0}, {"text": " a", "rank": 1}]},
        {"prompt_id": "again", "prompt": "Ranked  1", "replies": groups[1]["replies"]},
    ]
    pairs = [{"prompt": f"instruction {n % 1683}", "response": "yes"} for n in range(1700)]
    questions = [{"question_id": n, "turns": [f"question {n}", "and then?"]} for n in range(80)]
    for name, rows in (
        ("oasst/eft_groups", groups),
        ("oasst/ift_pairs", pairs),
        ("mt-bench/question", questions),
    ):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_parts(data, tmp_path_factory.mktemp("parts"))


def prompts_of(path: Path) -> set[str]:
    return {json.loads(line)["prompt"] for line in path.read_text().splitlines()}


def test_the_parts_have_their_sizes_and_no_prompt_is_in_two(parts: Parts) -> None:
    paths = (parts.ift, parts.ranked, parts.evaluation, parts.development, parts.arbiter, parts.graded)
    found = [prompts_of(path) for path in paths]
    assert [len(prompts) for prompts in found] == [512, 350 + 40, 250, 100, 183 + 25, 100 - 40 - 25]
    assert len(set.union(*found)) == sum(map(len, found))


def test_the_pipeline_holds_out_as_many_prompts_as_planned_and_reads_all_parts(parts: Parts) -> None:
    data = DataSettings(
        ift={"source": str(parts.ift)},
        ranked_replies={"source": str(parts.ranked)},
        evaluation_prompts={"source": str(parts.evaluation)},
        held_out_fraction=parts.held_out_fraction,
    )
    ranked = load_ranked_replies(data).table
    first_lines = [json.loads(line)["prompt"] for line in parts.ranked.read_text().splitlines()][:150]
    assert set(ranked[ranked["split"] == "held_out"]["prompt"]) == set(first_lines)
    from_people = ranked[ranked["prompt"].str.startswith("ranked ")]
    assert from_people["prompt"].nunique() == len(ranked["prompt"].unique()) - 40
    assert set(from_people["text"]) == {"a", "b", "c"}, "blank replies are left out"
    assert len(load_instructions(data).table) == 512
    assert load_evaluation_prompts(data).table["kind"].value_counts().to_dict() == {"oasst": 170, "mt-bench": 80}


def test_every_arm_has_valid_settings() -> None:
    names = [arm.name for arm in arms(20, 2)]
    assert len(set(names)) == len(names)
    for arm in arms(20, 2):
        settings = load_settings(CONFIG, merge_overrides(list(arm.changes)))
        assert arm.iterations <= settings.schedule.planned_iterations


def test_rankings_from_elsewhere_have_an_answer_of_its_own_and_a_mismatched_one_as_long(
    tmp_path: Path, parts: Parts
) -> None:
    (tmp_path / "self-instruct").mkdir()
    tasks = [
        {"id": f"t{n}", "instruction": f"task {n}", "instances": [{"input": "", "output": f"{n:02d}" + "a" * n}]}
        for n in range(40)
    ]
    tasks[39]["instances"][0]["input"] = "input"
    path = tmp_path / "self-instruct" / "seed_tasks.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in reversed(tasks)))
    found = outside_rankings(tmp_path, parts.graded)["own answer or another task's"]
    assert set(found["prompt"]) == {f"task {n}" for n in range(18, 39)} | {"task 39\n\ninput"}
    for _, group in found.groupby("group_id"):
        own, mismatched = group.sort_values("rank")["text"]
        assert own[:2] in group["prompt"].iloc[0]
        assert abs(len(own) - len(mismatched)) == 1


def test_no_judge_has_learned_from_the_graded_replies_that_measure_it(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "self-instruct").mkdir()
    (tmp_path / "self-instruct" / "seed_tasks.jsonl").write_text("")
    measured = outside_rankings(tmp_path, parts.graded)["four graded replies"]
    assert measured["group_id"].nunique() == 35
    assert measured.groupby("group_id")["rank"].apply(sorted).map(tuple).unique().tolist() == [(0, 1, 2, 3)]
    assert not set(measured["prompt"]) & (prompts_of(parts.ranked) | prompts_of(parts.arbiter))


def arm(seed: int, *names: str) -> dict[str, Any]:
    judge = {
        "pairwise_accuracy": 0.7, "pairwise_low": 0.6, "pairwise_high": 0.8, "length_baseline": 0.75,
        "length_balanced_accuracy": 0.625, "accuracy_better_is_longer": 0.75, "accuracy_better_is_shorter": 0.5,
        "exact_match": 0.25, "spearman": 0.3, "kendall": 0.25, "parse_rate": 1.0, "n_groups": 150.0, "n_pairs": 700.0,
    }  # fmt: skip
    outside = {"mismatches": {**judge, "n_groups": 90.0}}
    replies = {
        "length_mean": 500.0, "tokens_mean": 120.0, "repeated_4grams": 0.1, "cut_off_share": 0.2,
        "verifiable": {
            "instruction_strict": 0.4, "instruction_strict_low": 0.3, "instruction_strict_high": 0.5,
            "ahead": -0.125, "ahead_low": -0.25, "ahead_high": 0.0,
        },
    }  # fmt: skip
    match = {
        "wins": 20.0, "ties": 3.0, "losses": 10.0, "p_value": 0.1,
        "decided_win_rate": 2 / 3, "decided_low": 0.5, "decided_high": 0.8,
        "length_controlled": 0.6, "length_controlled_low": 0.4, "length_controlled_high": 0.7,
    }  # fmt: skip
    undecided = {"wins": 0.0, "ties": 33.0, "losses": 0.0, "p_value": 1.0}
    return {
        "seed": seed,
        "models": {
            "base": {"judge": judge, "outside": outside},
            **{name: {"judge": judge, "outside": outside, **replies} for name in names},
        },
        "iterations": {
            "1": {
                "prompts": 128, "pairs": 100, "ties": 20, "too_few": 8, "score_mean": 3.0, "score_std": 0.5,
                "chosen_length": 480.0, "rejected_length": 510.0,
            }
        },
        "matches": [
            {"model": later, "opponent": earlier, "arbiter": match, "self": undecided}
            for place, later in enumerate(names)
            for earlier in names[:place]
        ],
    }  # fmt: skip


def test_the_page_shows_what_was_found_and_says_what_is_missing() -> None:
    loop = arm(20, "sft_baseline", "M1", "M2", "M3")
    timed = {**loop["models"]["M1"]["judge"], "valid_share": 0.5, "judgements_per_second": 2.0}
    unread = {"valid_share": 0.0, "parse_rate": 0.0, "n_pairs": 0.0, "judgements_per_second": 0.25}
    loop["judge_modes"] = {"distribution": timed, "sampled": unread}
    loop["full_rubric"] = arm(20, "sft_baseline", "M1")["models"]
    record: dict[str, Any] = {
        "date": "2026-01-02T03:04:05", "commit": "abc", "versions": {"torch": "2"}, "settings": "seed: 1",
        "machine": {"cores": 2, "cpu": "some", "memory_gib": 24}, "arbiter": loop["models"]["base"],
        "arms": {
            "loop": loop,
            "no-eft": arm(20, "sft_baseline", "M1", "M2"),
        },
    }  # fmt: skip
    found = blocks(record)
    assert (
        "| M3 against SFT baseline | 20 / 3 / 10 | 66.7% (50.0% to 80.0%) | 0.100 | 60.0% (40.0% to 70.0%) |"
    ) in found["matches"]
    assert found["matches"].count("against") == 6
    assert "70.0% (60.0% to 80.0%) | 62.5%" in found["judges"]
    assert "| M3 | 70.0% (60.0% to 80.0%) | 75.0% | 50.0% |" in found["outside"]
    assert "mismatches: 90 prompts, 700 pairs, the longer reply is the better one in 75.0%." in found["outside"]
    assert "| 20.0% | 40.0% (30.0% to 50.0%) | -12.5% (-25.0% to +0.0%) |" in found["lengths"]
    assert found["ablations"].count("\n| ") == 3
    assert "| full | M1 | 70.0% (60.0% to 80.0%) | 62.5% | 70.0% (60.0% to 80.0%) |" in found["rubrics"]
    assert "| distribution | 50.0% | 100.0% | 700 | 70.0% (60.0% to 80.0%) | 62.5% | 2.00 |" in found["judge-modes"]
    assert "| sampled | 0.0% | 0.0% | 0 |  |  | 0.25 |" in found["judge-modes"]
    page = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), found)
    assert page.count(MISSING) == 1, "the model's own judgements"
