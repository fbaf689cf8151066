"""Which results a setting makes stale: every one of them changed, against a table written by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest

from srlm_pipeline import definitions
from srlm_pipeline.assets import seed
from srlm_pipeline.assets.automation import newest_materialization
from srlm_pipeline.assets.stage import CODE_VERSION_TAG
from srlm_pipeline.config import (
    ArbiterSettings,
    DataSettings,
    PanelMember,
    Section,
    ServerSettings,
    Settings,
    describe_fields,
    load_settings,
)
from srlm_pipeline.data import loaders
from srlm_pipeline.reads import STAGES, Reads
from srlm_pipeline.resources.project import PROJECT, SETTINGS_TAG, ProjectResource, frozen_settings
from srlm_pipeline.tracking import parameters

TABLES_FROM_FILES = {"ift_dataset", "ranked_replies", "evaluation_prompts"}
SEED_TRAINING = {"sft_baseline", "seed_model"}
BASELINES = {"reward_model", "rlhf_model", "human_dpo_model"}
TRAINING = SEED_TRAINING | BASELINES | {"iteration_model"}
ASSESSED = {"seed_assessment", "assessment"}
MATCHES = {"seed_evaluation", "win_rates", "baseline_comparison"}
DECIDING = {"promotion"}
WITHOUT_SFT = {"sft": {"enabled": False}, "eft": {"targets": "ranks"}}


def settings_with(changes: dict[str, Any] | None = None) -> Settings:
    """The quickstart's settings with every stage at work: SFT, and judgements from the data."""
    whole = {"sft": {"enabled": True}, "eft": {"targets": "dataset"}}
    given = changes or {}
    return load_settings("quickstart", {**given, **{k: {**v, **given.get(k, {})} for k, v in whole.items()}})


# By the longest beginning of a setting's name: what is stale after a change of `settings_with`.
STALE: dict[str, set[str]] = {
    "preset": set(),
    "project": set(STAGES),
    "storage": set(STAGES),
    "archive": set(),
    "owners": set(),
    "seed": (set(STAGES) - TABLES_FROM_FILES)
    - {"policy", "champion", "preference_pairs", "collapse_monitors", "promotion", "iteration_report"},
    "base_model": {"sft_baseline", "seed_model", "generated_prompts", "seed_assessment", "promotion"}
    | {"seed_evaluation", "win_rates"},
    "model.device": set(),
    "model.trust_remote_code": set(),
    "model": TRAINING,
    # Whether and how models think is part of what they write.
    "model.thinking": TRAINING | ASSESSED | MATCHES | {"generated_prompts", "candidates", "judged_scores"},
    "model.thinking.trained": TRAINING,
    "engine": set(),
    "data.ift": {"ift_dataset", "ranked_replies"},
    "data.ranked_replies": {"ift_dataset", "ranked_replies"},
    "data.evaluation_prompts": {"evaluation_prompts"},
    "data.bad_rows": TABLES_FROM_FILES,
    "data.include_unreviewed": TABLES_FROM_FILES,
    "data.ranked_share": {"ift_dataset", "ranked_replies"},
    "data.held_out_fraction": {"ranked_replies"},
    "data.ift_limit": {"ift_dataset"},
    "data.ranked_limit": {"ranked_replies"},
    "data.evaluation_limit": {"evaluation_prompts"},
    "sft": SEED_TRAINING,
    "eft": {"seed_model"},
    "eft.enabled": {"eft_dataset", "seed_model"},
    "eft.targets": {"eft_dataset", "seed_model"},
    "eft.max_score_share": {"eft_dataset", "seed_model"},
    "eft.mismatched_negatives": {"eft_dataset", "seed_model"},
    "eft.corrupted_negatives": {"eft_dataset", "seed_model"},
    "eft.min_prompts": {"eft_dataset"},
    "prompt_generation": {"generated_prompts"},
    # A gain in what the loop trains on proves nothing.
    "prompt_generation.evolution.given": {"generated_prompts"},
    "prompt_generation.evolution.constrain": {"generated_prompts", "promotion"},
    "candidates": {"candidates"},
    "judge": {"judged_scores", "baseline_comparison"} | ASSESSED,
    "judge.rubric": {"judged_scores", "seed_model"} | MATCHES | ASSESSED,
    "judge.panel": {"judged_scores", "promotion"},
    "judge.min_parse_rate": {"judged_scores"},
    "pairs": {"preference_pairs", "collapse_monitors"},
    "pairs.strategy": {"preference_pairs", "collapse_monitors", "iteration_model"},
    "dpo": {"iteration_model", "human_dpo_model"},
    # The baseline learns from human pairs alone, and from no model of the loop's.
    "dpo.reference": {"iteration_model"},
    "dpo.rehearsal": {"iteration_model"},
    "dpo.interpolation": {"iteration_model"},
    "dpo.nats_tolerance": {"iteration_model"},
    "baselines.start_from": {"seed_model"},
    "baselines.reward_model": {"reward_model"},
    "baselines.rlhf": {"rlhf_model"},
    "training": set(),
    "evaluation.arbiters": MATCHES | DECIDING,
    "evaluation.tie_margin": MATCHES,
    "evaluation.other_answers": {"win_rates"},
    "evaluation.verifiable": ASSESSED,
    # Of the prompts that are asked, none may be invented.
    "evaluation.verifiable.source": ASSESSED | {"generated_prompts"},
    "evaluation.closed_tasks": ASSESSED,
    "evaluation.closed_tasks.source": ASSESSED | {"generated_prompts"},
    "evaluation.encoder": ASSESSED,
    "evaluation.harness_tasks": {"assessment"},
    "evaluation.harness_limit": {"assessment"},
    "evaluation.max_new_tokens": ASSESSED | {"baseline_comparison"},
    "evaluation.bootstrap_samples": ASSESSED | {"collapse_monitors"} | DECIDING,
    "monitors": {"collapse_monitors"},
    "promotion": DECIDING,
    "schedule": set(),
    "tracking": set(),
    "notices": set(),
    "resources": set(),
}
# Knobs: how something is computed, how it is reached, when it is given up.
RESOURCES = {
    "batch_size", "micro_batch_size", "save_every", "max_attempts_factor", "device", "trust_remote_code",
    "attention", "gradient_checkpointing",
}  # fmt: skip
# Those that are no knobs although they are called so: examples per optimiser step.
OPTIMISER_BATCHES = {"sft", "eft", "dpo", "baselines.reward_model", "baselines.rlhf"}
KEYS = [key for key, _, _ in describe_fields() if "[]" not in key]
OTHERS: dict[str, Any] = {
    "evaluation.verifiable.source": "none",
    "evaluation.closed_tasks.source": "none",
    "prompt_generation.generator": "policy",
    "eft.targets": "ranks",
    "baselines.start_from": "rlhf",
    "judge.panel": (PanelMember(model="server-model", server=ServerSettings(base_url="http://judge/v1")),),
    "evaluation.arbiters": (ArbiterSettings(model="people"),),
}


def another(key: str, value: Any, annotation: Any) -> Any:
    """Return any other value; whether it makes sense is not asked here."""
    if key in OTHERS:
        return OTHERS[key]
    choices = [c for c in get_args(annotation) if isinstance(c, str)]
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return ("other",) if isinstance(value, tuple) else {"id": "other"} if isinstance(value, dict) else "other"


def with_another(settings: Section, key: str, whole: str = "") -> Any:
    """Return the settings with one of them changed, unchecked."""
    name, _, rest = key.partition(".")
    whole = whole or key
    value = getattr(settings, name)
    changed = (
        with_another(value, rest, whole)
        if rest
        else another(whole, value, type(settings).model_fields[name].annotation)
    )
    return settings.model_copy(update={name: changed})


def stale(before: Settings, after: Settings) -> set[str]:
    return {name for name, reads in STAGES.items() if reads.version(before) != reads.version(after)}


def expected(key: str) -> set[str]:
    parts = key.split(".")
    if parts[-1] in RESOURCES and not (parts[-1] == "batch_size" and ".".join(parts[:-1]) in OPTIMISER_BATCHES):
        return set()
    beginnings = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return STALE[next(beginning for beginning in beginnings if beginning in STALE)]


def table() -> str:
    """Return what is stale as Markdown."""
    lines = ["| setting | stale |", "|---|---|"]
    for key, assets in STALE.items():
        everything = "everything" if assets == set(STAGES) else ""
        lines.append(f"| `{key}` | {everything or ', '.join(f'`{a}`' for a in sorted(assets)) or 'nothing'} |")
    return "\n".join(lines)


def test_the_document_has_this_table() -> None:
    document = (Path(__file__).parent.parent / "docs" / "staleness.md").read_text(encoding="utf-8")
    assert table() in document, f"docs/staleness.md should have:\n{table()}"


@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("around", [{}, WITHOUT_SFT, {"pairs": {"strategy": "positive_only"}}], ids=str)
def test_whatever_a_stage_reads_can_be_told_as_parameters(stage: str, around: dict[str, Any]) -> None:
    settings = settings_with(around)
    told = parameters(settings, STAGES[stage].all_keys(settings))
    for key in STAGES[stage].all_keys(settings):
        assert any(name == key or name.startswith(f"{key}.") for name in told), key


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_setting_makes_exactly_these_results_stale(key: str) -> None:
    settings = settings_with()
    assert stale(settings, with_another(settings, key)) == expected(key)


@pytest.mark.parametrize(
    ("around", "key", "found"),
    [
        ({"eft": {"targets": "self"}}, "judge.temperature", expected("judge.temperature") | {"eft_dataset"}),
        # What is thought of judgements retrains nothing.
        ({"eft": {"targets": "self"}}, "judge.min_parse_rate", {"judged_scores"}),
        ({"eft": {"targets": "self"}}, "eft.min_prompts", {"eft_dataset"}),
        (WITHOUT_SFT, "sft.learning_rate", set()),
        # A base model from the hub is saved as the SFT baseline.
        (WITHOUT_SFT, "model.save_dtype", TRAINING),
        ({"pairs": {"strategy": "positive_only"}}, "dpo.beta", {"human_dpo_model"}),
        ({"pairs": {"strategy": "positive_only"}}, "sft.learning_rate", SEED_TRAINING | {"iteration_model"}),
        ({"pairs": {"strategy": "positive_only"}}, "base_model", expected("base_model") | {"iteration_model"}),
        ({"prompt_generation": {"generator": "policy"}}, "base_model", expected("base_model") - {"generated_prompts"}),
        ({"dpo": {"early_stopping": {"every": 2}}}, "evaluation.tie_margin", MATCHES | {"iteration_model"}),
        (
            {"dpo": {"early_stopping": {"every": 2}}},
            "evaluation.max_new_tokens",
            expected("evaluation.max_new_tokens") | {"iteration_model"},
        ),
        ({"dpo": {"early_stopping": {"every": 2, "by": "signs"}}}, "evaluation.tie_margin", MATCHES),
        ({"dpo": {"reference": "base"}}, "base_model", expected("base_model") | {"iteration_model"}),
        (
            {"dpo": {"interpolation": (0.5,)}},
            "evaluation.max_new_tokens",
            expected("evaluation.max_new_tokens") | {"iteration_model"},
        ),
        ({"evaluation": {"arbiters": ["verifiers"]}}, "evaluation.verifiable.limit", ASSESSED | MATCHES),
        ({"evaluation": {"arbiters": ["reference"]}}, "evaluation.encoder", ASSESSED | MATCHES),
        # By kind it is asked what it is not taught: M1 learns to judge by `short` either way.
        ({"judge": {"rubric": "by_kind"}}, "judge.rubric", expected("judge.rubric")),
    ],
)
def test_what_is_stale_follows_the_other_settings(around: dict[str, Any], key: str, found: set[str]) -> None:
    settings = settings_with(around)
    assert stale(settings, with_another(settings, key)) == found


@pytest.mark.parametrize("rubric", ["by_kind", "checklist"])
def test_another_way_of_judging_that_m1_is_not_taught_makes_no_other_m1(rubric: str) -> None:
    others = {"judge": {"mode": "distribution", "rubric": rubric}}
    before = settings_with({"judge": {"mode": "distribution", "rubric": "short"}})
    assert stale(before, settings_with(others)) == expected("judge.rubric") - {"seed_model"}


def folder_of_weights(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.mark.parametrize(
    ("around", "found"),
    [
        (lambda p: {"base_model": p}, {"sft_baseline", "seed_model", "seed_assessment", "generated_prompts"}),
        (lambda p: {"prompt_generation": {"generator": p}}, {"generated_prompts"}),
        (
            lambda p: {"base_model": p, "dpo": {"reference": "base"}},
            {"sft_baseline", "seed_model", "seed_assessment", "generated_prompts", "iteration_model"},
        ),
        (lambda p: {"judge": {"panel": ["self", p]}}, {"judged_scores"}),
        (lambda p: {"evaluation": {"arbiters": ["self", p]}}, MATCHES),
    ],
)
def test_weights_that_were_replaced_make_stale_what_was_made_with_them(
    around: Any, found: set[str], tmp_path: Path
) -> None:
    folder = folder_of_weights(tmp_path / "model")
    settings = settings_with(around(str(folder)))
    before = {name: reads.version(settings) for name, reads in STAGES.items()}
    assert {name for name, reads in STAGES.items() if reads.version(settings) != before[name]} == set()
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert {name for name, reads in STAGES.items() if reads.version(settings) != before[name]} == found


@pytest.mark.parametrize(
    ("around", "content", "found"),
    [
        (lambda p: {"data": {"ift": p}}, '{"prompt": "a", "response": "b"}', {"ift_dataset", "ranked_replies"}),
        (lambda p: {"data": {"evaluation_prompts": p}}, '{"prompt": "a"}', {"evaluation_prompts"}),
        (lambda p: {"evaluation": {"verifiable": {"source": p}}}, "", ASSESSED | {"generated_prompts"}),
        (
            lambda p: {"evaluation": {"arbiters": ["verifiers"], "verifiable": {"source": p}}},
            "",
            ASSESSED | {"generated_prompts"} | MATCHES,
        ),
        (lambda p: {"evaluation": {"closed_tasks": {"source": p}}}, "", ASSESSED | {"generated_prompts"}),
        (lambda p: {"evaluation": {"other_answers": [p]}}, "[]", {"win_rates"}),
    ],
)
def test_files_that_were_edited_make_stale_what_was_read_from_them(
    around: Any, content: str, found: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    settings = settings_with(around(str(path)))
    before = {name: reads.version(settings) for name, reads in STAGES.items()}
    path.write_text(content + "\n", encoding="utf-8")
    assert {name for name, reads in STAGES.items() if reads.version(settings) != before[name]} == found


def test_unfinished_training_goes_on_with_other_resources_and_verdicts_only() -> None:
    reads = Reads(("sft", "judge"), verdicts=("judge.min_parse_rate",))
    settings = settings_with()
    for key in ("sft.micro_batch_size", "sft.save_every", "judge.batch_size", "judge.min_parse_rate"):
        assert reads.fingerprint(with_another(settings, key)) == reads.fingerprint(settings), key
    for key in ("sft.batch_size", "sft.lora.rank", "judge.samples"):
        assert reads.fingerprint(with_another(settings, key)) != reads.fingerprint(settings), key


class Home:
    """A Dagster home with a configuration file; materializes instruction data, which takes no model."""

    def __init__(self, instance: dg.DagsterInstance, config: Path) -> None:
        self.instance, self.config = instance, config

    def materialize(self, overrides: dict[str, Any] | None = None, *assets: Any) -> dg.ExecuteInProcessResult:
        configured = {"config": str(self.config), "overrides": overrides or {}}
        return dg.materialize(
            list(assets) or [seed.ift_dataset],
            instance=self.instance,
            resources=dict(definitions.defs.resources or {}),
            run_config={"resources": {PROJECT: {"config": configured}}},
        )

    def recorded(self, asset: str = "ift_dataset") -> str | None:
        record = newest_materialization(self.instance, dg.AssetKey(asset), None)
        assert record is not None and record.asset_materialization is not None
        return (record.asset_materialization.tags or {}).get(CODE_VERSION_TAG)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    config = tmp_path / "config.yaml"
    config.write_text("data: {ift_limit: 9}\n", encoding="utf-8")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Home(instance, config)


def test_a_result_is_recorded_with_the_settings_that_made_it_the_launchpad_s_included(home: Home) -> None:
    reads = STAGES["ift_dataset"]
    home.materialize()
    assert home.recorded() == reads.version(load_settings(home.config))
    home.materialize({"data": {"ift_limit": 5}})
    assert home.recorded() == reads.version(load_settings(home.config, {"data": {"ift_limit": 5}}))
    home.config.write_text("data: {ift_limit: 7}\n", encoding="utf-8")
    home.materialize()
    assert home.recorded() == reads.version(load_settings(home.config))


def test_a_file_that_changes_while_it_is_read_leaves_the_result_stale(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "ift.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}', encoding="utf-8")
    home.config.write_text(f"data: {{ift: {data}}}\n", encoding="utf-8")
    load = loaders.load_instructions

    def edited(settings: DataSettings) -> Any:
        loaded = load(settings)
        data.write_text('{"prompt": "a", "response": "another"}', encoding="utf-8")
        return loaded

    monkeypatch.setattr(loaders, "load_instructions", edited)
    home.materialize()
    assert home.recorded() != STAGES["ift_dataset"].version(load_settings(home.config))


def test_a_launchpad_s_overrides_decide_where_tables_go_too(home: Home, tmp_path: Path) -> None:
    home.materialize({"storage": str(tmp_path / "elsewhere"), "project": "other"})
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("ift_dataset.parquet")]
    assert found == ["elsewhere/other/tables/ift_dataset.parquet"]


def test_a_run_goes_on_with_the_settings_that_it_began_with_and_says_what_was_edited(home: Home) -> None:
    @dg.asset
    def editing() -> None:
        home.config.write_text("data: {ift_limit: 5, bad_rows: skip}\n", encoding="utf-8")

    @dg.asset(deps=[editing])
    def seen(context: dg.AssetExecutionContext, project: ProjectResource) -> dict[str, Any]:
        return {"ift_limit": project.settings.data.ift_limit, "edited": project.edited()}

    # Each step opens the resource anew, as steps do that are processes.
    @dg.asset(deps=[seen])
    def seen_by_another_process(context: dg.AssetExecutionContext) -> int | None:
        again = ProjectResource(config=str(home.config))
        frozen = frozen_settings(load_settings(again.config), context.run_id, context.instance)
        return frozen.data.ift_limit

    done = dg.materialize(
        [editing, seen, seen_by_another_process],
        instance=home.instance,
        resources={PROJECT: ProjectResource()},
        run_config={"resources": {PROJECT: {"config": {"config": str(home.config)}}}},
    )
    assert done.output_for_node("seen") == {"ift_limit": 9, "edited": ["data.bad_rows", "data.ift_limit"]}
    assert done.output_for_node("seen_by_another_process") == 9
    assert load_settings(home.config).data.ift_limit == 5


def test_a_run_that_is_executed_again_takes_the_settings_as_they_are_now(home: Home) -> None:
    first = home.materialize()
    record = home.instance.get_run_by_id(first.run_id)
    assert record is not None and any(tag.startswith(SETTINGS_TAG) for tag in record.tags)
    home.config.write_text("data: {ift_limit: 5}\n", encoding="utf-8")
    again = dg.materialize(
        [seed.ift_dataset],
        instance=home.instance,
        resources=dict(definitions.defs.resources or {}),
        run_config={"resources": {PROJECT: {"config": {"config": str(home.config)}}}},
        # As Dagster hands them on.
        tags=dict(record.tags),
    )
    assert len(again.output_for_node("ift_dataset")) == 5


def test_a_file_that_cannot_be_read_meanwhile_stops_nothing(home: Home) -> None:
    @dg.asset
    def editing(project: ProjectResource) -> list[str]:
        home.config.write_text("data: {ift_limit: [", encoding="utf-8")
        return project.edited()

    done = dg.materialize(
        [editing],
        resources={PROJECT: ProjectResource()},
        run_config={"resources": {PROJECT: {"config": {"config": str(home.config)}}}},
    )
    assert done.output_for_node("editing") == ["the configuration file, which cannot be read now"]
