"""How what assets make is shown and versioned: tables, models, checks."""

import base64
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from srlm_pipeline.models.checkpoint import Checkpoint

PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 160


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


def check(
    name: str, passed: bool, description: str, blocking: bool = False, **metadata: float | int | str
) -> dg.AssetCheckResult:
    """Return a check's verdict; a blocking one is an error, others warn."""
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=name, passed=bool(passed), severity=severity, description=description, metadata=metadata
    )
