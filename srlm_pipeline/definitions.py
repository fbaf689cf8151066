"""The code location: every asset, job, schedule and resource, and nothing else."""

import dagster as dg

from srlm_pipeline.assets import (
    assessment,
    baselines,
    entering,
    evaluation,
    monitoring,
    promotion,
    reports,
    seed,
    self_instruction,
    training,
)
from srlm_pipeline.assets.automation import (
    continue_to_planned,
    iteration_job,
    nightly_iteration,
    seed_job,
    tell_of_failures,
)
from srlm_pipeline.assets.baselines import baselines_job
from srlm_pipeline.assets.pods import step_executor
from srlm_pipeline.resources.project import PROJECT, ProjectResource
from srlm_pipeline.resources.table_io import TableIOManager

project = ProjectResource()

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(
        [seed, entering, self_instruction, training, assessment, evaluation, monitoring, promotion, reports, baselines]
    ),
    jobs=[seed_job, iteration_job, baselines_job],
    schedules=[nightly_iteration],
    sensors=[continue_to_planned, tell_of_failures],
    resources={PROJECT: project, "io_manager": TableIOManager(project=project)},
    executor=step_executor(),
)
