"""Where the Dagster instance lives: DAGSTER_HOME, or `dagster_home` here or in a folder above."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from srlm_pipeline.errors import HomeError
from srlm_pipeline.files import replacing_file


def prepare_home() -> Path:
    """Set DAGSTER_HOME for this process and its children; the folder and its dagster.yaml are made if missing.

    Raises:
        HomeError: If the folder's path cannot be part of a database's address.
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
        with replacing_file(settings) as temporary:
            temporary.write_text(text, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home)
    return home


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
