"""Tables between assets: Parquet, one file per asset and partition, checked against the declared schema."""

from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
import pandera.pandas as pa

from srlm_pipeline import tables
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.tables import read_table, write_table

if TYPE_CHECKING:
    from upath import UPath

SCHEMAS: dict[str, pa.DataFrameSchema] = {
    "ift_dataset": tables.INSTRUCTIONS,
    "ranked_replies": tables.RANKED_REPLIES,
    "eft_dataset": tables.EFT,
    "evaluation_prompts": tables.EVALUATION_PROMPTS,
    "seed_assessment": tables.VITAL_SIGNS,
    "seed_evaluation": tables.WIN_RATES,
    "generated_prompts": tables.GENERATED_PROMPTS,
    "candidates": tables.CANDIDATES,
    "judged_scores": tables.JUDGED_SCORES,
    "preference_pairs": tables.PREFERENCE_PAIRS,
    "assessment": tables.VITAL_SIGNS,
    "win_rates": tables.WIN_RATES,
    "collapse_monitors": tables.MONITORS,
}


class ParquetTables(dg.UPathIOManager):
    """Writes and reads tables atomically, each with the schema declared for its asset."""

    extension = ".parquet"

    def __init__(self, project: ProjectResource) -> None:
        from upath import UPath

        super().__init__(base_path=UPath(project.store.tables))
        self._project = project

    def dump_to_path(self, context: dg.OutputContext, obj: pd.DataFrame, path: "UPath") -> None:
        """Check and write a table."""
        from pathlib import Path

        write_table(obj, SCHEMAS[context.asset_key.path[-1]], Path(path))
        self._project.keep(context.log.warning)

    def load_from_path(self, context: dg.InputContext, path: "UPath") -> pd.DataFrame:
        """Read and check a table."""
        from pathlib import Path

        return read_table(SCHEMAS[context.asset_key.path[-1]], Path(path))


class TableIOManager(dg.ConfigurableIOManagerFactory):
    """Keeps tables under the project's folder."""

    project: dg.ResourceDependency[ProjectResource]

    def create_io_manager(self, context: dg.InitResourceContext) -> ParquetTables:
        """Build the manager for the project's folder."""
        return ParquetTables(self.project)


def constraint(check: pa.Check) -> str:
    """Return what a column's values have to be, in words: ``not blank``, ``0 to 5``, ``stop or length``."""
    limits = check.statistics or {}
    if {"min_value", "max_value"} <= limits.keys():
        least, most = limits["min_value"], limits["max_value"]
        if check.name == "in_range":
            return f"{least:g} to {most:g}"
    if check.name == "isin":
        return " or ".join(map(str, limits["allowed_values"]))
    words = {"greater_than_or_equal_to": "at least", "greater_than": "more than"}
    return f"{words[check.name]} {limits['min_value']:g}" if check.name in words else str(check.name or check.error)


def column_schema(schema: pa.DataFrameSchema) -> dg.TableSchema:
    """Return a table's declared schema as Dagster shows it."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name,
                type=str(column.dtype),
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable, other=[constraint(check) for check in column.checks]
                ),
            )
            for name, column in schema.columns.items()
        ]
    )
