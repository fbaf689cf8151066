"""Where the Dagster instance lives: DAGSTER_HOME, or `dagster_home` here or in a folder above."""

from __future__ import annotations

import os
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from srlm_pipeline.errors import HomeError
from srlm_pipeline.files import replacing_file
from srlm_pipeline.tracking import with_driver

# Address of the PostgreSQL database that holds Dagster's records; it may hold a password, so no file does.
DATABASE_VARIABLE = "SRLM_DAGSTER_DATABASE"
_ON_POSTGRESQL = f"""
storage:
  postgres:
    postgres_url:
      env: {DATABASE_VARIABLE}
"""


def prepare_home() -> Path:
    """Set DAGSTER_HOME for this process and its children; the folder and its dagster.yaml are made if missing.

    Raises:
        HomeError: If the folder's path cannot be part of a database's address, or its records are in another database
            than the environment says.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named).expanduser().resolve() if named else _nearest()
    # Dagster and MLflow keep SQLite files there, and name them by addresses.
    special = sorted(set(str(home)) & set("#?%"))
    if special:
        raise HomeError(home, f"a path with {' and '.join(special)} cannot be used; choose another folder")
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        text = resources.files("srlm_pipeline.resources").joinpath("dagster.yaml").read_text("utf-8")
        if os.environ.get(DATABASE_VARIABLE):
            text = text.replace("SQLite in this folder", "PostgreSQL") + _ON_POSTGRESQL
        with replacing_file(settings) as temporary:
            temporary.write_text(text, encoding="utf-8")
    _require_database(home, settings.read_text(encoding="utf-8"))
    os.environ["DAGSTER_HOME"] = str(home)
    if DATABASE_VARIABLE in os.environ:
        os.environ[DATABASE_VARIABLE] = with_driver(os.environ[DATABASE_VARIABLE])
    return home


def _require_database(home: Path, settings: str) -> None:
    """Refuse to begin new records beside those that there are."""
    named, written = bool(os.environ.get(DATABASE_VARIABLE)), DATABASE_VARIABLE in settings
    if written and not named:
        raise HomeError(home, f"keeps its records in the database that {DATABASE_VARIABLE} names; set it")
    if named and not written:
        raise HomeError(
            home,
            f"keeps its records in files by its dagster.yaml, and {DATABASE_VARIABLE} names a database; unset it, or "
            f"choose another folder, or add to dagster.yaml and begin anew there:\n{_ON_POSTGRESQL.rstrip()}",
        )
    if written and not find_spec("dagster_postgres"):
        raise HomeError(home, "needs the package dagster-postgres: run `pip install 'srlm_pipeline[postgres]'`")


def require_writable() -> None:
    """Refuse to open Dagster's records, which are written to even to be read, where that cannot be done.

    Raises:
        HomeError: If the home is read-only.
    """
    home = Path(os.environ["DAGSTER_HOME"])
    if not os.access(home, os.W_OK):
        raise HomeError(home, "cannot be written to; make it writable for this user, or choose another folder")


def _nearest() -> Path:
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dagster_home" / "dagster.yaml").is_file():
            return folder / "dagster_home"
    return here / "dagster_home"
