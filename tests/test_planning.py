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
from srlm_pipeline.evaluation.closed_tasks import load_closed_tasks
from srlm_pipeline.evaluation.measuring import judge_ranked_replies
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.planning.basis import Basis, Memory, Rates
from srlm_pipeline.planning.machines import (
    GPUS,
    LIKELY,
    find_gpu,
    parse_size,
    shape_of_size,
    stated_basis,
    training_operations,
)
from srlm_pipeline.planning.plan import Plan, Range, make_plan, plan_path, read_record, write_record
from srlm_pipeline.planning.probe import _nearest, _solve, machine_in_words, probe_path, requests_in_flight, run_probe
from srlm_pipeline.planning.workload import (
    Assumptions,
    CharacterMeasure,
    DataFacts,
    Groups,
    Judging,
    Lengths,
    StageWork,
    TokenizerMeasure,
    Training,
    Writing,
    common_beginning,
    count_work,
    measure_data,
    optimiser_steps,
)
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import ProjectStore

QUICKSTART = load_settings("quickstart")
TEN = Lengths(10, (20,) * 10)
FACTS = DataFacts(
    instructions=Lengths(40, (50,) * 40),
    prompts=Lengths(40, (20,) * 40),
    responses=Lengths(40, (30,) * 40),
    judgements=Lengths(10, (200,) * 10),
    ranked=Groups(10, 4.0, Lengths(10, (340,) * 10), Lengths(10, (640,) * 10)),
    train_replies=Lengths(40, (90,) * 40),
    rationale_beginning=60,
    held_out=Lengths(12, (80,) * 12),
    held_out_pairs=18,
    messages=Lengths(40, (12,) * 40),
    evaluation=Lengths(7, (15,) * 7),
    checkable=Lengths(6, (25,) * 6),
    closed=Lengths(9, (5,) * 9),
    best_replies=Lengths(3, (45,) * 3),
    few_shot=Lengths(5, (150,) * 5),
    bare_prompt=10.0,
    judge_frame=40.0,
    comparison_frame=30.0,
)
RATES = Rates(
    read=1e-3,
    judged=2e-3,
    step=0.05,
    written=1e-3,
    trained={"sft": 3e-3, "ranking": 4e-3, "dpo": 5e-3},
    reference=2e-3,
    trainer={"sft": 4.0, "ranking": 4.0, "dpo": 4.0},
    engine=1.0,
    save=1.0,
    stage=0.5,
    start=6.0,
)
ENOUGH = Memory(fixed=1e9, per_token=1e3)
BASIS = Basis(
    source="probe",
    machine="two cores",
    parameters=1000,
    fast=RATES.scaled(0.5),
    likely=RATES,
    slow=RATES.scaled(2),
    memory={"writing": ENOUGH, "judging": ENOUGH, "sft": ENOUGH, "ranking": ENOUGH, "dpo": ENOUGH},
    available=8e9,
    host_memory=0.0,
    shares_prefix=True,
    in_flight=None,
    notes=("measured",),
)


def changed(settings: Settings = QUICKSTART, **sections: dict[str, Any]) -> Settings:
    update = {name: getattr(settings, name).model_copy(update=fields) for name, fields in sections.items()}
    return settings.model_copy(update=update)


def work(settings: Settings = QUICKSTART, facts: DataFacts = FACTS, **assumed: Any) -> dict[str, StageWork]:
    return {
        w.stage: w
        for w in count_work(settings, facts, Assumptions(**{"reply_share": 1.0, **assumed}), shares_prefix=True)
    }


def planned(settings: Settings = QUICKSTART, iterations: int = 2, basis: Basis = BASIS) -> Plan:
    return make_plan(settings, FACTS, basis, iterations, "a model")


# Lengths


def test_padding_one_at_a_time_is_no_padding() -> None:
    assert Lengths(4, (10, 20, 30, 40)).padded(1, 8) == pytest.approx(25)


def test_padding_to_the_longer_of_two_random_texts() -> None:
    # Of (10, 10), (10, 30), (30, 10), (30, 30) three have a 30.
    assert Lengths(2, (10, 30)).padded(2, 2) == pytest.approx(25)


def test_sorting_within_a_step_spares_padding() -> None:
    # Four draws of 10 or 30: the larger pair is padded to the largest, the smaller to the third.
    # P(largest is 30) = 15/16, P(third largest is 30) = P(at least 3 of 4) = 5/16.
    expected = (10 + 20 * 15 / 16 + 10 + 20 * 5 / 16) / 2
    lengths = Lengths(2, (10, 30))
    assert lengths.padded(2, 4) == pytest.approx(expected)
    assert lengths.padded(2, 4) < lengths.padded(2, 2)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 4))
@hypothesis_settings(max_examples=50)
def test_padded_length_lies_between_mean_and_largest(sample: list[int], together: int, batches: int) -> None:
    lengths = Lengths(len(sample), tuple(sample))
    padded = lengths.padded(together, together * batches)
    assert lengths.mean - 1e-6 <= padded <= lengths.largest + 1e-6
    assert lengths.mean - 1e-6 <= lengths.longer_of_two().mean <= lengths.largest


def test_joined_lengths_weigh_as_much_as_they_have_texts() -> None:
    joined = Lengths(200, (10,) * 20).joined(Lengths(100, (40,) * 100))
    assert joined.count == 300
    assert joined.mean == pytest.approx(20)
    assert TEN.joined(Lengths(0, ())) == TEN


def test_a_common_beginning_counts_if_it_is_worthwhile_and_leaves_something() -> None:
    start = list(range(20))
    assert common_beginning([[*start, 1], [*start, 2]]) == 20
    assert common_beginning([start, start]) == 19
    assert common_beginning([start[:10], start[:10]]) == 0
    assert common_beginning([start]) == 0


# Work by hand


def test_sft_on_equal_lengths_has_no_padding() -> None:
    settings = changed(sft={"epochs": 2, "batch_size": 16, "micro_batch_size": 2, "max_length": 512})
    (part,) = work(settings)["sft_baseline"].parts
    assert isinstance(part, Training)
    assert part.steps == 6
    assert part.tokens == pytest.approx(2 * 40 * 50)
    assert part.micro_tokens == part.largest == pytest.approx(100)


def test_training_cuts_long_texts() -> None:
    (part,) = work(changed(sft={"max_length": 32}))["sft_baseline"].parts
    assert isinstance(part, Training)
    assert part.tokens == pytest.approx(40 * 32)


def test_seed_model_trains_on_instructions_and_judgements_and_then_to_rank() -> None:
    sft, ranking = work()["seed_model"].parts
    assert isinstance(sft, Training)
    assert isinstance(ranking, Training)
    assert (sft.examples, ranking.examples) == (50, 10)
    assert ranking.tokens == pytest.approx(10 * 340)
    assert ranking.steps == 3
    assert work()["seed_model"].saves == 2


def test_where_activations_are_recomputed_the_beginning_is_computed_for_every_reply() -> None:
    (_, ranking), *_ = [w.parts for w in count_work(QUICKSTART, FACTS, Assumptions(), False) if w.stage == "seed_model"]
    assert isinstance(ranking, Training)
    assert ranking.tokens == pytest.approx(10 * 640)


def test_comparisons_are_items_of_their_own() -> None:
    _, ranking = work(changed(eft={"comparisons_per_prompt": 2}))["seed_model"].parts
    assert isinstance(ranking, Training)
    assert ranking.examples == 30
    assert ranking.tokens == pytest.approx(10 * 340 + 20 * 2 * (30 + 10 + 2 * 30))


def test_invented_prompts_come_in_rounds_of_attempts() -> None:
    stage = work(changed(prompt_generation={"count": 24, "max_new_tokens": 64}))["generated_prompts"]
    (part,) = stage.parts
    assert isinstance(part, Writing)
    assert stage.items == part.requests == 64
    assert part.rows == 32
    assert part.read == 64 * 150
    assert part.written == 64 * 11
    assert 2 * 11 <= part.steps <= 2 * 64


def test_samples_of_one_prompt_read_it_once() -> None:
    (part,) = work(changed(candidates={"per_prompt": 4, "max_new_tokens": 25, "batch_size": 64}))["candidates"].parts
    assert isinstance(part, Writing)
    assert part.requests == 96
    assert part.read == 24 * 12
    assert part.written == 96 * 25
    assert part.steps == 2 * 25


def test_a_server_does_not_wait_for_the_longest_reply() -> None:
    settings = changed(candidates={"max_new_tokens": 100, "batch_size": 64})
    batches = work(settings)["candidates"].parts[0]
    (served,) = next(
        w.parts
        for w in count_work(settings, FACTS, Assumptions(reply_share=1.0), True, in_flight=64)
        if w.stage == "candidates"
    )
    assert isinstance(batches, Writing)
    assert isinstance(served, Writing)
    assert served.steps == pytest.approx(96 / 64 * 30)
    assert served.steps < batches.steps


def test_a_distribution_judge_reads_and_a_sampling_one_writes() -> None:
    (reading,) = work()["judged_scores"].parts
    assert isinstance(reading, Judging)
    assert reading.items == 96
    assert reading.read == 96 * (40 + 10 + 30)
    (writing,) = work(changed(judge={"mode": "sampled", "samples": 3, "max_new_tokens": 128}))["judged_scores"].parts
    assert isinstance(writing, Writing)
    assert writing.requests == 288
    assert writing.read == reading.read
    assert writing.written == 288 * 128


def test_a_hybrid_judge_writes_one_rationale_and_reads_it_once_more() -> None:
    settings = changed(judge={"mode": "hybrid", "samples": 3, "max_new_tokens": 128})
    stages = work(settings)
    writing, reading = stages["judged_scores"].parts
    assert isinstance(writing, Writing)
    assert isinstance(reading, Judging)
    assert (writing.requests, writing.written) == (96, 96 * 128)
    assert writing.read == 96 * (40 + 10 + 30)
    assert (reading.items, reading.read) == (96, writing.read + writing.written)
    assert reading.longest == writing.longest
    assert stages["judged_scores"].text_bytes > stages["candidates"].text_bytes
    kinds = [type(part) for part in stages["assessment"].parts]
    assert kinds == [Writing, Writing, Writing, Writing, Judging, Judging], "the fourth writes what the fifth reads"
    assert sum(isinstance(part, Judging) for part in stages["seed_evaluation"].parts) == 2
    assert any("a written judgement has" in line for line in planned(settings).assumptions)


def test_own_judgements_are_written_before_some_of_them_are_learned() -> None:
    stages = work(changed(eft={"targets": "self", "rationales_per_prompt": None}), self_judged_kept=0.5)
    (judging,) = stages["eft_dataset"].parts
    assert isinstance(judging, Writing)
    assert judging.requests == 40 * QUICKSTART.judge.samples
    sft, ranking = stages["seed_model"].parts
    assert isinstance(sft, Training)
    assert isinstance(ranking, Training)
    assert sft.examples == 40 + 5 * 4
    assert ranking.examples == 5


def test_without_judging_data_there_is_nothing_to_rank() -> None:
    stages = work(changed(eft={"enabled": False}), replace(FACTS, judgements=Lengths(0, ())))
    assert stages["seed_model"].parts == (), "the SFT baseline is M1"
    assert stages["eft_dataset"].items == 0


def test_ranks_need_no_judgement_texts() -> None:
    stages = work(changed(eft={"targets": "ranks"}))
    assert stages["eft_dataset"].parts == ()
    (ranking,) = (p for p in stages["seed_model"].parts if isinstance(p, Training))
    assert ranking.examples == work()["seed_model"].parts[1].examples
    assert stages["seed_model"].saves == 1
    again = work(changed(eft={"targets": "ranks"}, pairs={"strategy": "positive_only"}))["iteration_model"]
    kinds = [p.kind for p in again.parts if isinstance(p, Training)]
    assert kinds == ["sft", "ranking"], "replies have joined the data"


def test_whatever_is_measured_is_asked_for_once_of_every_model() -> None:
    stages = work()
    assessment, seed = stages["assessment"], stages["seed_assessment"]
    assert [p.requests for p in assessment.parts if isinstance(p, Writing)] == [7, 6, 9]
    # Human-ranked replies are judged, and the best of them read as if the model had written them.
    judging, reading = (p for p in assessment.parts if isinstance(p, Judging))
    assert (judging.items, reading.items) == (12, 3)
    assert (reading.read, reading.longest) == (3 * 45, 45)
    assert assessment.items == 7 + 6 + 9 + 12
    assert assessment.engines == 2, "for asking and for reading"
    assert (assessment.phase, seed.phase) == ("iteration", "seed")
    assert seed.parts == assessment.parts * 3, "base model, SFT baseline and M1"
    assert (seed.items, seed.engines, seed.text_bytes) == (
        3 * assessment.items,
        3 * assessment.engines,
        3 * assessment.text_bytes,
    )
    assert not any(isinstance(p, Writing) for name in ("seed_evaluation", "win_rates") for p in stages[name].parts)


def test_sets_that_are_switched_off_are_not_asked_for() -> None:
    off = work(facts=replace(FACTS, checkable=Lengths(0, ()), closed=Lengths(0, ())))["assessment"]
    assert [p.requests for p in off.parts if isinstance(p, Writing)] == [7, 0, 0]
    assert off.items == 7 + 12


def test_replies_to_closed_tasks_are_as_short_as_the_settings_say() -> None:
    settings = changed(evaluation={"closed_tasks": ClosedTaskSettings(max_new_tokens=4)})
    closed = work(settings)["assessment"].parts[2]
    assert isinstance(closed, Writing)
    assert (closed.requests, closed.read, closed.written) == (9, 9 * 5, 9 * 4)


def test_the_distance_from_the_seed_model_takes_reading_the_replies_twice() -> None:
    (part,) = work()["collapse_monitors"].parts
    assert isinstance(part, Judging)
    assert part.items == 2 * 7
    assert work(changed(monitors={"max_kl": None}))["collapse_monitors"].items == 0


def test_positive_examples_join_the_seed_training() -> None:
    stages = work(changed(pairs={"strategy": "positive_only"}), positive=0.5)
    seed, again = stages["seed_model"], stages["iteration_model"]
    count = QUICKSTART.prompt_generation.count * QUICKSTART.candidates.per_prompt
    assert again.items == seed.items + count * 0.5
    assert [p.kind for p in again.parts] == [p.kind for p in seed.parts]
    assert (seed.phase, again.phase) == ("seed", "iteration")


def test_early_stopping_adds_replies_and_their_judgement_at_every_look() -> None:
    dpo = {"epochs": 2, "batch_size": 8}
    looking = changed(dpo={**dpo, "early_stopping": EarlyStoppingSettings(every=2)})
    stages = [work(settings, pairs_kept=1.0)["iteration_model"] for settings in (changed(dpo=dpo), looking)]
    training, *looks = stages[1].parts
    assert isinstance(training, Training)
    assert training.tokens == stages[0].parts[0].tokens
    assert [type(part).__name__ for part in looks] == ["Writing", "Judging"] * 3, "six steps, a look at every second"


def test_dpo_computes_both_replies_with_their_prompt_and_the_reference_once() -> None:
    settings = changed(dpo={"epochs": 2, "max_length": 512}, candidates={"max_new_tokens": 128})
    (part,) = work(settings, pairs_kept=1.0)["iteration_model"].parts
    assert isinstance(part, Training)
    assert part.examples == 24
    assert part.tokens == pytest.approx(2 * 24 * 2 * 50)
    assert part.reference == pytest.approx(24 * 2 * 50)


def test_scored_replies_are_judged_once_and_compared_ones_every_time() -> None:
    scores, comparison = work(), work(changed(evaluation={"arbiters": (ArbiterSettings(),)}))

    def judged(stage: StageWork) -> list[int]:
        return [part.items for part in stage.parts if isinstance(part, Judging)]

    # Three models' replies; or M1 against the base model and the SFT baseline, and the human-ordered pairs.
    assert judged(scores["seed_evaluation"]) == [21]
    assert judged(comparison["seed_evaluation"]) == [14, 14, 36]
    assert judged(scores["win_rates"]) == [7]
    assert judged(comparison["win_rates"]) == [14, 14, 14]


def test_a_jury_costs_what_each_of_its_jurors_costs() -> None:
    scores = ArbiterSettings(method="scores")
    other = ArbiterSettings(model="some/model", method="scores")
    asked = ArbiterSettings(model="big", server=ServerSettings(base_url="http://a/v1"))
    verifiers = ArbiterSettings(model="verifiers")

    def judged(stage: StageWork) -> list[int]:
        return [part.items for part in stage.parts if isinstance(part, Judging)]

    alone = work(changed(evaluation={"arbiters": (scores,)}))
    jury = work(changed(evaluation={"arbiters": (scores, ArbiterSettings(), other, asked, verifiers)}))
    assert judged(jury["seed_evaluation"]) == [21, 14, 14, 21, 36, 12]
    assert judged(jury["win_rates"]) == [7, 14, 14, 14, 7]
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
    alone, judged = work()["judged_scores"], work(changed(judge={"panel": panel}))["judged_scores"]
    assert [type(part).__name__ for part in judged.parts] == ["Judging", "Writing"]
    assert judged.parts[0] == alone.parts[0]
    assert (judged.engines, judged.items) == (2, alone.items)
    assert (alone.requests, judged.requests) == (0, 3 * alone.items)
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
def tiny_measure(tiny_model: Path) -> TokenizerMeasure:
    from transformers import AutoTokenizer

    return TokenizerMeasure(AutoTokenizer.from_pretrained(tiny_model))


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


def test_facts_are_those_of_the_data(tiny_measure: TokenizerMeasure) -> None:
    facts = measure_data(QUICKSTART, tiny_measure)
    ranked = load_ranked_replies(QUICKSTART.data).table
    assert facts.instructions.count == len(load_instructions(QUICKSTART.data).table)
    assert facts.evaluation.count == len(load_evaluation_prompts(QUICKSTART.data).table)
    assert facts.held_out.count == int((ranked["split"] == "held_out").sum())
    assert facts.best_replies.count == ranked[ranked["split"] == "held_out"]["group_id"].nunique()
    assert facts.closed.count == len(load_closed_tasks("embedded"))
    assert facts.held_out_pairs == 210
    assert facts.ranked.count == facts.judgements.count == 65
    assert facts.ranked.shared.mean < facts.ranked.whole.mean


def test_replies_made_up_for_the_judge_are_counted(tiny_measure: TokenizerMeasure) -> None:
    own = measure_data(QUICKSTART, tiny_measure)
    more = measure_data(load_settings("quickstart", {"eft": {"strangers": 1, "spoiled": 1}}), tiny_measure)
    assert (own.ranked.sequences, more.ranked.sequences) == (4, 6)
    assert more.ranked.whole.mean > 1.4 * own.ranked.whole.mean
    assert more.judgements == own.judgements


def test_where_judging_is_not_taught_no_replies_are_made_up_for_it(tiny_measure: TokenizerMeasure) -> None:
    changes = {"eft": {"enabled": False, "strangers": 1, "spoiled": 1}}
    plain = measure_data(load_settings("quickstart", {"eft": {"enabled": False}}), tiny_measure)
    assert measure_data(load_settings("quickstart", changes), tiny_measure) == plain


def test_ranking_tokens_are_those_that_training_encodes(tiny_measure: TokenizerMeasure, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from srlm_pipeline.judging.eft import eft_from_dataset
    from srlm_pipeline.training.ranking import encode_ranked
    from srlm_pipeline.training.seed import ranked_examples

    settings = changed(data={"ranked_limit": 6}, eft={"max_length": 2048})
    ranked = load_ranked_replies(settings.data).table
    examples = ranked_examples(eft_from_dataset(ranked[ranked["split"] == "train"]).table)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    facts = measure_data(settings, tiny_measure)
    for example, whole in zip(examples, facts.ranked.whole.sample, strict=True):
        sequences = encode_ranked(tokenizer, example, settings.judge.rubric, 2048).sequences
        assert whole == len(sequences) * max(map(len, sequences))


def test_a_judge_is_asked_as_often_as_planned(tmp_path: Path) -> None:
    ranked = load_ranked_replies(QUICKSTART.data).table
    held_out = ranked[ranked["split"] == "held_out"]
    engine = FakeEngine(weigh=lambda _: [0.1] * 6)
    checkpoint = Checkpoint(tmp_path, "M1", "fake", None)
    store = ProjectStore(tmp_path, tmp_path)
    progress = CountingProgress()
    judge_ranked_replies(checkpoint, held_out, QUICKSTART, store, lambda *_: engine, progress)
    facts = measure_data(QUICKSTART, CharacterMeasure())
    judging = work(facts=facts)["assessment"].parts[3]
    assert isinstance(judging, Judging)
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
    *_, writing, reading, _ = work(settings, measure_data(settings, CharacterMeasure()))["assessment"].parts
    assert isinstance(writing, Writing)
    assert isinstance(reading, Judging)
    assert (len(engine.requests), len(engine.prefixes)) == (writing.requests, reading.items), "once, by the journal"
    assert all((table["score"] == 4.0).all() for table in judged)


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "epochs"), [(5, 1.0), (3, 2.0), (4, 1.5)])
def test_dpo_takes_as_many_steps_as_planned(tiny_model: Path, tmp_path: Path, pairs: int, epochs: float) -> None:
    from srlm_pipeline.training.dpo import PreferenceExample, train_dpo

    settings = changed(
        dpo={"batch_size": 2, "micro_batch_size": 1, "epochs": epochs, "max_length": 128},
        prompt_generation={"count": pairs},
        model={"device": "cpu", "dtype": "float32"},
    )
    progress = CountingProgress()
    examples = [PreferenceExample(f"prompt {n}", "yes " * 3, "no " * 2) for n in range(pairs)]
    train_dpo(tiny_model, examples, settings.dpo, settings.model, 0, tmp_path, "dpo", progress)
    (part,) = work(settings, pairs_kept=1.0)["iteration_model"].parts
    assert isinstance(part, Training)
    assert part.steps == progress.done["steps"] == optimiser_steps(pairs, settings.dpo)


# Speed


def test_a_part_takes_what_its_units_take() -> None:
    writing = Writing(requests=2, read=100, written=60, rows=2, steps=40, context=20, longest=50)
    assert RATES.part_seconds(writing) == pytest.approx(0.1 + 40 * 0.05 + 0.06)
    assert RATES.model_copy(update={"context": 1e-4}).part_seconds(writing) == pytest.approx(2.16 + 60 * 20 * 1e-4)
    assert RATES.part_seconds(Judging(items=3, read=300, rows=2, longest=100)) == pytest.approx(0.6)
    dpo = Training("dpo", QUICKSTART.dpo, 4, 1, 1000, 250, 250, reference=500)
    assert RATES.part_seconds(dpo) == pytest.approx(5 + 1 + 4)


def test_a_stage_also_opens_and_saves_models() -> None:
    stage = StageWork("x", "seed", 1, "things", (Judging(1, 100, 1, 100),), engines=2, saves=1)
    assert RATES.stage_seconds(stage) == pytest.approx(0.2 + 2 + 1 + 0.5)


def test_measurements_with_known_costs_give_them_back() -> None:
    observed = [(100.0, 0.0, 0.0), (200.0, 10.0, 160.0), (200.0, 60.0, 700.0), (50.0, 10.0, 20.0), (50.0, 60.0, 110.0)]
    seconds = [r * 1e-3 + s * 0.02 + t * 5e-4 for r, s, t in observed]
    assert _solve(observed, seconds) == pytest.approx((1e-3, 0.02, 5e-4))


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_whatever_is_measured_no_cost_is_negative(seconds: list[float]) -> None:
    observed = [(100.0, 0.0, 0.0), (200.0, 10.0, 160.0), (200.0, 60.0, 700.0), (50.0, 60.0, 110.0)]
    assert all(cost >= 0 for cost in _solve(observed, seconds))


def test_examples_nearest_in_size_are_taken_and_repeated_if_they_are_too_few() -> None:
    assert _nearest([10, 50, 48, 90], 49, 2) == [1, 2]
    assert _nearest([10], 49, 3) == [0, 0, 0]


def test_batches_and_servers() -> None:
    assert requests_in_flight(QUICKSTART.engine, "transformers") is None
    assert requests_in_flight(QUICKSTART.engine, "vllm") == 256
    named = QUICKSTART.engine.model_copy(update={"concurrency": 8})
    assert requests_in_flight(named, "openai") == 8


def test_roofline_by_hand() -> None:
    gpu, shape = GPUS["h100"], shape_of_size(8_000_000_000)
    rates = stated_basis(gpu, 1, shape, load_settings("single-gpu")).likely
    forward = 2 * 8e9 / (989e12 * LIKELY.reading)
    assert rates.read == rates.judged == rates.reference == pytest.approx(forward)
    assert rates.step == pytest.approx(16e9 / (3350e9 * LIKELY.bandwidth) + shape.layers * LIKELY.layer)
    assert rates.context == pytest.approx(2 * 2 * shape.layers * 1024 / (3350e9 * LIKELY.bandwidth))
    # Adapters everywhere: forward, forward again, and backward for the activations.
    assert rates.trained["sft"] == pytest.approx(6 * 8e9 / (989e12 * LIKELY.training))


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
    read, written = plan.tokens
    assert read == pytest.approx(sum(s.tokens_read * plan.repeats(s) for s in plan.stages))
    assert written == pytest.approx(sum(s.tokens_written * plan.repeats(s) for s in plan.stages))
    assert plan.memory == max(s.memory for s in plan.stages)


def test_models_on_disk_are_kept_and_the_one_between_two_trainings_is_not() -> None:
    plan = planned(iterations=2)
    models = [s for s in plan.stages if s.stage in ("sft_baseline", "seed_model", "iteration_model")]
    assert [s.disk_kept for s in models] == [4000, 4000, 4000]
    assert [s.disk_meanwhile for s in models] == [0, 4000, 0]
    texts = sum(s.disk_kept * plan.repeats(s) for s in plan.stages if s not in models)
    assert plan.disk == pytest.approx(4 * 4000 + 4000 + texts)


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
        lambda: [
            (words, other, stated_basis(gpu, n, shape, other)) for words, other, n in command.remedies(settings, 1)
        ],
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
    slow = BASIS.model_copy(
        update={"slow": RATES.scaled(3), "memory": {k: Memory(fixed=2e10, per_token=0) for k in BASIS.memory}}
    )
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
def test_a_real_probe_measures_everything(tiny_model: Path, tiny_measure: TokenizerMeasure, tmp_path: Path) -> None:
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
        facts,
        lambda checkpoint, batch_size: open_engine(checkpoint, settings, batch_size),
        tmp_path / "plans",
        said.append,
    )
    likely = basis.likely
    assert likely.trained.keys() == likely.trainer.keys() == {"sft", "ranking", "dpo"}
    assert min(likely.judged, likely.engine, likely.save, *likely.trained.values()) > 0
    assert likely.read + likely.step + likely.written > 0
    assert basis.memory.keys() == {"writing", "judging", "sft", "ranking", "dpo"}
    assert all(0 < memory.fixed <= basis.available for memory in basis.memory.values())
    assert basis.shares_prefix
    assert list((tmp_path / "plans").iterdir()) == []
    plan = make_plan(settings, facts, basis, 1, "tiny")
    assert math.isfinite(plan.seconds.high)
    assert plan.seconds.low > 0
