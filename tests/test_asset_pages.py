"""What asset pages in Dagster show first: a sentence, constraints in words, where columns come from, verdicts."""

import dagster as dg
import pytest

from srlm_pipeline.assets.columns import SOURCES, column_lineage
from srlm_pipeline.assets.short import in_short
from srlm_pipeline.assets.stage import iterations
from srlm_pipeline.commands.launch import shown_in_timeline
from srlm_pipeline.definitions import defs
from srlm_pipeline.resources.table_io import SCHEMAS, column_schema

GRAPH = defs.resolve_asset_graph()


def test_constraints_say_what_a_value_has_to_be() -> None:
    columns = {column.name: column.constraints.other for column in column_schema(SCHEMAS["judged_scores"]).columns}
    assert columns["prompt"] == ["not blank"]
    assert columns["score"] == ["0 to 5"]
    assert columns["sample"] == ["at least 0"]
    assert columns["finish_reason"] == ["stop or length"]


def test_every_column_comes_from_one_that_exists_above() -> None:
    for asset, columns in SOURCES.items():
        above = {key.to_user_string() for key in GRAPH.get(dg.AssetKey(asset)).parent_keys}
        assert columns.keys() <= SCHEMAS[asset].columns.keys()
        for sources in columns.values():
            for upstream, column in sources:
                assert column in SCHEMAS[upstream].columns
                assert upstream in above
    lineage = column_lineage("preference_pairs")
    assert lineage is not None
    assert lineage.deps_by_column["margin"] == [dg.TableColumnDep("judged_scores", "score")]
    assert column_lineage("promotion") is None


def test_checks_of_an_iteration_are_kept_by_iteration_and_say_what_they_ask() -> None:
    for key in GRAPH.get_all_asset_keys():
        node = GRAPH.get(key)
        for spec in map(GRAPH.get_check_spec, node.check_keys if node.partitions_def else ()):
            assert spec.partitions_def == iterations, spec.name
            assert spec.description, spec.name
    assert dg.AssetCheckKey(dg.AssetKey("promotion"), "promoted") in GRAPH.get(dg.AssetKey("promotion")).check_keys


@pytest.mark.parametrize(
    ("asset", "metadata", "told"),
    [
        (
            "preference_pairs",
            {"pairs_kept": 24, "prompts": 30, "ties_dropped": 6, "mean_margin": dg.MetadataValue.float(1.234)},
            "24 pairs from 30 prompts, 6 ties, mean margin 1.23",
        ),
        ("preference_pairs", {"pairs_kept": 24}, None),
        ("seed_model", {"model": "M1"}, "M1 is trained"),
        ("judged_scores", {"dagster/row_count": 8, "mean_score": None, "parse_rate": 0.5}, None),
        ("rlhf_model", {"model": "rlhf_model"}, None),
    ],
)
def test_the_first_sentence_is_told_where_its_figures_are_known(
    asset: str, metadata: dict[str, object], told: str | None
) -> None:
    assert in_short(asset, metadata) == told


def test_a_run_of_the_command_line_is_filed_under_its_job() -> None:
    job = defs.resolve_job_def("seed")
    with dg.instance_for_test() as instance:
        with shown_in_timeline(instance, "seed"):
            run = instance.create_run_for_job(job)
        plain = instance.create_run_for_job(job)
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.job_name == "seed"
    assert run.remote_job_origin.repository_origin.get_label() == "__repository__@srlm_pipeline.definitions"
    assert plain.remote_job_origin is None
