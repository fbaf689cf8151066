"""Planning: work counted and compared with what the stages do, the plan and how it is shown."""

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
from families import FAMILIES, family_tokenizer
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
    EarlyStoppingSettings,
    PanelMember,
    ServerSettings,
    Settings,
    ThinkingSettings,
    load_settings,
)
from srlm_pipeline.data.loaders import load_ranked_replies
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.evaluation.measuring import judge_ranked_replies
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.planning.machines import (
    GPUS,
    find_gpu,
    memory_of_model,
    parse_devices,
    parse_size,
    remedies,
    requests_in_flight,
    shape_of_size,
    stated_basis,
    training_operations,
)
from srlm_pipeline.planning.plan import Basis, Memory, Plan, Range, make_plan, plan_path, read_record, write_record
from srlm_pipeline.planning.probe import (
    Rates,
    machine_in_words,
    measure_rates,
    probe_path,
    quick_basis,
    run_probe,
)
from srlm_pipeline.planning.sharding import (
    ModelShape,
    choose_strategy,
    rank_memory,
    training_ranks,
    writing_devices,
)
from srlm_pipeline.planning.texts import (
    Facts,
    Lengths,
    TextMeasure,
    load_data,
    measure_data,
    measure_of,
    read_to_judge,
    unshared,
)
from srlm_pipeline.planning.workload import (
    Assumptions,
    Kind,
    StageWork,
    Unit,
    Work,
    count_work,
    optimiser_steps,
)
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.training.retention import BEGINNING, PER_ITEM

# With every stage that there is, whatever the preset leaves out.
QUICKSTART = load_settings(
    "quickstart",
    {
        "sft": {"enabled": True},
        "eft": {"targets": "dataset", "rationales_per_prompt": 1, "mismatched_negatives": 0, "corrupted_negatives": 0},
        "prompt_generation": {"count": 24, "evolution": {"given": 0.0}},
    },
)
FACTS: Facts = {
    "instruction": Lengths(40, (50,) * 40),
    "prompt": Lengths(40, (20,) * 40),
    "response": Lengths(40, (30,) * 40),
    "judgement": Lengths(10, (200,) * 10),
    "explained": Lengths(40, (90,) * 40),
    "group": Lengths(10, (640,) * 10),
    "held_out": Lengths(12, (80,) * 12),
    "held_out_pair": Lengths(18, (100,) * 18),
    "best": Lengths(3, (45,) * 3),
    "evaluation": Lengths(7, (15,) * 7),
    "verifiable": Lengths(6, (25,) * 6),
    "closed": Lengths(9, (5,) * 9),
    "few_shot": Lengths(5, (150,) * 5),
    "rewriting": Lengths(40, (30,) * 40),
    "template": Lengths(1, (5,)),
    "judge": Lengths(2, (40, 40)),
    "comparison": Lengths(2, (30, 30)),
    "kind": Lengths(40, (60,) * 40),
    "held_out_kind": Lengths(0),
    "checklist": Lengths(40, (70,) * 40),
    "thought": Lengths(0),
}
SECONDS: dict[Unit, float] = {
    "opened": 1.0,
    "read": 2e-3,
    "step": 0.05,
    "drawn": 1e-3,
    "sft": 3e-3,
    "ranking": 4e-3,
    "dpo": 5e-3,
    "trainer": 4.0,
}
KINDS: tuple[Kind, ...] = ("engine", "sft", "ranking", "dpo")
BASIS = Basis(
    source="probe",
    machine="two cores",
    parameters=1000,
    seconds=SECONDS,
    faster=0.5,
    slower=2.0,
    memory=dict.fromkeys(KINDS, Memory(fixed=1e9, per_token=1e3)),
    available=8e9,
    host_memory=0.0,
    in_flight=None,
    notes=("measured",),
)


def changed(settings: Settings = QUICKSTART, **sections: dict[str, Any]) -> Settings:
    update = {name: getattr(settings, name).model_copy(update=fields) for name, fields in sections.items()}
    return settings.model_copy(update=update)


def work(settings: Settings = QUICKSTART, facts: Facts = FACTS, **assumed: Any) -> dict[str, StageWork]:
    return {w.stage: w for w in count_work(settings, facts, Assumptions(**{"reply_share": 1.0, **assumed}))}


def kinds(stage: StageWork) -> list[str]:
    """Return the kinds of work in their order, those that neither read nor learn anything left out."""
    named = (
        ("drawn" if "drawn" in part.units else "read") if part.kind == "engine" else part.kind for part in stage.parts
    )
    return list(named)


def planned(settings: Settings = QUICKSTART, iterations: int = 2, basis: Basis = BASIS) -> Plan:
    return make_plan(settings, FACTS, basis, iterations, "a model")


def seconds(settings: Settings = QUICKSTART) -> dict[str, float]:
    return {stage.stage: stage.seconds.likely for stage in planned(settings).stages}


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


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(0, 400), st.integers(1, 9))
def test_lengths_of_other_texts_follow_from_those_of_some(sample: list[int], limit: int, n: int) -> None:
    some = Lengths(len(sample), tuple(sample))
    assert some.total == pytest.approx(sum(sample))
    assert some.of(n).total == pytest.approx(n * some.mean)
    assert some.cut(limit).longest <= min(limit, some.longest)
    assert (some + some).mean == pytest.approx(some.times(2).mean)
    assert (some + limit).longest == some.longest + limit
    assert (some + Lengths(0)).sample == some.sample


# What the stages do


def test_a_stage_that_is_switched_off_costs_nothing() -> None:
    sft, eft = (
        work(changed(sft={"enabled": False})),
        work(changed(eft={"enabled": False}), {**FACTS, "judgement": Lengths(0)}),
    )
    assert sft["sft_baseline"].parts == []
    assert sft["sft_baseline"].models == 1, "the base model is kept as the SFT baseline"
    assert sft["seed_assessment"].items == 2 * sft["assessment"].items, "and not measured a second time"
    assert judged(sft["seed_evaluation"]) == [2 * 7]
    assert eft["eft_dataset"].items == 0
    assert eft["seed_model"].parts == [], "the SFT baseline is M1"
    assert work(changed(monitors={"max_kl": None}))["collapse_monitors"].items == 0
    off = work(facts={**FACTS, "verifiable": Lengths(0), "closed": Lengths(0)})["assessment"]
    assert off.items == 7 + 12


@pytest.mark.parametrize(
    ("change", "slower"),
    [
        ({"candidates": {"per_prompt": 8}}, {"candidates", "judged_scores"}),
        (
            {"prompt_generation": {"count": 128}},
            {"generated_prompts", "candidates", "judged_scores", "iteration_model"},
        ),
        ({"dpo": {"epochs": 4.0}}, {"iteration_model"}),
        ({"sft": {"epochs": 2.0}}, {"sft_baseline", "seed_model"}),
    ],
)
def test_twice_as_much_takes_twice_as_long_and_the_rest_as_long_as_before(
    change: dict[str, Any], slower: set[str]
) -> None:
    base = changed(
        prompt_generation={"count": 64},
        candidates={"per_prompt": 4, "batch_size": 8},
        dpo={"epochs": 2.0},
        sft={"epochs": 1.0},
    )
    once, twice = seconds(base), seconds(changed(base, **change))
    assert {stage for stage in once if twice[stage] > once[stage]} == slower
    longer = {stage: twice[stage] / once[stage] for stage in slower - {"iteration_model", "sft_baseline", "seed_model"}}
    # Opening a model and, in training, all that comes before and after take as long as before.
    assert all(1.8 < ratio < 2.1 for ratio in longer.values()), longer


def test_training_reads_every_token_in_every_epoch_and_cuts_long_texts() -> None:
    stage = work(changed(sft={"epochs": 2, "micro_batch_size": 2, "max_length": 512}))["sft_baseline"]
    assert stage.units["sft"] == pytest.approx(2 * 40 * 50)
    assert stage.parts[0].held == 100
    assert work(changed(sft={"max_length": 32}))["sft_baseline"].units["sft"] == pytest.approx(40 * 32)


def test_seed_model_trains_on_instructions_and_judgements_and_then_to_rank() -> None:
    stage = work()["seed_model"]
    assert [(part.kind, part.items) for part in stage.parts] == [("sft", 50), ("ranking", 10)]
    assert stage.units["trainer"] == 2
    more = work(changed(eft={"comparisons_per_prompt": 2}))["seed_model"]
    assert more.items == stage.items + 2 * 10
    assert more.units["ranking"] > stage.units["ranking"]


def test_replies_that_are_kept_are_learned_and_read_beside_the_ranking() -> None:
    none, some = (work(changed(eft={"retention": weight}))["seed_model"] for weight in (0.0, 5.0))
    more = {unit: n - none.units.get(unit, 0) for unit, n in some.units.items() if n != none.units.get(unit, 0)}
    assert more.keys() == {"sft", "read"}
    assert more["sft"] == more["read"] <= 10 * PER_ITEM * (BEGINNING + FACTS["prompt"].longest)
    assert (some.items, some.temporary_models) == (none.items, none.temporary_models)


def test_ranks_need_no_judgement_texts() -> None:
    ranks, none = changed(eft={"targets": "ranks"}), {**FACTS, "judgement": Lengths(0)}
    stages = work(ranks, none)
    assert stages["eft_dataset"].parts == []
    assert kinds(stages["seed_model"]) == ["ranking"]
    again = work(changed(ranks, pairs={"strategy": "positive_only"}), none)["iteration_model"]
    assert kinds(again) == ["sft", "ranking"], "replies have joined the data"


def test_own_judgements_are_written_before_some_of_them_are_learned() -> None:
    stages = work(changed(eft={"targets": "self", "rationales_per_prompt": None}), self_judged_kept=0.5)
    (judging,) = stages["eft_dataset"].parts
    assert judging.items == 40 * QUICKSTART.judge.samples
    assert [part.items for part in stages["seed_model"].parts] == [40 + 5 * 4, 5]


def test_positive_examples_join_the_seed_training() -> None:
    stages = work(changed(pairs={"strategy": "positive_only"}), positive=0.5)
    seed, again = stages["seed_model"], stages["iteration_model"]
    count = QUICKSTART.prompt_generation.count * QUICKSTART.candidates.per_prompt
    assert again.items == seed.items + count * 0.5
    assert kinds(again) == kinds(seed)


def test_invented_prompts_come_in_rounds_of_attempts() -> None:
    assert work(changed(prompt_generation={"count": 24}))["generated_prompts"].items == 64
    assert work(changed(prompt_generation={"count": 24, "max_attempts_factor": 1}))["generated_prompts"].items == 32


def test_prompts_that_a_model_rewrites_are_read_instead_of_examples() -> None:
    evolution = {"deepen": 0.25, "broaden": 0.25, "task": 0.25, "given": 0.0}
    settings = load_settings("quickstart", {"prompt_generation": {"count": 64, "evolution": evolution}})
    stage = work(settings)["generated_prompts"]
    assert [part.items for part in stage.parts] == [32, 64], "tasks are made by a program"
    assert stage.units["read"] == 32 * 150 + 64 * 30


def test_samples_of_one_prompt_read_it_once() -> None:
    stage = work(changed(candidates={"per_prompt": 4, "max_new_tokens": 25, "batch_size": 64}))["candidates"]
    assert stage.items == 96
    assert (stage.units["read"], stage.units["drawn"], stage.units["step"]) == (24 * 20, 96 * 25, 2 * 25)


def test_a_server_does_not_wait_for_the_longest_reply() -> None:
    settings = changed(candidates={"max_new_tokens": 100, "batch_size": 64})
    in_batches = work(settings)["candidates"].units["step"]
    served = {w.stage: w for w in count_work(settings, FACTS, Assumptions(reply_share=1.0), in_flight=64)}
    assert served["candidates"].units["step"] < in_batches


def test_a_distribution_judge_reads_a_sampling_one_writes_and_a_hybrid_one_does_both() -> None:
    stages = {
        mode: work(changed(judge={"mode": mode, "samples": 3, "max_new_tokens": 128}))["judged_scores"]
        for mode in ("distribution", "sampled", "hybrid")
    }
    assert [kinds(stage) for stage in stages.values()] == [["read"], ["drawn"], ["drawn", "read"]]
    assert [[part.items for part in stage.parts] for stage in stages.values()] == [[96], [288], [96, 96]]
    assert stages["sampled"].units["read"] == stages["distribution"].units["read"]
    assert stages["hybrid"].parts[1].units["read"] == stages["sampled"].units["read"] + 96 * 128


def test_whatever_is_measured_is_asked_for_once_of_every_model() -> None:
    stages = work()
    assessment, seed = stages["assessment"], stages["seed_assessment"]
    # Human-ranked replies are judged, and the best of them read as if the model had written them.
    assert [part.items for part in assessment.parts] == [7, 6, 9, 12, 3]
    assert kinds(assessment) == ["drawn", "drawn", "drawn", "read", "read"]
    assert assessment.items == 7 + 6 + 9 + 12
    assert seed.parts == assessment.parts * 3, "base model, SFT baseline and M1"
    assert not any("drawn" in kinds(stages[name]) for name in ("seed_evaluation", "win_rates"))


def test_thoughts_are_drawn_before_whatever_is_written_freely_and_learned_where_that_is_wanted() -> None:
    judged = changed(judge={"mode": "sampled"})
    plain, thinking = work(judged), work(judged, {**FACTS, "thought": Lengths(1, (100,))}, thought_share=0.5)
    for stage in ("candidates", "judged_scores", "assessment"):
        before, after = plain[stage].parts[0], thinking[stage].parts[0]
        assert after.units["drawn"] == before.units["drawn"] + 50 * before.items
        assert after.held > before.held
    assert thinking["generated_prompts"] == plain["generated_prompts"], "a beginning is put into its mouth"
    assert thinking["win_rates"] == plain["win_rates"], "scores are read"
    pairs = plain["iteration_model"].parts[0].items
    learned = [stages["iteration_model"].units["dpo"] for stages in (plain, thinking)]
    assert learned[1] - learned[0] == 2 * 50 * pairs * judged.dpo.epochs
    silent = changed(model={"thinking": ThinkingSettings(trained=False)})
    unlearned = work(silent, {**FACTS, "thought": Lengths(1, (100,))})["iteration_model"]
    assert unlearned == work(silent)["iteration_model"]


def test_whether_a_model_thinks_is_seen_by_its_template() -> None:
    measures = [measure_of(family_tokenizer(FAMILIES[name]), ["a reply"]) for name in ("Qwen2.5", "Qwen3")]
    assert [measure.thinks for measure in measures] == [False, True]
    data = load_data(QUICKSTART)
    facts = [measure_data(QUICKSTART, data, measure)["thought"] for measure in measures]
    assert [fact.mean for fact in facts] == [0, QUICKSTART.model.thinking.max_new_tokens]


def test_early_stopping_adds_replies_and_their_judgement_at_every_look() -> None:
    dpo = {"epochs": 2, "batch_size": 8}
    looking = changed(dpo={**dpo, "early_stopping": EarlyStoppingSettings(every=2)})
    without, with_looks = (
        work(settings, pairs_kept=1.0)["iteration_model"] for settings in (changed(dpo=dpo), looking)
    )
    assert kinds(with_looks)[len(kinds(without)) :] == ["drawn", "read"] * 3, "six steps, a look at every second"
    assert with_looks.units["dpo"] == without.units["dpo"]
    assert with_looks.items == without.items == 24


def test_early_stopping_by_signs_asks_no_judge_and_measures_the_policy_once() -> None:
    dpo = {"epochs": 2, "batch_size": 8}
    looking = changed(dpo={**dpo, "early_stopping": EarlyStoppingSettings(every=2, by="signs")})
    without, with_looks = (
        work(settings, pairs_kept=1.0)["iteration_model"] for settings in (changed(dpo=dpo), looking)
    )
    assert kinds(with_looks)[len(kinds(without)) :] == ["drawn", "read"] * 4, "at three looks, and before"


def test_rehearsed_pairs_are_trained_on_as_well_as_far_as_there_are_any() -> None:
    def stage(rehearsal: float) -> StageWork:
        return work(changed(dpo={"epochs": 2, "rehearsal": rehearsal}), pairs_kept=1.0)["iteration_model"]

    groups = FACTS["group"].count
    assert [stage(share).items - stage(0.0).items for share in (0.1, 0.5, 0.9)] == [
        min(groups, 3),
        min(groups, 24),
        groups,
    ]
    assert stage(0.1).units["dpo"] > stage(0.0).units["dpo"]


def test_interpolation_measures_every_model_that_may_be_tried_and_the_one_before() -> None:
    without, tried = (work(changed(dpo={"interpolation": ratios}))["iteration_model"] for ratios in ((), (0.25, 0.5)))
    assert kinds(tried)[len(kinds(without)) :] == ["drawn", "read"] * 3
    assert [part.items for part in tried.parts[len(without.parts) :: 2]] == [FACTS["best"].count] * 3
    assert tried.temporary_models == without.temporary_models + 2


def test_dpo_computes_both_replies_with_their_prompt_and_the_reference_once() -> None:
    settings = changed(dpo={"epochs": 2, "max_length": 512}, candidates={"max_new_tokens": 128})
    units = work(settings, pairs_kept=1.0)["iteration_model"].units
    assert units["dpo"] == 2 * units["read"] == pytest.approx(2 * 24 * 2 * (20 + 5 + 30))


def judged(stage: StageWork) -> list[int]:
    return [part.items for part in stage.parts if "drawn" not in part.units]


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
    assert (alone["win_rates"].opened, jury["win_rates"].opened) == (1, 3)
    assert (alone["seed_evaluation"].requests, alone["win_rates"].requests) == (0, 0)
    # Both orders of seven prompts, against two and three opponents, and of the 18 human-ordered pairs.
    assert (jury["seed_evaluation"].requests, jury["win_rates"].requests) == (2 * 2 * 7 + 2 * 18, 2 * 3 * 7)
    programs = [ArbiterSettings(model=name) for name in ("verifiers", "reference", "people")]
    without_models = work(changed(evaluation={"arbiters": (asked, *programs)}))
    assert judged(without_models["win_rates"]) == []
    assert without_models["win_rates"].opened == 0


def test_a_panel_costs_what_each_of_its_members_costs() -> None:
    server = ServerSettings(base_url="http://a/v1")
    panel = (PanelMember(), PanelMember(model="some/model", mode="sampled"), PanelMember(model="big", server=server))
    alone, together = work()["judged_scores"], work(changed(judge={"panel": panel}))["judged_scores"]
    assert kinds(together) == ["read", "drawn"]
    assert together.parts[0] == alone.parts[0]
    assert (together.opened, together.items) == (2, alone.items)
    assert (alone.requests, together.requests) == (0, 3 * alone.items)
    assert work(changed(judge={"panel": panel}))["assessment"] == work()["assessment"]
    programs = (PanelMember(), PanelMember(model="verifiers"))
    assert work(changed(judge={"panel": programs}))["judged_scores"] == alone


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

    texts = [row.response for row in load_data(QUICKSTART).ift.itertuples()]
    return measure_of(AutoTokenizer.from_pretrained(tiny_model), texts)


class CountingProgress:
    """Remembers how much of what was done."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        self.unit = unit
        yield self

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        self.done[self.unit] = self.done.get(self.unit, 0) + amount

    def within(self, note: str) -> None:
        pass


def measured(settings: Settings, measure: TextMeasure | None = None) -> Facts:
    return measure_data(settings, load_data(settings), measure or TextMeasure())


def test_facts_are_those_of_the_data() -> None:
    data, facts = load_data(QUICKSTART), measured(QUICKSTART)
    assert facts["instruction"].count == facts["prompt"].count == facts["response"].count == len(data.ift)
    assert facts["held_out"].count == len(data.held_out)
    assert facts["best"].count == data.held_out["group_id"].nunique()
    assert facts["held_out_pair"].count == 210
    assert facts["group"].count == facts["judgement"].count == 65
    assert facts["explained"].count == len(data.train)
    assert facts["judge"].mean < facts["held_out"].mean
    assert facts["instruction"].mean > facts["prompt"].mean + facts["response"].mean


def test_replies_made_up_for_the_judge_are_counted_where_judging_is_taught() -> None:
    more = {"mismatched_negatives": 1, "corrupted_negatives": 1}
    own, taught = measured(QUICKSTART)["group"], measured(changed(eft=more))["group"]
    assert taught.count == own.count
    assert taught.mean > 1.4 * own.mean, "six replies instead of four"
    assert measured(changed(eft={**more, "enabled": False}))["group"] == own


def test_tokens_are_about_those_that_training_encodes(tiny_measure: TextMeasure, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from srlm_pipeline.training.ranking_items import encode_ranked

    settings = changed(data={"ranked_limit": 6}, eft={"max_length": 2048})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    examples = load_data(settings).groups
    encoded = [encode_ranked(tokenizer, example, settings.judge.rubric, 2048).sequences for example in examples]
    counted = work(settings, measured(settings, tiny_measure))["seed_model"].units["ranking"]
    assert counted == pytest.approx(sum(len(tokens) for sequences in encoded for tokens in sequences), rel=0.15)


def test_a_judge_is_asked_as_often_as_planned(tmp_path: Path) -> None:
    ranked = load_ranked_replies(QUICKSTART.data).table
    held_out = ranked[ranked["split"] == "held_out"]
    engine = FakeEngine(weigh=lambda _: [0.1] * 6)
    checkpoint = Checkpoint(tmp_path, "M1", "fake", None)
    store = ProjectStore(tmp_path, tmp_path)
    progress = CountingProgress()
    judge_ranked_replies(checkpoint, held_out, QUICKSTART, store, lambda *_: engine, progress)
    judging = work(facts=measured(QUICKSTART))["assessment"].parts[3]
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
    *_, writing, reading, _ = work(settings, measured(settings))["assessment"].parts
    assert (len(engine.requests), len(engine.prefixes)) == (writing.items, reading.items), "once, by the journal"
    assert all((table["score"] == 4.0).all() for table in judged)


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
    assert progress.done["steps"] == optimiser_steps(pairs, settings.dpo)


# Speed


def test_batches_and_servers() -> None:
    assert requests_in_flight(QUICKSTART.engine, "transformers") is None
    assert requests_in_flight(QUICKSTART.engine, "vllm") == 256
    named = QUICKSTART.engine.model_copy(update={"concurrency": 8})
    assert requests_in_flight(named, "openai") == 8


def test_half_the_layers_are_cheaper_to_train_than_all_and_these_than_all_weights() -> None:
    lora = QUICKSTART.sft.lora
    half, whole, full = (
        training_operations(QUICKSTART.sft.model_copy(update=fields), 10)
        for fields in (
            {"lora": lora.model_copy(update={"top_layers": 0.5})},
            {"lora": lora.model_copy(update={"top_layers": 1.0})},
            {"method": "full"},
        )
    )
    # Forward twice, backward for activations, and for weights.
    assert (half, whole, full) == (40, 60, 80)


def test_memory_grows_with_the_method_and_is_shared_among_devices() -> None:
    shape, settings = shape_of_size(8_000_000_000), load_settings("single-gpu")
    lora = memory_of_model(shape, settings)
    full = memory_of_model(shape, changed(settings, dpo={"method": "full"}))
    shared = memory_of_model(shape, settings, together=8)
    kept = memory_of_model(shape, settings, checkpointing=False)
    assert 16e9 < lora["dpo"].fixed < 0.2 * full["dpo"].fixed
    assert full["dpo"].fixed > 16 * 8e9
    assert shared["engine"].fixed < lora["engine"].fixed
    assert kept["sft"].per_token > 2 * lora["sft"].per_token
    assert memory_of_model(shape, settings, dtype="float32")["engine"].fixed > 1.8 * lora["engine"].fixed


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


# The plan


def test_sums_are_those_of_the_stages() -> None:
    plan = planned(iterations=3)
    seed, loop = ([s.seconds.likely for s in plan.stages if s.phase == phase] for phase in ("seed", "iteration"))
    assert len(seed) == 5
    assert len(loop) == 7
    assert plan.seconds.likely == pytest.approx(sum(seed) + 3 * sum(loop))
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


# Tokens per second and GPU as published, of training with FSDP over whole sequences: model, GPUs, tokens of a forward
# pass on each, and whether activations were computed again. Sources in docs/scaling.md.
PUBLISHED = [
    ("a100", 64, (8.03e9, 32, 4096), 8192, False, 2904),
    ("a100", 64, (70.6e9, 80, 8192), 8192, True, 331),
    ("h100", 8, (8.03e9, 32, 4096), 16384, False, 5762),
    ("h100", 8, (6.66e9, 32, 4096), 12288, False, 10643),
    ("h100", 64, (12.85e9, 40, 5120), 4096, False, 4800),
    ("h100", 8, (29.98e9, 48, 7168), 6144, True, 2002),
    ("h100", 64, (64.86e9, 64, 8192), 16384, True, 1039),
    ("h100", 32, (64.86e9, 64, 8192), 4096, True, 882),
]


@pytest.mark.parametrize(("device", "n", "sizes", "tokens", "again", "published"), PUBLISHED)
def test_plans_lie_between_half_of_what_was_published_and_a_third_more(
    device: str, n: int, sizes: tuple[float, int, int], tokens: int, again: bool, published: float
) -> None:
    parameters, layers, hidden = sizes
    shape = ModelShape(int(parameters), layers, hidden, 1024, 128_000)
    whole = {"method": "full", "gradient_checkpointing": again, "batch_size": n, "micro_batch_size": 1}
    settings = changed(load_settings("paper"), dpo=whole, engine={"kind": "vllm"})
    basis = stated_basis(GPUS[device], n, shape, settings)
    steps = StageWork("m", "seed", 1, "", [Work("dpo", 1, {"dpo": n * tokens, "dpo_pass": n}, tokens)])
    ratio = tokens / basis.seconds_of(steps) / published
    assert 0.5 < ratio < 1.33


def test_what_is_shared_among_devices() -> None:
    shape, full = shape_of_size(8_000_000_000), load_settings("paper").dpo
    alone, ddp, shared = (
        rank_memory(shape, full, strategy, ranks) for strategy, ranks in (("one", 1), ("ddp", 8), ("fsdp2", 8))
    )
    # Weight, gradient and two moments in float32; DDP keeps a second copy of the gradients.
    assert alone.weights + alone.gradients + alone.moments == 16 * 8e9
    assert ddp.fixed - alone.fixed == 4 * 8e9
    assert shared.weights + shared.gradients + shared.moments == pytest.approx(2 * 8e9)
    assert shared.gathered > 0
    eight_bits, adapters, four_bits = (
        rank_memory(shape, full.model_copy(update=change))
        for change in ({"optimizer": "adamw_8bit"}, {"method": "lora"}, {"method": "qlora"})
    )
    assert alone.moments == 4 * eight_bits.moments
    assert four_bits.fixed < 0.5 * adapters.fixed < 0.1 * alone.fixed


@given(batch=st.integers(1, 256), devices=st.integers(1, 128))
def test_no_more_devices_train_than_share_a_batch_evenly(batch: int, devices: int) -> None:
    chosen = load_settings("paper").dpo.model_copy(update={"batch_size": batch})
    ranks = training_ranks(chosen, devices)
    assert 1 <= ranks <= min(devices, batch) and batch % ranks == 0


@pytest.mark.parametrize(
    ("size", "n", "method", "expected"),
    [
        ("8B", 1, "lora", ("one", 1)),
        ("8B", 8, "lora", ("ddp", 8)),
        ("8B", 8, "full", ("fsdp2", 8)),
        ("70B", 8, "lora", ("ddp", 8)),
        ("70B", 8, "full", ("fsdp2", 8)),
        ("70B", 64, "full", ("fsdp2", 16)),
    ],
)
def test_the_plainest_strategy_that_fits_is_taken(size: str, n: int, method: Any, expected: tuple[str, int]) -> None:
    chosen = load_settings("paper").dpo.model_copy(update={"method": method})
    assert choose_strategy(shape_of_size(parse_size(size)), chosen, n, 73.6 * 2**30) == expected


def test_copies_of_a_model_that_write_take_as_few_devices_as_they_can() -> None:
    sizes = [shape_of_size(parse_size(size)) for size in ("8B", "70B", "400B")]
    assert [writing_devices(shape, 8, 73.6 * 2**30) for shape in sizes] == [1, 4, 8]


@pytest.mark.parametrize(
    ("text", "expected"), [("h100", ("h100", 1)), ("8 x H100", ("H100", 8)), ("64xrtx 4090", ("rtx 4090", 64))]
)
def test_devices_are_a_name_and_a_number(text: str, expected: tuple[str, int]) -> None:
    assert parse_devices(text) == expected


@pytest.mark.parametrize("wrong", ["", "0 x h100", "99999 x h100"])
def test_no_devices_are_a_mistake(wrong: str) -> None:
    with pytest.raises(SrlmError, match="names no devices"):
        parse_devices(wrong)


def test_what_does_not_fit_is_said_with_a_way_out() -> None:
    settings, shape = load_settings("paper"), shape_of_size(8_000_000_000)
    gpu = GPUS["h100"]
    ways = ((words, other, stated_basis(gpu, n, shape, other)) for words, other, n in remedies(settings, 1))
    (warning,) = make_plan(settings, FACTS, stated_basis(gpu, 1, shape, settings), 1, "8B", ways).warnings
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
    assert plan.basis.machine == "8 x NVIDIA H100 SXM"
    assert plan.iterations == 2
    assert plan.price is None
    assert "--gpus 4 are two numbers" in srlm("plan", "--device", "8 x h100", "--gpus", "4", "--model-size", "8B")[1]


def test_all_devices_are_paid_for(srlm: Srlm) -> None:
    words = ("plan", "--device", "8 x h100", "--model-size", "8B", "--price", "2.5")
    plan = Plan.model_validate(json.loads(srlm(*words, "--json")[1]))
    assert plan.cost(plan.seconds).likely == pytest.approx(8 * 2.5 * plan.seconds.likely / 3600)
    said = srlm(*words)[1]
    assert "an iteration" in said
    # Each way of training, with what a device would hold.
    for way in ("qlora, ddp", "lora, ddp", "full, adamw_8bit, fsdp2"):
        assert way in said


def test_mistakes_are_explained(srlm: Srlm) -> None:
    assert "name a --device too" in srlm("plan", "--model-size", "8B")[1]
    code, said = srlm("plan", "--device", "abacus", "--model-size", "8B")
    assert code == 1
    assert "known: h200, h100, a100, l40s, rtx4090" in said


def test_the_machine_is_measured_once_and_again_when_asked(
    srlm: Srlm, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from srlm_pipeline.planning import probe

    measured: list[str] = []

    def rates(*_: object) -> Rates:
        measured.append("quickly")
        return Rates(seconds={unit: SECONDS[unit] for unit in ("opened", "read", "step", "drawn")}, measured="today")

    def everything(*_: object) -> Basis:
        measured.append("thoroughly")
        return BASIS

    monkeypatch.setattr(probe, "measure_rates", rates)
    monkeypatch.setattr(probe, "run_probe", everything)
    words = ("plan", "--set", f"base_model={tiny_model}", "--set", "model.device=cpu")
    assert "(measured)" in srlm(*words)[1]
    # Neither more work nor another way of training asks for another measurement.
    for more in (("--prompts", "50"), ("--set", "dpo.micro_batch_size=1")):
        assert "Measuring" not in srlm(*words, *more)[1]
    assert measured == ["quickly"]
    assert "Measuring" in srlm(*words, "--fresh")[1]
    assert "two cores" in srlm(*words)[1]
    assert measured == ["quickly", "thoroughly"]


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
    data, said = load_data(settings), []
    model = settings.model_copy(update={"base_model": str(tiny_model)})
    basis = run_probe(
        Checkpoint(tiny_model, "base", "tiny", None),
        command.configured_shape(model, ProjectStore(tmp_path, tmp_path)),
        settings,
        data,
        tiny_measure,
        lambda checkpoint, batch_size: open_engine(checkpoint, settings, batch_size),
        tmp_path / "plans",
        said.append,
    )
    assert basis.seconds.keys() == SECONDS.keys()
    assert min(taken for unit, taken in basis.seconds.items() if unit not in ("step", "drawn")) > 0
    assert basis.seconds["step"] + basis.seconds["drawn"] > 0
    assert "training: ranking" in said
    assert list((tmp_path / "plans").iterdir()) == []
    assert all(0 < memory.fixed < basis.available for memory in basis.memory.values())
    plan = make_plan(settings, measure_data(settings, data, tiny_measure), basis, 1, "tiny")
    assert 0 < plan.seconds.low <= plan.seconds.likely <= plan.seconds.high < math.inf


@pytest.mark.slow
def test_the_quick_probe_reads_writes_and_counts_training(tiny_model: Path, tiny_measure: TextMeasure) -> None:
    from srlm_pipeline.generation.opening import open_engine

    settings = changed(
        model={"device": "cpu", "dtype": "float32"}, data={"ift_limit": 12, "ranked_limit": 6, "evaluation_limit": 3}
    )
    base = Checkpoint(tiny_model, "base", "tiny", None)
    said: list[str] = []
    rates = measure_rates(
        base,
        settings,
        load_data(settings),
        tiny_measure,
        lambda checkpoint, batch_size: open_engine(checkpoint, settings, batch_size),
        said.append,
    )
    assert said == ["loading the model", "reading", "writing"]
    shape = shape_of_size(1_000_000)
    upper = settings.dpo.lora.model_copy(update={"top_layers": 0.5})
    few, full, again = (
        quick_basis(rates, shape, changed(settings, dpo={"lora": upper} | more)).seconds["dpo"]
        for more in ({}, {"method": "full"}, {"method": "full", "gradient_checkpointing": True})
    )
    # On a CPU activations are kept: 2 + 2 / 2 operations, and 2 + 2 + 2, and 2 more for reading again.
    assert few == pytest.approx(1.5 * rates.seconds["read"])
    assert (full / few, again / few) == pytest.approx((2, 8 / 3))


@pytest.mark.parametrize("rubric", ["by_kind", "checklist"])
def test_of_several_questions_about_a_reply_only_the_ends_are_counted_again(rubric: str) -> None:
    judge = changed(judge={"mode": "distribution", "rubric": rubric}).judge
    read = read_to_judge(judge, "the prompt", "the reply", "code")
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
    data = replace(load_data(settings), held_out=held_out)
    facts = measure_data(settings, data, TextMeasure())
    *_, before, judging, _ = work(settings, facts)["assessment"].parts
    told = {prefix for prefix in engine.prefixes if "letter of the kind" in prefix}
    # Prompts without content are read beside those whose kinds are told.
    assert before.items == (len(engine.requests) if rubric == "checklist" else len(told) - 3) == n
    assert judging.items == len(held_out)
