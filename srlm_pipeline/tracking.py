"""MLflow: one experiment per project, one parent run with the curves, one child run per materialization.

The only module that imports mlflow, and only inside functions: importing it takes seconds.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd
from pydantic_core import to_jsonable_python

from srlm_pipeline import relocation
from srlm_pipeline.config import Settings
from srlm_pipeline.files import replacing_file, tidy
from srlm_pipeline.relocation import ARTIFACTS, DATABASE

CURVES_TAG = "srlm.curves"
ASSET_TAG = "srlm.asset"
SUPERSEDED_TAG = "srlm.superseded_by"
# By which MLflow's pages know that an experiment holds trainings, and open on its runs.
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
CHAMPION = "champion"
_SERVED_AT = "mlflow_address"
# MLflow's pages would open in the part that is for applications, where no figure of a training is to be seen.
_FOR_TRAINING = "?workflowType=machine_learning"
_NOTE_TAG = "mlflow.note.content"
_DEFAULT_UI = "http://127.0.0.1:5000"
_CURVES = (
    "Figures of all iterations, with the iteration as step: the model that it made, step 0 M1. **Model metrics** draws "
    "them, win rates first; **Artifacts** has the newest report. The runs below it are single stages."
)
_REGISTERED = (
    "M1 and every model that was decided on, with its model card. The alias `{champion}` is on the one that the next "
    "has to beat. Each version is a folder for `transformers`: `AutoModelForCausalLM.from_pretrained(version.source)`."
)
_PARAM_LIMIT = 500
_METRIC_LIMIT = 250
# Their experiments name no place for artefacts by themselves.
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PARAM_BATCH = 100


def tracking_uri(settings: Settings) -> str:
    """Return the store's address: MLFLOW_TRACKING_URI, the setting, or SQLite under DAGSTER_HOME."""
    named = _named_store(settings)
    return with_driver(named) if named else f"sqlite:///{_home() / DATABASE}"


def with_driver(address: str) -> str:
    """Name the driver in the address of a PostgreSQL database; any other is returned as it is.

    SQLAlchemy from 2.1 on would take psycopg 3, whose server-side parameters Dagster's NOTIFY statements do not bear.
    """
    return re.sub(r"^postgres(?:ql)?://", "postgresql+psycopg2://", address)


def artifact_location() -> str:
    """Return where artefacts go when the store is a database; absolute, for its default is the current folder."""
    return (_home() / ARTIFACTS).as_uri()


def is_local(settings: Settings) -> bool:
    """Whether the store is the one in the Dagster home, and no other was named."""
    return _named_store(settings) is None


def former_homes(settings: Settings) -> list[str]:
    """Return the homes that the store in this one still names; a store that was named belongs to no home.

    Raises:
        RecordError: If the store cannot be read.
    """
    return relocation.former_homes(_home()) if is_local(settings) else []


def follow_home(settings: Settings) -> None:
    """Let the addresses in the store lead into this home, where it was moved or copied; before anything is written.

    A store that there is not yet is made.

    Raises:
        RecordError: If the store cannot be read or written.
    """
    if is_local(settings):
        _make_store(_home())
        relocation.follow(_home())


def _make_store(home: Path) -> None:
    """Make the home's store under another name, and rename it: killed at its tables, MLflow could never go on.

    It makes them one after another, and takes those that are there for a fault.
    """
    target = home / DATABASE
    if target.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    home.mkdir(parents=True, exist_ok=True)
    folder = os.open(home, os.O_RDONLY)
    try:
        # One process at a time, until it has ended.
        fcntl.flock(folder, fcntl.LOCK_EX)
        tidy(home, everywhere=False)
        if not target.exists():
            with replacing_file(target) as temporary:
                SqlAlchemyStore(f"sqlite:///{temporary}", artifact_location()).engine.dispose()
    finally:
        os.close(folder)


def ui_url(settings: Settings) -> str:
    """Return where people open MLflow: the setting, or where `srlm ui` of this home served it last."""
    if settings.tracking.ui_url:
        return settings.tracking.ui_url.rstrip("/")
    try:
        return (_home() / _SERVED_AT).read_text(encoding="utf-8").strip() or _DEFAULT_UI
    except (OSError, UnicodeDecodeError):
        return _DEFAULT_UI


def remember_ui(address: str) -> None:
    """Keep where MLflow is served, so that the links of all later runs lead there, whoever starts them."""
    with replacing_file(_home() / _SERVED_AT) as temporary:
        temporary.write_text(address + "\n", encoding="utf-8")


def metric_name(name: str) -> str:
    """Return a figure's name with what MLflow takes: names of other people's models hold anything."""
    parts = re.sub(r"[^\w /.:-]", "-", name).split("/")
    # A part that a path would leave out, or that leads out of it, is no name.
    return "/".join(re.sub(r"^\.{0,2}$", "-", part) for part in parts)[:_METRIC_LIMIT].rstrip("/")


@dataclass(frozen=True)
class TrackedRun:
    """An open child run.

    Attributes:
        run_id: MLflow's.
        url: Page in the MLflow UI.
    """

    run_id: str
    url: str
    _tracker: Tracker

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Log figures of this run; those that are None are left out."""
        for name, value in values.items():
            if value is not None:
                self._tracker.client.log_metric(self.run_id, metric_name(name), float(value), step=step or 0)

    def curve(self, values: Mapping[str, float | None], iteration: int) -> None:
        """Log figures to this run and to the project's curves, with the iteration as step."""
        self.metrics(values, step=iteration)
        for name, value in values.items():
            if value is not None:
                self._tracker.client.log_metric(
                    self._tracker.curves_run, metric_name(name), float(value), step=iteration
                )

    def text(self, content: str, name: str, of_project: bool = False) -> None:
        """Store a text as an artefact, of this run or of the one with the project's curves."""
        self._tracker.client.log_text(self._tracker.curves_run if of_project else self.run_id, content, name)

    def reads(self, name: str, digest: str, source: Path, table: pd.DataFrame, context: str) -> None:
        """Show a table among the data sets that this run was made from.

        Args:
            name: Of the asset, with its partition.
            digest: Of its content.
            source: Its file.
            table: It.
            context: What it is read for, in a word.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": str(n), "type": _column_type(table[n]), "required": False} for n in table.columns]
        dataset = Dataset(
            name,
            digest,
            "local",
            json.dumps({"uri": source.as_uri()}),
            json.dumps({"mlflow_colspec": columns}),
            json.dumps({"num_rows": len(table), "num_elements": int(table.size)}),
        )
        self._tracker.client.log_inputs(
            self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        )

    def project_settings(self, settings: Settings) -> None:
        """Show all settings as parameters of the run with the curves; those that changed since keep their first value.

        A parameter can be set once: what a later iteration was made with stands with its own runs.
        """
        from mlflow.entities import Param

        known = self._tracker.client.get_run(self._tracker.curves_run).data.params
        # Addresses may hold a password.
        told = dict(_flat("", settings.model_dump(mode="json", exclude={"tracking", "archive"})))
        new = [Param(name, value) for name, value in told.items() if name not in known]
        for start in range(0, len(new), _PARAM_BATCH):
            self._tracker.client.log_batch(self._tracker.curves_run, params=new[start : start + _PARAM_BATCH])

    def table(self, content: pd.DataFrame, name: str) -> None:
        """Store a table as an artefact that MLflow shows as one; `name` ends in ``.json``."""
        self._tracker.client.log_table(self.run_id, content, name)

    def artifact_url(self, name: str) -> str:
        """Return an artefact's page in the MLflow UI."""
        return self._tracker.run_url(self.run_id, f"/artifacts/{name}")

    def history(self, entries: list[dict[str, float]]) -> None:
        """Log a trainer's history, one point per logged step."""
        from mlflow.entities import Metric

        points = [
            Metric(metric_name(f"train/{name}"), float(value), 0, int(entry.get("step", place)))
            for place, entry in enumerate(entries)
            for name, value in entry.items()
            if name not in {"step", "epoch"}
        ]
        for start in range(0, len(points), _PARAM_LIMIT):
            self._tracker.client.log_batch(self.run_id, metrics=points[start : start + _PARAM_LIMIT])


class Tracker:
    """A project's place in MLflow.

    Args:
        settings: Project name, address and all parameters to be recorded.
    """

    def __init__(self, settings: Settings) -> None:
        from mlflow import MlflowClient

        self._settings = settings
        follow_home(settings)
        uri = tracking_uri(settings)
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment_id = self._experiment(local=uri.startswith(_DATABASES))
        self.curves_run = self._curves_run()

    @contextmanager
    def run(self, asset: str, partition: str | None, dagster_run_id: str, keys: Sequence[str]) -> Iterator[TrackedRun]:
        """Open a fresh child run for one materialization; an earlier one of the same asset is marked superseded.

        One that is still running was left by a process that was killed, for no two make the same asset at a time: it
        is ended.

        Args:
            asset: Asset name.
            partition: Its partition, if any.
            dagster_run_id: Recorded as a tag.
            keys: Dotted paths of the settings, sections or fields, that go into the parameters.
        """
        key = f"{asset}[{partition}]" if partition else asset
        self._end_what_was_killed(key)
        created = self.client.create_run(
            self.experiment_id,
            run_name=key,
            tags={
                "mlflow.parentRunId": self.curves_run,
                ASSET_TAG: key,
                "dagster.run_id": dagster_run_id,
                **({"srlm.iteration": partition} if partition else {}),
            },
        )
        run_id = created.info.run_id
        for name, value in parameters(self._settings, keys).items():
            self.client.log_param(run_id, name, value)
        try:
            yield TrackedRun(run_id, self.run_url(run_id), self)
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        self._supersede(key, run_id)
        self.client.set_terminated(run_id, "FINISHED")

    def run_url(self, run_id: str, page: str = "") -> str:
        """Return a run's page in the MLflow UI, or one of those below it."""
        return f"{ui_url(self._settings)}/#/experiments/{self.experiment_id}/runs/{run_id}{page}{_FOR_TRAINING}"

    def register(
        self, name: str, source: Path, run_id: str | None, tags: Mapping[str, str], card: str, champion: bool
    ) -> str:
        """Register a model folder as a version; move the alias `champion` to it if asked.

        Args:
            name: Of the registered model.
            source: The folder.
            run_id: Run that made it; None where that was lost.
            tags: Of the version.
            card: What is said of it, as Markdown.
            champion: Whether it is.

        Returns:
            The version.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException:
            self.client.create_registered_model(name, description=_REGISTERED.format(champion=CHAMPION))
        _write_signature(source)
        version = self.client.create_model_version(
            name, source=source.as_uri(), run_id=run_id, tags=dict(tags), description=card
        )
        if champion:
            self.client.set_registered_model_alias(name, CHAMPION, version.version)
        return str(version.version)

    def registered(self, name: str) -> set[str]:
        """Return the digests of the models that are registered."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        return {version.tags["digest"] for version in versions if "digest" in version.tags}

    def sources(self, name: str) -> set[Path]:
        """Return the folders that versions of a registered model lead to."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        return {Path(url2pathname(urlsplit(str(version.source)).path)) for version in versions}

    def champion(self, name: str) -> Mapping[str, str] | None:
        """Return the tags of the champion's version, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_model_version_by_alias(name, CHAMPION).tags)
        except MlflowException:
            return None

    def _experiment(self, local: bool) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self._settings.project)
        if found is not None:
            if _KIND_TAG not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, _KIND_TAG, _KIND)
            return str(found.experiment_id)
        location = f"{artifact_location()}/{self._settings.project}" if local else None
        try:
            return str(
                self.client.create_experiment(
                    self._settings.project, artifact_location=location, tags={_KIND_TAG: _KIND}
                )
            )
        except MlflowException:
            # Another process was first.
            found = self.client.get_experiment_by_name(self._settings.project)
            if found is None:
                raise
            return str(found.experiment_id)

    def _curves_run(self) -> str:
        found = self.client.search_runs([self.experiment_id], f"tags.`{CURVES_TAG}` = 'true'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        created = self.client.create_run(
            self.experiment_id,
            run_name=f"{self._settings.project}: all iterations",
            tags={CURVES_TAG: "true", _NOTE_TAG: _CURVES},
        )
        # It takes figures for as long as the project lives, and never runs.
        self.client.set_terminated(created.info.run_id, "FINISHED")
        return str(created.info.run_id)

    def _end_what_was_killed(self, key: str) -> None:
        mine = f"tags.`{ASSET_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], mine):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _supersede(self, key: str, run_id: str) -> None:
        for run in self.client.search_runs([self.experiment_id], f"tags.`{ASSET_TAG}` = '{key}'"):
            if run.info.run_id != run_id and SUPERSEDED_TAG not in run.data.tags:
                self.client.set_tag(run.info.run_id, SUPERSEDED_TAG, run_id)


def parameters(settings: Settings, keys: Sequence[str]) -> dict[str, Any]:
    """Return settings as parameters of an MLflow run, by their dotted names.

    Args:
        settings: All.
        keys: Dotted paths of sections, fields, or what follows from these.
    """
    flat: dict[str, Any] = {"base_model": settings.base_model, "seed": settings.seed}
    for key in keys:
        flat.update(_flat(key, to_jsonable_python(functools.reduce(getattr, key.split("."), settings))))
    return flat


def _column_type(column: pd.Series) -> str:
    return {"i": "long", "u": "long", "f": "double", "b": "boolean"}.get(getattr(column.dtype, "kind", "O"), "string")


def _write_signature(folder: Path) -> None:
    """Say beside a model what goes in and what comes out, where MLflow's pages look for it."""
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.types import ColSpec, DataType, Schema

    texts = (Schema([ColSpec(DataType.string, name)]) for name in ("prompt", "reply"))
    with replacing_file(folder / MLMODEL_FILE_NAME) as temporary:
        Model(signature=ModelSignature(*texts)).save(str(temporary))


def _named_store(settings: Settings) -> str | None:
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking.tracking_uri or None


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings by their dotted names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, str(value)[:_PARAM_LIMIT]


def _home() -> Path:
    return Path(os.environ.get("DAGSTER_HOME") or "dagster_home").resolve()
