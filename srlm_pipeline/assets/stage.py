"""The frame of an asset: what all of them work with, how they are declared, how a user's mistake is reported.

An asset is a function of its `Stage` and of its inputs. The frame opens its MLflow run, times it, prunes its journals
when it is done, and records what it was made with.
"""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.columns import column_lineage
from srlm_pipeline.assets.pods import pod_tags
from srlm_pipeline.assets.results import table_digest
from srlm_pipeline.assets.short import in_short
from srlm_pipeline.assets.work import drop_recorded_work
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.files import disk_trouble
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.lock import if_nobody_is_at_work, shared_use
from srlm_pipeline.notices import Notice, tell
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.reads import STAGES, Reads
from srlm_pipeline.resources.project import ProjectResource, definition_settings
from srlm_pipeline.resources.table_io import SCHEMAS, column_schema
from srlm_pipeline.store import ProjectStore, iteration_number, partition_key

if TYPE_CHECKING:
    from srlm_pipeline.generation.opening import OpenEngine
    from srlm_pipeline.tracking import TrackedRun

ACCELERATOR_POOL = "accelerator"
# On a run that does an iteration again after its model was refused: the number of the attempt.
ATTEMPT_TAG = "srlm/attempt"
CODE_VERSION_TAG = "dagster/code_version"

iterations = dg.StaticPartitionsDefinition(
    [partition_key(t) for t in range(1, definition_settings().schedule.planned_iterations + 1)]
)
retry_training = dg.RetryPolicy(max_retries=1, delay=10)


class Stage:
    """An asset while it is materialized.

    Args:
        context: Dagster's.
        project: The project as a resource.
        run: The MLflow run of this materialization; None for an asset that is not tracked.

    Attributes:
        iteration: From 1; 0 for what belongs to no iteration.
    """

    def __init__(self, context: dg.AssetExecutionContext, project: ProjectResource, run: TrackedRun | None) -> None:
        self.context, self.project, self._run = context, project, run
        self.iteration = iteration_number(context.partition_key) if context.has_partition_key else 0
        self._started = time.monotonic()
        self._journals: list[Journal] = []
        self._notices: list[Notice] = []

    @property
    def name(self) -> str:
        """Of the asset."""
        return self.context.asset_key.to_user_string()

    @property
    def partition(self) -> str:
        """Key of the iteration."""
        return self.context.partition_key

    @cached_property
    def settings(self) -> Settings:
        """Of this run."""
        return self.project.settings

    @property
    def own_settings(self) -> Settings:
        """The same for what an iteration draws: a repeated attempt has a seed of its own."""
        return self.project.iteration_settings(self.iteration)

    @cached_property
    def store(self) -> ProjectStore:
        """The project's folders."""
        return self.project.store

    @cached_property
    def progress(self) -> ProgressReporter:
        """Where progress is shown."""
        return self.project.progress(self.context)

    @property
    def engine(self) -> OpenEngine:
        """Loads a checkpoint for inference."""
        return self.project.engine

    @property
    def log(self) -> Any:
        """Dagster's log of the run."""
        return self.context.log

    @property
    def seconds(self) -> float:
        """Elapsed so far."""
        return time.monotonic() - self._started

    @property
    def run(self) -> TrackedRun:
        """The MLflow run of this materialization."""
        assert self._run is not None, "an asset that is not tracked has no run"
        return self._run

    def journal(self, name: str) -> Journal:
        """Open a journal, which is pruned when the stage is done: what nobody asked for any more goes."""
        journal = Journal(self.store.journal_folder(name))
        self._journals.append(journal)
        return journal

    def show_inputs(self, inputs: Mapping[str, Any], context: str) -> None:
        """Show the tables that the stage is given in MLflow.

        Args:
            inputs: By asset.
            context: What they are read for, in a word.
        """
        for asset, table in inputs.items():
            if isinstance(table, pd.DataFrame):
                own = self.store.table_path(asset, self.iteration)
                by_iteration = self.iteration > 0 and own.is_file()
                name, path = (
                    (f"{asset}[{self.partition}]", own) if by_iteration else (asset, self.store.table_path(asset))
                )
                self.run.reads(name, table_digest(table), path, table, context)

    def curve(self, values: Mapping[str, float | None]) -> None:
        """Log figures with the iteration as step; those that are None are left out."""
        self.run.curve(values, self.iteration)

    def notify(self, notice: Notice) -> None:
        """Tell people when the stage is done, where there are addresses: a server that does not answer takes long."""
        self._notices.append(notice)

    def speed(self, n_done: int) -> float | None:
        """Return how much was done per second; None if everything was finished before."""
        return round(n_done / max(self.seconds, 1e-9), 2) if n_done else None

    def end(self) -> None:
        """Leave nothing behind that is not needed any more, and tell people what there is to tell."""
        for journal in self._journals:
            journal.prune()
        if self._run is not None:
            self._run.metrics({"seconds": self.seconds})
        for notice in self._notices:
            tell(notice, self.settings, self.store, self.log.warning)


def srlm_asset(
    reads: Reads,
    *,
    group: str,
    kinds: set[str],
    compute: bool = True,
    tracked: bool = True,
    retries: bool = False,
    per_iteration: bool = False,
    **more: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.asset` with the conventions of this project, for a function of a `Stage` and of inputs.

    Args:
        reads: What the asset reads beside its inputs; its code version changes with it, so that a changed judge marks
            scores and all below as stale, and nothing above.
        group: ``seed`` or ``iteration``.
        kinds: Shown as icons.
        compute: Whether it occupies the accelerator.
        tracked: Whether it has an MLflow run.
        retries: Whether a crash is worth a second try from the last checkpoint.
        per_iteration: Whether it is partitioned by iteration.
        more: Passed on to `dg.asset`.
    """
    settings = definition_settings()

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        name = function.__name__
        STAGES[name] = reads
        lineage = column_lineage(name)

        @functools.wraps(function)
        def framed(context: dg.AssetExecutionContext, project: ProjectResource, **inputs: Any) -> Any:
            warn_of_edits(context, project)
            # Of this run's settings, which may be others than those of the code location; and of the files as they are
            # now: one that changes meanwhile leaves the result stale.
            version = reads.version(project.settings)
            home = Path(context.instance.root_directory)
            with user_errors():
                if_nobody_is_at_work(home, project.store.tidy)
            with (
                user_errors(),
                shared_use(home),
                project.interruptible(),
                project.archived(context.log.warning),
                project.tracked(context) if tracked else nullcontext() as run,
            ):
                stage = Stage(context, project, run)
                drop_recorded_work(context.instance, stage.store)
                if run is not None:
                    stage.show_inputs(inputs, "training" if retries else "input")
                result = function(stage, **inputs)
                stage.end()
            known: dict[str, Any] = {"seconds": round(stage.seconds, 2)}
            if lineage is not None:
                known["dagster/column_lineage"] = lineage
            if run is not None:
                known["mlflow_run"] = dg.MetadataValue.url(run.url)
            short = in_short(name, result.metadata)
            first = {} if short is None else {"in_short": short}
            return result._replace(metadata={**first, **result.metadata, **known}, tags={CODE_VERSION_TAG: version})

        _, *inputs = inspect.signature(function).parameters.values()
        given = {"context": dg.AssetExecutionContext, "project": ProjectResource}
        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(n, either, annotation=a) for n, a in given.items()]
        # Without what it returns: Dagster takes an annotated result with check specs for one without a value.
        framed.__signature__ = inspect.Signature([*parameters, *inputs])  # type: ignore[attr-defined]
        framed.__annotations__ = given | {i.name: i.annotation for i in inputs}
        schema = SCHEMAS.get(name)
        if per_iteration and "check_specs" in more:
            more["check_specs"] = [_by_iteration(spec) for spec in more["check_specs"]]
        return dg.asset(
            group_name=group,
            kinds=kinds,
            owners=list(settings.owners),
            tags={"project": settings.project, "part": group, "needs": "accelerator" if compute else "little"},
            code_version=reads.version(settings),
            pool=ACCELERATOR_POOL if compute else None,
            op_tags=pod_tags(settings.resources.get(name)),
            retry_policy=retry_training if retries else None,
            partitions_def=iterations if per_iteration else None,
            metadata={
                "settings": ", ".join(reads.all_keys(settings)) or "none",
                **({"dagster/column_schema": column_schema(schema)} if schema is not None else {}),
            },
            **more,
        )(framed)

    return decorate


def _by_iteration(spec: dg.AssetCheckSpec) -> dg.AssetCheckSpec:
    """Return a check whose verdicts are kept by partition, so that each iteration's are seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            spec.name,
            asset=spec.asset_key,
            description=spec.description,
            blocking=spec.blocking,
            partitions_def=iterations,
        )


def warn_of_edits(context: dg.AssetExecutionContext, project: ProjectResource) -> None:
    """Say which settings were edited since the run began: it goes on with those that it began with."""
    edited = project.edited()
    if edited:
        context.log.warning(
            f"edited since this run began, and not used by it: {', '.join(edited)}; materialize again when it is done"
        )


@contextmanager
def user_errors() -> Iterator[None]:
    """Report what a user can mend as a failure in plain words, which a retry would not help."""
    try:
        yield
    except SrlmError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        raise dg.Failure(description=trouble, allow_retries=False) from error
