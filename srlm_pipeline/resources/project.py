"""The project as a Dagster resource: settings, folders, engines, tracking and progress for assets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, PrivateAttr

from srlm_pipeline.archive import open_archive
from srlm_pipeline.config import Settings, changed_settings, load_settings
from srlm_pipeline.errors import ArchiveError, SettingsError
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import LogProgress, ProgressReporter, TeeProgress, terminal_progress
from srlm_pipeline.reads import STAGES
from srlm_pipeline.store import ProjectStore, open_store

if TYPE_CHECKING:
    from srlm_pipeline.generation.engine import TextEngine
    from srlm_pipeline.tracking import TrackedRun


# On every run: the settings that it began with. Tags with this beginning are not shown among the others.
SETTINGS_TAG = ".dagster/srlm_settings"
INTERRUPTED = "stopped by someone; re-execution, or `srlm run`, continues from what is finished"
# The resource's key among the definitions.
PROJECT = "project"


class InterruptedFailure(dg.Failure):
    """A step ended because someone asked the run to end; it is not tried again."""

    def __init__(self) -> None:
        super().__init__(description=INTERRUPTED, allow_retries=False)


class ProjectResource(dg.ConfigurableResource):
    """Everything an asset needs to know of the project; the launchpad can override any setting for one run."""

    config: str | None = Field(
        default=None, description="preset name or YAML file; default: the SRLM_CONFIG environment variable"
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="settings for this run only, e.g. {dpo: {beta: 0.2}}"
    )

    _settings: Settings | None = PrivateAttr(default=None)
    _configured: dict[str, Any] = PrivateAttr(default_factory=dict)
    _interrupted: bool = PrivateAttr(default=False)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Freeze the settings: whatever is edited while a run is in progress, all its steps use the same."""
        if context.run is None or context.instance is None:
            return
        # Not this resource's own: where the IO manager holds it, a launchpad's overrides do not arrive.
        self._configured = configured_for(context.run)
        self._settings = frozen_settings(self._load(), context.run.run_id, context.instance)

    @property
    def settings(self) -> Settings:
        """Validated settings of this run."""
        return self._settings or self._load()

    def edited(self) -> list[str]:
        """Return the settings that are others now than when the run began, as dotted keys."""
        try:
            return changed_settings(self.settings, self._load())
        except SettingsError:
            # Half-written, or wrong: the next run will say so.
            return ["the configuration file, which cannot be read now"]

    def _load(self) -> Settings:
        configured = {"config": self.config, "overrides": self.overrides} | self._configured
        return load_settings(configured["config"], configured["overrides"])

    @property
    def store(self) -> ProjectStore:
        """The project's folders."""
        return open_store(self.settings)

    def iteration_settings(self, iteration: int) -> Settings:
        """Settings of an iteration's work: a repeated attempt has a seed of its own."""
        settings = self.settings
        return open_store(settings).attempt(iteration).settings(settings)

    def progress(self, context: dg.AssetExecutionContext) -> ProgressReporter:
        """Progress as lines in the Dagster log, and as bars where a terminal shows them."""
        log = LogProgress(context.log.info)
        terminal = terminal_progress()
        return TeeProgress(log, terminal) if terminal else log

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let an interruption end the run.

        Dagster's retry policies take one for a failure and begin a second attempt, but leave a `Failure` alone. The
        other steps of the same process, which do not depend on this one, end with it.

        Raises:
            InterruptedFailure: In place of the interruption, and in whatever comes after it in this process.
        """
        if self._interrupted:
            raise InterruptedFailure
        try:
            yield
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            self._interrupted = True
            raise InterruptedFailure from error

    @contextmanager
    def archived(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Take what was lost here from the durable copy, and copy there what is finished in the end.

        What was finished before goes there with its records; finished replies also where the block fails.

        Raises:
            ArchiveConflictError: If another machine has written there meanwhile.
        """
        archive = open_archive(self.settings)
        if archive is None:
            yield
            return
        archive.fetch(warn, with_records=False)
        self.keep(warn, with_records=True)
        try:
            yield
        except Exception:
            self.keep(warn)
            raise
        self.keep(warn)

    def keep(self, warn: Callable[[str], None], with_records: bool = False) -> None:
        """Copy what is finished to the durable copy, if there is one; what cannot be copied now is copied later."""
        try:
            archive = open_archive(self.settings)
            if archive is not None:
                archive.push(with_records)
        except ArchiveError as error:
            warn(f"{error}. What is finished is here, and is copied there later")

    def engine(self, checkpoint: Checkpoint, batch_size: int) -> "TextEngine":
        """Load a checkpoint for inference."""
        from srlm_pipeline.generation.opening import open_engine

        return open_engine(checkpoint, self.settings, batch_size)

    @contextmanager
    def tracked(self, context: dg.AssetExecutionContext) -> "Iterator[TrackedRun]":
        """Open the MLflow run of this materialization; its parameters are the settings that the asset reads."""
        from srlm_pipeline.tracking import Tracker

        partition = context.partition_key if context.has_partition_key else None
        name = context.asset_key.to_user_string()
        keys = STAGES[name].all_keys(self.settings)
        with Tracker(self.settings).run(name, partition, context.run_id, keys) as run:
            yield run


def configured_for(run: dg.DagsterRun) -> dict[str, Any]:
    """Return this resource's configuration of a run, as the launchpad or the command line gave it."""
    found: Any = run.run_config
    for key in ("resources", PROJECT, "config"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def frozen_settings(current: Settings, run_id: str, instance: dg.DagsterInstance) -> Settings:
    """Return the settings that a run began with; its first step writes them down, for steps are processes.

    Args:
        current: What the settings are now.
        run_id: The run.
        instance: Where its tags are kept.
    """
    known = instance.get_run_by_id(run_id)
    if known is None:
        return current
    # A run that is executed again has the tags of the one that failed, and maybe other settings: that is why.
    own = f"{SETTINGS_TAG}/{run_id}"
    written = known.tags.get(own)
    if written is not None:
        return Settings.model_validate_json(written)
    instance.add_run_tags(run_id, {own: current.model_dump_json(exclude_defaults=True)})
    return current


@cache
def definition_settings() -> Settings:
    """Settings at the time the code location loads: partitions, schedule, owners and code versions follow them."""
    return load_settings()
