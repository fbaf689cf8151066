"""Planning: work counted by hand and against what the stages do, speed against hand calculation, the plan as shown."""

import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console
from test_cli import srlm as srlm

from srlm_pipeline.acceleration.switch import SWITCH
from srlm_pipeline.assets.seed import ift_dataset
from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.commands import planning as command
from srlm_pipeline.config import (
    ArbiterSettings,
    ClosedTaskSettings,
    EarlyStoppingSettings,
    PanelMember,
    ServerSettings,
    Settings,
    load_settings,
)
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.evaluation.measuring import judge_ranked_replies
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.planning.machines import (
    GPUS,
    LIKELY,
    find_gpu,
    parse_size,
    remedies,
    requests_in_flight,
    shape_of_size,
    stated_basis,
    training_operations,
)
from srlm_pipeline.planning.plan import Basis, Memory, Plan, Range, make_plan, plan_path, read_record, write_record
from srlm_pipeline.planning.probe import _solve, machine_in_words, probe_path, run_probe
from srlm_pipeline.planning.workload import (
    TRAINERS,
    Assumptions,
    DataFacts,
    Kind,
    Lengths,
    Part,
    StageWork,
    TextMeasure,
    Unit,
    character_measure,
    count_work,
    measure_data,
    optimiser_steps,
    read_to_judge,
    tokenizer_measure,
    unshared,
)
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import ProjectStore

# With every stage that there is, whatever the preset leaves out.
QUICKSTART = load_settings(
    "quickstart",
    {
        "sft": {"enabled": True},
        "eft": {"targets": "dataset", "rationales_per_prompt": 1, "mismatched_negatives": 0, "corrupted_negatives": 0},
        "prompt_generation": {"count": 24},
    },
)
FACTS = DataFacts(
    instructions=Lengths(40, (50,) * 40),
    messages=Lengths(40, (20,) * 40),
    responses=Lengths(40, (30,) * 40),
    judgements=Lengths(10, (200,) * 10),
    ranked=Lengths(40, (160,) * 40),
    groups=10,
    explaining=Lengths(40, (90,) * 40),
    held_out=Lengths(12, (80,) * 12),
    held_out_groups=3,
    held_out_of_no_kind=0,
    held_out_pairs=18,
    evaluation=Lengths(7, (15,) * 7),
    verifiable=Lengths(6, (25,) * 6),
    closed=Lengths(9, (5,) * 9),
    best_replies=Lengths(3, (45,) * 3),
    few_shot=Lengths(5, (150,) * 5),
    bare_prompt=10.0,
    kinds=Lengths(4, (60,) * 4),
    checklists=Lengths(4, (70,) * 4),
    judge_frame=40,
    comparison_frame=30,
)
SECONDS: dict[Unit, float] = {
    "prompted": 1e-3,
    "judged": 2e-3,
    "step": 0.05,
    "drawn": 1e-3,
    "sft": 3e-3,
    "ranking": 4e-3,
    "dpo": 5e-3,
    "trainer": 4.0,
    "engine": 1.0,
    "save": 1.0,
    "stage": 0.5,
}
ENOUGH = Memory(fixed=1e9, per_token=1e3)
KINDS: tuple[Kind, ...] = ("writing", "judging", *TRAINERS)
BASIS = Basis(
    source="probe",
    machine="two cores",
    parameters=1000,
    seconds={unit: Range(low=s / 2, likely=s, high=2 * s) for unit, s in SECONDS.items()},
    start=6.0,
    memory=dict.fromkeys(KINDS, ENOUGH),
    available=8e9,
    host_memory=0.0,
    in_flight=None,
    notes=("measured",),
)


def changed(settings: Settings = QUICKSTART, **sections: dict[str, Any]) -> Settings:
    update = {name: getattr(settings, name).model_copy(update=fields) for name, fields in sections.items()}
    return settings.model_copy(update=update)


def work(settings: Settings = QUICKSTART, facts: DataFacts = FACTS, **assumed: Any) -> dict[str, StageWork]:
    return {w.stage: w for w in count_work(settings, facts, Assumptions(**{"reply_share": 1.0, **assumed}))}


def kinds(stage: StageWork) -> list[str]:
    return [part.kind for part in stage.parts]


def planned(settings: Settings = QUICKSTART, iterations: int = 2, basis: Basis = BASIS) -> Plan:
    return make_plan(settings, FACTS, basis, iterations, "a model")


def test_what_all_texts_begin_with_is_read_once() -> None:
    assert unshared(["ask a", "ask b"]) == ["a", "b"]
    assert unshared(["ask", "ask again"]) == ["", " again"]
    assert unshared(["alone"]) == ["alone"]


@given(st.lists(st.text(alphabet="ab", max_size=6), min_size=2, max_size=6))
def test_texts_lose_their_common_beginning_and_nothing_else(texts: list[str]) -> None:
    cut = unshared(texts)
    beginning = texts[0][: len(texts[0]) - len(cut[0])]
    assert [beginning + text for text in cut] == texts
    assert not all(cut) or len({text[0] for text in cut}) > 1, "and all of it"


# Work by hand


def test_sft_trains_on_every_token_in_every_epoch() -> None:
    settings = changed(sft={"epochs": 2, "batch_size": 16, "micro_batch_size": 2, "max_length": 512})
    stage = work(settings)["sft_baseline"]
    (part,) = stage.parts
    assert part.steps == 6
    assert stage.units["sft"] == stage.tokens_read == pytest.approx(2 * 40 * 50)
    assert part.held == pytest.approx(100)


def test_training_cuts_long_texts() -> None:
    assert work(changed(sft={"max_length": 32}))["sft_baseline"].units["sft"] == pytest.approx(40 * 32)


def test_seed_model_trains_on_instructions_and_judgements_and_then_to_rank() -> None:
    stage = work()["seed_model"]
    sft, ranking = stage.parts
    assert (sft.kind, ranking.kind) == ("sft", "ranking")
    assert (sft.items, ranking.items) == (50, 10)
    assert stage.units["sft"] == pytest.approx(40 * 50 + 10 * 200)
    assert stage.units["ranking"] == pytest.approx(10 * 4 * 160)
    assert ranking.steps == 3
    assert stage.units["save"] == stage.units["trainer"] == 2


def test_comparisons_are_items_of_their_own() -> None:
    stage = work(changed(eft={"comparisons_per_prompt": 2}))["seed_model"]
    assert stage.parts[1].items == 30
    assert stage.units["ranking"] == pytest.approx(10 * 4 * 160 + 20 * 2 * (30 + 10 + 2 * 30))


def test_invented_prompts_come_in_rounds_of_attempts() -> None:
    stage = work(changed(prompt_generation={"count": 24, "max_new_tokens": 64}))["generated_prompts"]
    units = stage.units
    assert stage.items == 64
    assert (units["prompted"], units["drawn"]) == (64 * 150, 64 * 11)
    assert 2 * 11 <= units["step"] <= 2 * 64


def test_samples_of_one_prompt_read_it_once() -> None:
    stage = work(changed(candidates={"per_prompt": 4, "max_new_tokens": 25, "batch_size": 64}))["candidates"]
    assert stage.items == 96
    assert (stage.units["prompted"], stage.units["drawn"], stage.units["step"]) == (24 * 20, 96 * 25, 2 * 25)


def test_a_server_does_not_wait_for_the_longest_reply() -> None:
    settings = changed(candidates={"max_new_tokens": 100, "batch_size": 64})
    in_batches = work(settings)["candidates"].units["step"]
    served = {w.stage: w for w in count_work(settings, FACTS, Assumptions(reply_share=1.0), in_flight=64)}
    assert served["candidates"].units["step"] == pytest.approx(96 / 64 * 30)
    assert served["candidates"].units["step"] < in_batches


def test_a_distribution_judge_reads_and_a_sampling_one_writes() -> None:
    reading = work()["judged_scores"]
    assert (reading.items, reading.units["judged"]) == (96, 96 * (40 + 10 + 30))
    writing = work(changed(judge={"mode": "sampled", "samples": 3, "max_new_tokens": 128}))["judged_scores"]
    (part,) = writing.parts
    assert (part.kind, part.items) == ("writing", 288)
    assert (writing.units["prompted"], writing.units["drawn"]) == (reading.units["judged"], 288 * 128)


def test_a_hybrid_judge_writes_one_rationale_and_reads_it_once_more() -> None:
    settings = changed(judge={"mode": "hybrid", "samples": 3, "max_new_tokens": 128})
    stages = work(settings)
    units = stages["judged_scores"].units
    assert [(part.kind, part.items) for part in stages["judged_scores"].parts] == [("writing", 96), ("judging", 96)]
    assert (units["prompted"], units["drawn"]) == (96 * (40 + 10 + 30), 96 * 128)
    assert units["judged"] == units["prompted"] + units["drawn"]
    assert kinds(stages["assessment"]) == ["writing"] * 4 + ["judging"] * 2, "the fourth writes what the fifth reads"
    assert any("a written judgement has" in line for line in planned(settings).assumptions)


def test_own_judgements_are_written_before_some_of_them_are_learned() -> None:
    stages = work(changed(eft={"targets": "self", "rationales_per_prompt": None}), self_judged_kept=0.5)
    (judging,) = stages["eft_dataset"].parts
    assert (judging.kind, judging.items) == ("writing", 40 * QUICKSTART.judge.samples)
    assert [part.items for part in stages["seed_model"].parts] == [40 + 5 * 4, 5]


def test_without_judging_data_there_is_nothing_to_rank() -> None:
    stages = work(changed(eft={"enabled": False}), replace(FACTS, judgements=Lengths(0, ())))
    assert stages["seed_model"].parts == (), "the SFT baseline is M1"
    assert stages["eft_dataset"].items == 0


def test_ranks_need_no_judgement_texts() -> None:
    stages = work(changed(eft={"targets": "ranks"}))
    assert stages["eft_dataset"].parts == ()
    assert kinds(stages["seed_model"]) == ["ranking"]
    assert stages["seed_model"].parts[0] == work()["seed_model"].parts[1]
    again = work(changed(eft={"targets": "ranks"}, pairs={"strategy": "positive_only"}))["iteration_model"]
    assert kinds(again) == ["sft", "ranking"], "replies have joined the data"


def test_whatever_is_measured_is_asked_for_once_of_every_model() -> None:
    stages = work()
    assessment, seed = stages["assessment"], stages["seed_assessment"]
    # Human-ranked replies are judged, and the best of them read as if the model had written them.
    expected = [("writing", 7), ("writing", 6), ("writing", 9), ("judging", 12), ("judging", 3)]
    assert [(part.kind, part.items) for part in assessment.parts] == expected
    assert assessment.parts[-1].units == {"judged": 3 * 45}
    assert assessment.items == 7 + 6 + 9 + 12
    assert assessment.engines == 2, "for asking and for reading"
    assert seed.parts == assessment.parts * 3, "base model, SFT baseline and M1"
    assert (seed.items, seed.engines) == (3 * assessment.items, 3 * assessment.engines)
    assert not any("writing" in kinds(stages[name]) for name in ("seed_evaluation", "win_rates"))


def test_sets_that_are_switched_off_are_not_asked_for() -> None:
    off = work(facts=replace(FACTS, verifiable=Lengths(0, ()), closed=Lengths(0, ())))["assessment"]
    assert [p.items for p in off.parts if p.kind == "writing"] == [7, 0, 0]
    assert off.items == 7 + 12


def test_replies_to_closed_tasks_are_as_short_as_the_settings_say() -> None:
    settings = changed(evaluation={"closed_tasks": ClosedTaskSettings(max_new_tokens=4)})
    closed = work(settings)["assessment"].parts[2]
    assert (closed.items, closed.units["prompted"], closed.units["drawn"]) == (9, 9 * 5, 9 * 4)


def test_the_distance_from_the_seed_model_takes_reading_the_replies_twice() -> None:
    stage = work()["collapse_monitors"]
    assert (stage.items, stage.units["judged"]) == (2 * 7, 2 * 7 * (15 + 30))
    assert work(changed(monitors={"max_kl": None}))["collapse_monitors"].items == 0


def test_positive_examples_join_the_seed_training() -> None:
    stages = work(changed(pairs={"strategy": "positive_only"}), positive=0.5)
    seed, again = stages["seed_model"], stages["iteration_model"]
    count = QUICKSTART.prompt_generation.count * QUICKSTART.candidates.per_prompt
    assert again.items == seed.items + count * 0.5
    assert kinds(again) == kinds(seed)
    assert (seed.phase, again.phase) == ("seed", "iteration")


def test_early_stopping_adds_replies_and_their_judgement_at_every_look() -> None:
    dpo = {"epochs": 2, "batch_size": 8}
    looking = changed(dpo={**dpo, "early_stopping": EarlyStoppingSettings(every=2)})
    without, with_looks = (
        work(settings, pairs_kept=1.0)["iteration_model"] for settings in (changed(dpo=dpo), looking)
    )
    added = kinds(with_looks)[len(kinds(without)) :]
    assert added == ["writing", "judging"] * 3, "six steps, a look at every second"
    assert with_looks.units["dpo"] == without.units["dpo"]
    assert with_looks.items == without.items == 24


def test_dpo_computes_both_replies_with_their_prompt_and_the_reference_once() -> None:
    settings = changed(dpo={"epochs": 2, "max_length": 512}, candidates={"max_new_tokens": 128})
    stage = work(settings, pairs_kept=1.0)["iteration_model"]
    assert stage.items == 24
    assert stage.units["dpo"] == pytest.approx(2 * 24 * 2 * 50)
    assert stage.units["judged"] == pytest.approx(24 * 2 * 50)


def judged(stage: StageWork) -> list[int]:
    return [part.items for part in stage.parts if part.kind == "judging"]


def test_scored_replies_are_judged_once_and_compared_ones_every_time() -> None:
    scores, comparison = work(), work(changed(evaluation={"arbiters": (ArbiterSettings(),)}))
    # Three models' replies; or M1 against the base model and the SFT baseline, and the human-ordered pairs.
    assert judged(scores["seed_evaluation"]) == [21]
    assert judged(comparison["seed_evaluation"]) == [2 * 14, 36]
    assert judged(scores["win_rates"]) == [7]
    assert judged(comparison["win_rates"]) == [3 * 14]


def test_a_jury_costs_what_each_of_its_jurors_costs() -> None:
    scores = ArbiterSettings(method="scores")
    other = ArbiterSettings(model="some/model", method="scores")
    asked = ArbiterSettings(model="big", server=ServerSettings(base_url="http://a/v1"))
    verifiers = ArbiterSettings(model="verifiers")
    alone = work(changed(evaluation={"arbiters": (scores,)}))
    jury = work(changed(evaluation={"arbiters": (scores, ArbiterSettings(), other, asked, verifiers)}))
    assert judged(jury["seed_evaluation"]) == [21, 28, 21, 36, 12]
    assert judged(jury["win_rates"]) == [7, 42, 7]
    assert (alone["win_rates"].engines, jury["win_rates"].engines) == (1, 2 * 3)
    assert (alone["seed_evaluation"].requests, alone["win_rates"].requests) == (0, 0)
    # Both orders of seven prompts, against two and three opponents, and of the 18 human-ordered pairs.
    assert (jury["seed_evaluation"].requests, jury["win_rates"].requests) == (2 * 2 * 7 + 2 * 18, 2 * 3 * 7)
    programs = [ArbiterSettings(model=name) for name in ("verifiers", "reference", "people")]
    without_models = work(changed(evaluation={"arbiters": (asked, *programs)}))
    assert judged(without_models["win_rates"]) == []
    assert without_models["win_rates"].engines == 0


def test_a_panel_costs_what_each_of_its_members_costs() -> None:
    server = ServerSettings(base_url="http://a/v1")
    panel = (PanelMember(), PanelMember(model="some/model", mode="sampled"), PanelMember(model="big", server=server))
    alone, together = work()["judged_scores"], work(changed(judge={"panel": panel}))["judged_scores"]
    assert kinds(together) == ["judging", "writing"]
    assert together.parts[0] == alone.parts[0]
    assert (together.engines, together.items) == (2, alone.items)
    assert (alone.requests, together.requests) == (0, 3 * alone.items)
    assert work(changed(judge={"panel": panel}))["assessment"] == work()["assessment"]


def test_a_plan_tells_what_servers_and_other_models_are_taken_to_cost() -> None:
    asked = ArbiterSettings(model="big", server=ServerSettings(base_url="http://a/v1"))
    arbiters = (ArbiterSettings(model="some/model"), asked)
    told = " ".join(planned(changed(evaluation={"arbiters": arbiters})).assumptions)
    assert "sent 64 requests for the seed and 42 an iteration" in told
    assert "other models that judge here are as large" in told
    assert "request" not in " ".join(planned().assumptions)


# Work as the stages do it, on the tiny model


@pytest.fixture(scope="module")
def tiny_measure(tiny_model: Path) -> TextMeasure:
    from transformers import AutoTokenizer

    return tokenizer_measure(AutoTokenizer.from_pretrained(tiny_model))


class CountingProgress:
    """Remembers how much of what was done."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        self.unit = unit
        yield self

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done[self.unit] = self.done.get(self.unit, 0) + amount


def test_facts_are_those_of_the_data(tiny_measure: TextMeasure) -> None:
    facts = measure_data(QUICKSTART, tiny_measure)
    ranked = load_ranked_replies(QUICKSTART.data).table
    assert facts.instructions.count == len(load_instructions(QUICKSTART.data).table)
    assert facts.evaluation.count == len(load_evaluation_prompts(QUICKSTART.data).table)
    assert facts.held_out.count == int((ranked["split"] == "held_out").sum())
    assert facts.best_replies.count == ranked[ranked["split"] == "held_out"]["group_id"].nunique()
    assert facts.closed.count == len(load_closed_tasks("embedded"))
    assert facts.held_out_pairs == 210
    assert facts.groups == facts.judgements.count == 65
    assert facts.ranked.mean > facts.judge_frame + facts.bare_prompt


def test_replies_made_up_for_the_judge_are_counted(tiny_measure: TextMeasure) -> None:
    own = measure_data(QUICKSTART, tiny_measure)
    more = measure_data(changed(eft={"mismatched_negatives": 1, "corrupted_negatives": 1}), tiny_measure)
    assert (own.ranked.count, more.ranked.count) == (4 * own.groups, 6 * own.groups)
    assert more.judgements == own.judgements


def test_where_judging_is_not_taught_no_replies_are_made_up_for_it(tiny_measure: TextMeasure) -> None:
    changes = {"eft": {"enabled": False, "mismatched_negatives": 1, "corrupted_negatives": 1}}
    plain = measure_data(load_settings("quickstart", {"eft": {"enabled": False}}), tiny_measure)
    assert measure_data(load_settings("quickstart", changes), tiny_measure) == plain


def test_ranking_tokens_are_those_that_training_encodes(tiny_measure: TextMeasure, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from srlm_pipeline.judging.eft import eft_from_dataset
    from srlm_pipeline.training.ranking_items import encode_ranked
    from srlm_pipeline.training.seed import ranked_examples

    settings = changed(data={"ranked_limit": 6}, eft={"max_length": 2048})
    ranked = load_ranked_replies(settings.data).table
    examples = ranked_examples(eft_from_dataset(ranked[ranked["split"] == "train"]).table)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoded = [encode_ranked(tokenizer, example, settings.judge.rubric, 2048).sequences for example in examples]
    counted = work(settings, measure_data(settings, tiny_measure))["seed_model"].units["ranking"]
    assert counted == pytest.approx(sum(len(sequence) for sequences in encoded for sequence in sequences))


def test_a_judge_is_asked_as_often_as_planned(tmp_path: Path) -> None:
    ranked = load_ranked_replies(QUICKSTART.data).table
    held_out = ranked[ranked["split"] == "held_out"]
    engine = FakeEngine(weigh=lambda _: [0.1] * 6)
    checkpoint = Checkpoint(tmp_path, "M1", "fake", None)
    store = ProjectStore(tmp_path, tmp_path)
    progress = CountingProgress()
    judge_ranked_replies(checkpoint, held_out, QUICKSTART, store, lambda *_: engine, progress)
    facts = measure_data(QUICKSTART, character_measure())
    judging = work(facts=facts)["assessment"].parts[3]
    assert len(engine.prefixes) == progress.done["judgements"] == judging.items


def test_a_hybrid_judge_is_asked_for_as_many_rationales_and_scores_as_planned(tmp_path: Path) -> None:
    settings = changed(judge={"mode": "hybrid"})
    ranked = load_ranked_replies(settings.data).table
    held_out = ranked[ranked["split"] == "held_out"]
    engine = FakeEngine(lambda _: "Fine.\nScore: 1\n", lambda _: [0.0, 0.0, 0.0, 0.0, 0.5, 0.0])
    checkpoint, store = Checkpoint(tmp_path, "M1", "fake", None), ProjectStore(tmp_path, tmp_path)
    judged = [
        judge_ranked_replies(checkpoint, held_out, settings, store, lambda *_: engine, CountingProgress())
        for _ in range(2)
    ]
    *_, writing, reading, _ = work(settings, measure_data(settings, character_measure()))["assessment"].parts
    assert (len(engine.requests), len(engine.prefixes)) == (writing.items, reading.items), "once, by the journal"
    assert all((table["score"] == 4.0).all() for table in judged)


@pytest.mark.parametrize("rubric", ["by_kind", "checklist"])
def test_of_several_questions_about_a_reply_only_the_ends_are_counted_again(rubric: str) -> None:
    judge = changed(judge={"mode": "distribution", "rubric": rubric}).judge
    read = read_to_judge(judge, character_measure(), "the prompt", "the reply", "code")
    assert (read.count("the prompt"), read.count("the reply")) == (1, 1)
    assert all(read.count(dimension.question) == 1 for dimension in kind_rubrics().of("code").dimensions)


@pytest.mark.parametrize("rubric", ["by_kind", "checklist"])
def test_what_is_found_out_of_a_prompt_before_its_replies_are_judged_is_counted(rubric: str, tmp_path: Path) -> None:
    settings = changed(judge={"mode": "distribution", "rubric": rubric}, data={"ranked_limit": 12})
    ranked = load_ranked_replies(settings.data).table
    held_out = ranked[ranked["split"] == "held_out"].assign(kind="")
    kinds, options = len(kind_rubrics().by_kind), {"by_kind": 6, "checklist": 2}[rubric]
    engine = FakeEngine(
        lambda _: " say why?\n2. Is the response short?\n3. Is the response clear?",
        lambda prefix: [0.1] * (kinds if "letter of the kind" in prefix else options),
    )
    checkpoint, store = Checkpoint(tmp_path, "M1", "fake", None), ProjectStore(tmp_path, tmp_path)
    judge_ranked_replies(checkpoint, held_out, settings, store, lambda *_: engine, CountingProgress())
    n = held_out["group_id"].nunique()
    facts = replace(measure_data(settings, character_measure()), held_out_of_no_kind=n)
    *_, before, judging, _ = work(settings, facts)["assessment"].parts
    told = {prefix for prefix in engine.prefixes if "letter of the kind" in prefix}
    # Prompts without content are read beside those whose kinds are told.
    assert before.items == (len(engine.requests) if rubric == "checklist" else len(told) - 3) == n
    assert judging.items == len(held_out)


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "epochs"), [(5, 1.0), (3, 2.0), (4, 1.5)])
def test_dpo_takes_as_many_steps_as_planned(tiny_model: Path, tmp_path: Path, pairs: int, epochs: float) -> None:
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.dpo import PreferenceExample, train_dpo

    settings = changed(
        dpo={"batch_size": 2, "micro_batch_size": 1, "epochs": epochs, "max_length": 128},
        prompt_generation={"count": pairs},
        model={"device": "cpu", "dtype": "float32"},
    )
    progress = CountingProgress()
    examples = [PreferenceExample(f"prompt {n}", "yes " * 3, "no " * 2) for n in range(pairs)]
    train_dpo(TrainingJob(tiny_model, settings.model, 0, tmp_path, "dpo", progress), examples, settings.dpo)
    part, _ = work(settings, pairs_kept=1.0)["iteration_model"].parts
    assert part.steps == progress.done["steps"] == optimiser_steps(pairs, settings.dpo)


# Speed


def test_a_stage_takes_what_its_units_take() -> None:
    writing = Part("writing", 2, {"prompted": 100, "step": 40, "drawn": 60}, held=100)
    trained = Part("dpo", 4, {"dpo": 1000}, held=250, steps=1)
    stage = StageWork("x", "seed", 1, "things", (writing, trained), engines=2)
    expected = 0.1 + 40 * 0.05 + 0.06 + 1000 * 5e-3 + 4 + 1 + 2 * 1 + 0.5
    seconds = BASIS.seconds_of(stage, stage, stage)
    assert (seconds.low, seconds.likely, seconds.high) == pytest.approx((expected / 2, expected, 2 * expected))


def test_memory_is_what_the_largest_part_needs() -> None:
    basis = BASIS.model_copy(update={"memory": {**BASIS.memory, "dpo": Memory(fixed=1, per_token=1, afterwards=5e9)}})
    judging = Part("judging", 1, {}, held=1000)
    assert basis.memory_of([judging]) == 1e9 + 1e6
    assert basis.memory_of([judging, Part("dpo", 1, {}, held=10)]) == 5e9
    assert basis.memory_of([]) == 0


def test_measurements_with_known_costs_give_them_back() -> None:
    observed = [(100.0, 0.0, 0.0), (200.0, 10.0, 160.0), (200.0, 60.0, 700.0), (50.0, 10.0, 20.0), (50.0, 60.0, 110.0)]
    seconds = [r * 1e-3 + s * 0.02 + t * 5e-4 for r, s, t in observed]
    assert _solve(observed, seconds) == pytest.approx((1e-3, 0.02, 5e-4))


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_whatever_is_measured_no_cost_is_negative(seconds: list[float]) -> None:
    observed = [(100.0, 0.0, 0.0), (200.0, 10.0, 160.0), (200.0, 60.0, 700.0), (50.0, 60.0, 110.0)]
    assert all(cost >= 0 for cost in _solve(observed, seconds))


def test_batches_and_servers() -> None:
    assert requests_in_flight(QUICKSTART.engine, "transformers") is None
    assert requests_in_flight(QUICKSTART.engine, "vllm") == 256
    named = QUICKSTART.engine.model_copy(update={"concurrency": 8})
    assert requests_in_flight(named, "openai") == 8


def test_roofline_by_hand() -> None:
    gpu, shape = GPUS["h100"], shape_of_size(8_000_000_000)
    settings = load_settings("single-gpu")
    seconds = {unit: s.likely for unit, s in stated_basis(gpu, 1, shape, settings).seconds.items()}
    bandwidth = 3350e9 * LIKELY.bandwidth
    forward = 2 * 8e9 / (989e12 * LIKELY.reading)
    assert seconds["prompted"] == seconds["judged"] == pytest.approx(forward)
    assert seconds["step"] == pytest.approx(16e9 / bandwidth + shape.layers * LIKELY.layer)
    kept = 2 * 2 * shape.layers * 1024 * settings.candidates.max_new_tokens
    assert seconds["drawn"] == pytest.approx(forward + kept / bandwidth)
    # Adapters everywhere: forward, forward again, and backward for the activations.
    assert seconds["sft"] == pytest.approx(6 * 8e9 / (989e12 * LIKELY.training))


@pytest.mark.parametrize(
    ("method", "top_layers", "checkpointing", "per_parameter"),
    [
        ("full", 1.0, False, 6),
        ("full", 1.0, True, 8),
        ("lora", 1.0, False, 4),
        ("lora", 0.5, False, 3),
        ("lora", 0.5, True, 4),
    ],
)
def test_operations_of_training(method: str, top_layers: float, checkpointing: bool, per_parameter: float) -> None:
    lora = QUICKSTART.sft.lora.model_copy(update={"top_layers": top_layers})
    settings = QUICKSTART.sft.model_copy(update={"method": method, "lora": lora})
    assert training_operations(settings, 10, checkpointing) == 10 * per_parameter


def test_sizes_and_shapes() -> None:
    assert parse_size("8B") == 8e9
    assert parse_size(" 1.5b") == 1.5e9
    assert parse_size("135M") == 135e6
    shape = shape_of_size(8_000_000_000)
    assert 30 <= shape.layers <= 38
    assert 12 * shape.layers * shape.hidden**2 == pytest.approx(8e9, rel=0.1)
    for wrong in ("8", "big", "0B"):
        with pytest.raises(SrlmError, match="no model size"):
            parse_size(wrong)
    with pytest.raises(SrlmError, match="h200"):
        find_gpu("h900")
    assert find_gpu("RTX 4090").name == "NVIDIA RTX 4090"


def test_faster_memory_writes_faster_and_more_devices_do_everything_faster() -> None:
    settings, shape = load_settings("single-gpu"), shape_of_size(8_000_000_000)
    h100, h200, eight = (
        make_plan(settings, FACTS, stated_basis(GPUS[name], n, shape, settings), 1, "8B")
        for name, n in (("h100", 1), ("h200", 1), ("h200", 8))
    )
    assert h200.seconds.likely < h100.seconds.likely
    assert eight.seconds.likely < h200.seconds.likely
    assert eight.memory < h200.memory


# The plan


def test_sums_are_those_of_the_stages() -> None:
    plan = planned(iterations=3)
    seed, loop = ([s.seconds.likely for s in plan.stages if s.phase == phase] for phase in ("seed", "iteration"))
    assert len(seed) == 5
    assert len(loop) == 7
    assert plan.seconds.likely == pytest.approx(6.0 + sum(seed) + 3 * sum(loop))
    assert plan.memory == max(s.memory for s in plan.stages)


def test_models_on_disk_are_kept_and_the_one_between_two_trainings_is_not() -> None:
    plan = planned(iterations=2)
    models = [s for s in plan.stages if s.stage in ("sft_baseline", "seed_model", "iteration_model")]
    assert [s.disk_kept for s in models] == [4000, 4000, 4000]
    assert [s.disk_meanwhile for s in models] == [0, 4000, 0]
    assert plan.disk == pytest.approx(4 * 4000 + 4000)


def test_full_fine_tuning_keeps_resumable_checkpoints_meanwhile() -> None:
    stage = work(changed(sft={"method": "full", "save_every": 3}))["sft_baseline"]
    assert stage.temporary_models == 6
    assert work(changed(sft={"method": "full", "save_every": 4}))["sft_baseline"].temporary_models == 0


MORE = {
    "count": ("prompt_generation", st.integers(1, 400)),
    "per_prompt": ("candidates", st.integers(2, 12)),
    "max_new_tokens": ("candidates", st.integers(1, 600)),
    "samples": ("judge", st.integers(1, 6)),
    "epochs": ("dpo", st.floats(0.5, 4)),
}


@pytest.mark.parametrize("field", MORE)
@given(data=st.data())
@hypothesis_settings(max_examples=25)
def test_more_work_never_takes_less(field: str, data: st.DataObject) -> None:
    section, values = MORE[field]
    less, more = sorted((data.draw(values), data.draw(values)))
    base = changed(judge={"mode": "sampled"})
    small, large = (planned(changed(base, **{section: {field: value}})) for value in (less, more))
    for end in ("low", "likely", "high"):
        assert getattr(small.seconds, end) <= getattr(large.seconds, end) + 1e-9
    assert small.memory <= large.memory
    assert small.disk <= large.disk


@given(st.integers(0, 20))
def test_estimates_have_their_ends_in_order(iterations: int) -> None:
    plan = planned(iterations=iterations)
    for seconds in (plan.seconds, *(stage.seconds for stage in plan.stages)):
        assert seconds.low <= seconds.likely <= seconds.high


def test_what_does_not_fit_is_said_with_a_way_out() -> None:
    settings, shape = load_settings("paper"), shape_of_size(8_000_000_000)
    gpu = GPUS["h100"]
    plan = make_plan(
        settings,
        FACTS,
        stated_basis(gpu, 1, shape, settings),
        1,
        "8B",
        ((words, other, stated_basis(gpu, n, shape, other)) for words, other, n in remedies(settings, 1)),
    )
    (warning,) = plan.warnings
    assert "sft_baseline, seed_model, iteration_model need up to" in warning
    assert "it would with method: lora in training" in warning
    assert planned().warnings == ()


def test_without_a_way_out_the_levers_are_named() -> None:
    (warning,) = planned(basis=BASIS.model_copy(update={"available": 1.0})).warnings
    assert "lower micro_batch_size" in warning


def test_a_plan_survives_being_written_and_read(tmp_path: Path) -> None:
    plan, path = planned(), plan_path(tmp_path, QUICKSTART)
    assert read_record(Plan, path) is None
    write_record(plan, path)
    assert read_record(Plan, path) == plan
    path.write_text("{}", encoding="utf-8")
    assert read_record(Plan, path) is None
    write_record(BASIS, path)
    assert read_record(Basis, path) == BASIS


def test_a_plan_belongs_to_the_settings_that_decide_the_work(tmp_path: Path) -> None:
    own = plan_path(tmp_path, QUICKSTART)
    assert plan_path(tmp_path, changed(promotion={"min_win_rate": 0.9})) == own
    assert plan_path(tmp_path, changed(prompt_generation={"count": 25})) != own


def test_measurements_serve_any_number_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    own = probe_path(tmp_path, QUICKSTART, "digest")
    assert probe_path(tmp_path, changed(prompt_generation={"count": 25}), "digest") == own
    assert probe_path(tmp_path, changed(dpo={"epochs": 7.0}), "digest") == own
    assert probe_path(tmp_path, QUICKSTART, "other") != own
    assert probe_path(tmp_path, changed(dpo={"method": "full"}), "digest") != own
    words = machine_in_words(changed(model={"device": "cpu"}))
    assert "cores" in words
    # What is measured in the plain way says nothing about the quick one.
    monkeypatch.setenv(SWITCH, "1")
    assert machine_in_words(changed(model={"device": "cpu"})) == f"{words}, without acceleration"
    assert probe_path(tmp_path, QUICKSTART, "digest") != own


def test_every_asset_records_how_long_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster import mem_io_manager

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    result = dg.materialize(
        [ift_dataset],
        resources={"project": ProjectResource(), "io_manager": mem_io_manager},
        instance=dg.DagsterInstance.ephemeral(),
    )
    (event,) = result.asset_materializations_for_node("ift_dataset")
    assert event.metadata["seconds"].value >= 0


# The command


def shown(plan: Plan, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(command.show_plan(plan), highlight=False)
    return stream.getvalue()


def test_a_plan_is_readable_in_80_columns() -> None:
    slow = BASIS.model_copy(update={"memory": {k: Memory(fixed=2e10, per_token=0) for k in BASIS.memory}})
    said = shown(
        planned(changed(prompt_generation={"count": 9_999}), basis=slow.model_copy(update={"parameters": 4 * 10**9}))
    )
    assert all(len(line.rstrip()) <= 80 for line in said.splitlines())
    assert "\u2026" not in said
    assert all(stage.stage in said for stage in planned().stages)


def test_the_bottom_line_comes_first() -> None:
    plan = planned(iterations=1)
    first, second, *_ = shown(plan, 200).splitlines()
    assert first == "quickstart: a model on two cores (measured)"
    assert second.startswith(f"About {command.duration(plan.seconds.likely)} (")
    assert "for the seed and 1 iteration; peak memory" in second
    assert f"{plan.longest.stage} takes most of the time" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (61, "61 s"), (240, "4.0 min"), (7200, "2.0 h"), (500_000, "5.8 d")]
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert command.duration(seconds) == text


def test_spans_sizes_and_counts() -> None:
    assert command.span(Range(low=30, likely=60, high=120)) == "0.5-2.0 min"
    assert [command.size(n) for n in (2000, 3 * 2**20, 5.5 * 2**30, 2**41)] == [
        "2 KiB",
        "3.0 MiB",
        "5.5 GiB",
        "2.0 TiB",
    ]
    assert [command.count(n) for n in (12, 1500, 2.5e7, 3e9)] == ["12", "1.5 k", "25 M", "3.0 G"]


Srlm = Callable[..., tuple[int, str]]


def test_stated_figures_need_no_probe(srlm: Srlm) -> None:
    code, said = srlm("plan", "--model-size", "8B", "--prompts", "5000", "--device", "h200", "-n", "1")
    assert code == 0
    assert "a model of 8B on NVIDIA H200 (from stated figures)" in said
    assert "20,000 replies" in said
    assert "nothing was measured" in said


def test_a_plan_as_json_can_be_read_back(srlm: Srlm) -> None:
    words = ("plan", "--device", "h100", "--gpus", "8", "--model-size", "70B", "--set", "dpo.epochs=3", "--json")
    code, said = srlm(*words)
    assert code == 0
    plan = Plan.model_validate(json.loads(said))
    assert plan.machine == "8 x NVIDIA H100 SXM"
    assert plan.iterations == 2


def test_mistakes_are_explained(srlm: Srlm) -> None:
    assert "name a --device too" in srlm("plan", "--model-size", "8B")[1]
    code, said = srlm("plan", "--device", "abacus", "--model-size", "8B")
    assert code == 1
    assert "known: h200, h100, a100, l40s, rtx4090" in said


def test_the_machine_is_measured_once_and_again_when_asked(
    srlm: Srlm, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from srlm_pipeline.planning import probe

    measured: list[Checkpoint] = []

    def measure(base: Checkpoint, *_: object) -> Basis:
        measured.append(base)
        return BASIS

    monkeypatch.setattr(probe, "run_probe", measure)
    words = ("plan", "--set", f"base_model={tiny_model}", "--set", "model.device=cpu")
    assert "(measured)" in srlm(*words)[1]
    assert "Measuring" not in srlm(*words, "--prompts", "50")[1]
    assert len(measured) == 1
    assert "Measuring" in srlm(*words, "--fresh")[1]
    assert len(measured) == 2


def test_the_shape_of_the_configured_model(tiny_model: Path) -> None:
    settings = QUICKSTART.model_copy(update={"base_model": str(tiny_model)})
    shape = command.configured_shape(settings, ProjectStore(tiny_model, tiny_model))
    assert (shape.layers, shape.hidden, shape.kv_width) == (2, 32, 16)
    assert 20_000 < shape.parameters < 60_000


@pytest.mark.slow
def test_a_real_probe_measures_everything(tiny_model: Path, tiny_measure: TextMeasure, tmp_path: Path) -> None:
    from srlm_pipeline.generation.opening import open_engine

    small = {"max_length": 512, "batch_size": 4, "micro_batch_size": 2}
    settings = changed(
        model={"device": "cpu", "dtype": "float32"},
        data={"ift_limit": 12, "ranked_limit": 6, "evaluation_limit": 3},
        candidates={"batch_size": 8, "max_new_tokens": 8},
        prompt_generation={"batch_size": 4, "seed_examples": 2, "generated_examples": 1},
        judge={"batch_size": 4},
        sft=small,
        eft=small,
        dpo=small,
    )
    facts = measure_data(settings, tiny_measure)
    said: list[str] = []
    basis = run_probe(
        Checkpoint(tiny_model, "base", "tiny", None),
        settings,
        tiny_measure,
        lambda checkpoint, batch_size: open_engine(checkpoint, settings, batch_size),
        tmp_path / "plans",
        said.append,
    )
    likely = {unit: seconds.likely for unit, seconds in basis.seconds.items()}
    assert likely.keys() == SECONDS.keys()
    assert min(seconds for unit, seconds in likely.items() if unit not in ("prompted", "step", "drawn")) > 0
    assert likely["prompted"] + likely["step"] + likely["drawn"] > 0
    assert basis.memory.keys() == {"writing", "judging", "sft", "ranking", "dpo"}
    assert all(0 < memory.fixed <= basis.available for memory in basis.memory.values())
    assert list((tmp_path / "plans").iterdir()) == []
    plan = make_plan(settings, facts, basis, 1, "tiny")
    assert math.isfinite(plan.seconds.high)
    assert plan.seconds.low > 0
