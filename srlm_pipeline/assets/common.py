"""What all assets share: how they are declared, how they show themselves, how a user's mistake is reported."""

import base64
import functools
import hashlib
import inspect
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from srlm_pipeline.errors import SrlmError
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.reads import STAGES, Reads
from srlm_pipeline.resources.project import ProjectResource, definition_settings
from srlm_pipeline.resources.table_io import SCHEMAS, column_schema
from srlm_pipeline.store import partition_key

ACCELERATOR_POOL = "accelerator"
# On a run that does an iteration again after its model was refused: the number of the attempt.
ATTEMPT_TAG = "srlm/attempt"
CODE_VERSION_TAG = "dagster/code_version"
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 160

iterations = dg.StaticPartitionsDefinition(
    [partition_key(t) for t in range(1, definition_settings().schedule.planned_iterations + 1)]
)
retry_training = dg.RetryPolicy(max_retries=1, delay=10)


def srlm_asset(
    reads: Reads,
    *,
    group: str,
    kinds: set[str],
    compute: bool = True,
    retries: bool = False,
    per_iteration: bool = False,
    **more: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.asset` with the conventions of this project.

    Args:
        reads: What the asset reads beside its inputs; its code version changes with it, so that a changed judge marks
            scores and all below as stale, and nothing above.
        group: ``seed`` or ``iteration``.
        kinds: Shown as icons.
        compute: Whether it occupies the accelerator.
        retries: Whether a crash is worth a second try from the last checkpoint.
        per_iteration: Whether it is partitioned by iteration.
        more: Passed on to `dg.asset`.
    """
    settings = definition_settings()

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        name = function.__name__
        STAGES[name] = reads

        @functools.wraps(function)
        def reporting(context: dg.AssetExecutionContext, project: ProjectResource, **inputs: Any) -> Any:
            watch = Stopwatch()
            warn_of_edits(context, project)
            # Of this run's settings, which may be others than those of the code location; and of the files as they are
            # now: one that changes meanwhile leaves the result stale.
            version = reads.version(project.settings)
            with user_errors():
                result = function(context, project, **inputs)
            metadata = {"seconds": round(watch.seconds, 2), **result.metadata}
            return result._replace(metadata=metadata, tags={CODE_VERSION_TAG: version})

        # Dagster takes an annotated result with check specs for one without a value.
        signature = inspect.signature(function)
        reporting.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)  # type: ignore[attr-defined]
        reporting.__annotations__ = {k: v for k, v in function.__annotations__.items() if k != "return"}
        schema = SCHEMAS.get(name)
        return dg.asset(
            group_name=group,
            kinds=kinds,
            owners=list(settings.owners),
            code_version=reads.version(settings),
            pool=ACCELERATOR_POOL if compute else None,
            retry_policy=retry_training if retries else None,
            partitions_def=iterations if per_iteration else None,
            metadata={
                "settings": ", ".join(reads.all_keys(settings)) or "none",
                **({"dagster/column_schema": column_schema(schema)} if schema is not None else {}),
            },
            **more,
        )(reporting)

    return decorate


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


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed so far."""
        return time.monotonic() - self._start


def table_result(
    table: pd.DataFrame,
    metadata: Mapping[str, Any],
    checks: list[dg.AssetCheckResult] | None = None,
    preview: list[str] | None = None,
) -> dg.MaterializeResult[pd.DataFrame]:
    """Return a table as an asset's value, with its row count, preview and content as data version."""
    return dg.MaterializeResult(
        value=table,
        metadata={"dagster/row_count": len(table), **metadata, "preview": preview_table(table, preview)},
        check_results=checks or [],
        data_version=dg.DataVersion(table_digest(table)),
    )


def model_result(
    checkpoint: Checkpoint, metadata: Mapping[str, Any], checks: list[dg.AssetCheckResult] | None = None
) -> dg.MaterializeResult:
    """Return a trained model as path and digest; weights never pass through an IO manager."""
    return dg.MaterializeResult(
        metadata={
            "model": checkpoint.name,
            "path": dg.MetadataValue.path(str(checkpoint.path)),
            "digest": checkpoint.digest,
            "trained_from": checkpoint.parent or "",
            **metadata,
        },
        check_results=checks or [],
        data_version=dg.DataVersion(checkpoint.digest),
    )


def table_digest(table: pd.DataFrame) -> str:
    """Return sixteen hex digits over a table's content."""
    content = table.to_csv(index=False, float_format="%.9g").encode()
    return hashlib.sha256(content).hexdigest()[:16]


def preview_table(table: pd.DataFrame, columns: list[str] | None = None) -> dg.TableMetadataValue:
    """Return the first rows, long texts cut, as the UI shows them inline."""

    def short(value: Any) -> str | float | int:
        if isinstance(value, float | np.floating):
            return round(float(value), 3)
        if isinstance(value, int | np.integer):
            return int(value)
        text = "" if value is None else str(value)
        return text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + "\u2026"

    shown = table[columns or list(table.columns)].head(PREVIEW_ROWS)
    records = [dg.TableRecord({str(k): short(v) for k, v in row.items()}) for row in shown.to_dict("records")]
    schema = dg.TableSchema(columns=[dg.TableColumn(str(name)) for name in shown.columns])
    return dg.MetadataValue.table(records=records, schema=schema)


def histogram(values: pd.Series, title: str) -> dg.MarkdownMetadataValue:
    """Return a score histogram as an inline image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(values.dropna(), bins=[x / 4 for x in range(21)], color="#4f6bed", edgecolor="white")
    axes.set(xlabel="score", ylabel="replies", title=title, xlim=(0, 5))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{encoded})")


def speed(n_done: int, seconds: float) -> float | None:
    """Return how much a stage did per second; None if everything was finished before."""
    return round(n_done / max(seconds, 1e-9), 2) if n_done else None


def mlflow_link(url: str) -> dict[str, dg.UrlMetadataValue]:
    """Return the link to the MLflow run."""
    return {"mlflow_run": dg.MetadataValue.url(url)}


def check(
    name: str, passed: bool, description: str, blocking: bool = False, **metadata: float | int | str
) -> dg.AssetCheckResult:
    """Return a check's verdict; a blocking one is an error, others warn."""
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=name, passed=bool(passed), severity=severity, description=description, metadata=metadata
    )
