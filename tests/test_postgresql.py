"""Dagster's records and MLflow's store on a real PostgreSQL, which is started for the test."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import pytest
from processes import write_configuration
from sqlalchemy import create_engine, inspect, text

from srlm_pipeline.commands.home import DATABASE_VARIABLE, prepare_home
from srlm_pipeline.errors import HomeError
from srlm_pipeline.tracking import with_driver

# Debian keeps them out of the path.
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/no/initdb").parent]
SERVER = pytest.mark.skipif(
    not (BINARIES[-1] / "initdb").is_file() or not find_spec("dagster_postgres"),
    reason="needs PostgreSQL (Debian: postgresql) and srlm_pipeline[postgres]",
)
# PostgreSQL refuses to run for root.
USER = "nobody" if os.geteuid() == 0 else None


@pytest.fixture
def databases() -> Iterator[dict[str, str]]:
    """Two empty databases, as the environment names them."""
    folder = Path(tempfile.mkdtemp(prefix="srlm-postgresql-"))
    if USER:
        shutil.chown(folder, USER)

    def call(program: str, *words: str) -> None:
        subprocess.run([BINARIES[-1] / program, *words], user=USER, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    call("initdb", "-D", "data", "-U", "srlm", "--auth=trust", "--no-sync", "--no-instructions")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")
    try:
        for name in ("dagster", "mlflow"):
            call("createdb", "-h", "127.0.0.1", "-p", port, "-U", "srlm", name)
        address = f"postgresql://srlm:not-secret@127.0.0.1:{port}"
        yield {DATABASE_VARIABLE: f"{address}/dagster", "MLFLOW_TRACKING_URI": f"{address}/mlflow"}
    finally:
        call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@SERVER
@pytest.mark.slow
def test_a_seed_and_an_iteration_keep_their_records_in_the_databases(
    databases: dict[str, str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, address in databases.items():
        monkeypatch.setenv(name, address)
    home = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("SRLM_CONFIG", str(write_configuration(tmp_path, tiny_model)))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for expected in ("iteration iter_001: done", "iteration iter_001: everything is up to date"):
        ran = subprocess.run(
            [sys.executable, "-m", "srlm_pipeline.cli", "run", "-n", "1"], cwd=tmp_path, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert expected in ran.stdout
    assert not list(home.rglob("*.db")), "nothing is left to files"
    assert "not-secret" not in (home / "dagster.yaml").read_text()
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        assert len(instance.get_materialized_partitions(dg.AssetKey("promotion"))) == 1
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
    store = create_engine(with_driver(databases["MLFLOW_TRACKING_URI"]))
    assert "registered_models" in inspect(store).get_table_names()
    with store.connect() as connection:
        (names,) = zip(*connection.execute(text("select distinct key from metrics")), strict=True)
        (locations,) = zip(*connection.execute(text("select artifact_location from experiments")), strict=True)
    store.dispose()
    assert {"1_win_rate/vs_champion", "judge/pairwise_accuracy"} <= set(names)
    assert (home / "mlartifacts").as_uri() in " ".join(locations)


def test_a_home_keeps_to_the_database_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srlm_pipeline.commands.home.find_spec", lambda _: object())
    for name, variable in (("files", ""), ("database", "postgresql://srlm:secret@host/dagster")):
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / name))
        monkeypatch.setenv(DATABASE_VARIABLE, variable)
        assert prepare_home() == tmp_path / name
        assert (DATABASE_VARIABLE in (tmp_path / name / "dagster.yaml").read_text()) == bool(variable)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "files"))
    with pytest.raises(HomeError, match="keeps its records in files") as raised:
        prepare_home()
    assert "secret" not in str(raised.value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "database"))
    monkeypatch.delenv(DATABASE_VARIABLE)
    with pytest.raises(HomeError, match=re.escape(f"{DATABASE_VARIABLE} names; set it")):
        prepare_home()


def test_what_a_database_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srlm_pipeline.commands.home.find_spec", lambda _: None)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(DATABASE_VARIABLE, "postgresql://host/dagster")
    with pytest.raises(HomeError, match=r"pip install 'srlm_pipeline\[postgres\]'"):
        prepare_home()
