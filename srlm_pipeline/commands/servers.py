"""`srlm ui`: Dagster's web server and daemon and MLflow's server, started and ended together.

`dagster dev` in the background does not end on SIGTERM, so its two parts are started separately.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from srlm_pipeline.archive import open_archive
from srlm_pipeline.commands.terminal import console
from srlm_pipeline.commands.webserver import ALLOWED_HOSTS_VARIABLE, LOOPBACK
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import HomeInUseError, SrlmError
from srlm_pipeline.lock import sole_use
from srlm_pipeline.tracking import artifact_location, follow_home, remember_ui, tracking_uri

START_SECONDS = 120
STOP_SECONDS = 15
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104


def serve(
    settings: Settings, host: str, dagster_port: int, mlflow_port: int, allowed_hosts: Sequence[str] = ()
) -> None:
    """Run all servers until Ctrl-C or SIGTERM, or until one of them ends.

    Args:
        settings: For the MLflow store's address.
        host: Address to listen on.
        dagster_port: Port of the Dagster UI.
        mlflow_port: Port of the MLflow UI.
        allowed_hosts: Names by which people call this machine, beside the address itself and the loopback.

    Raises:
        SrlmError: If a port is taken, MLflow's store cannot be used, or a server ends by itself.
    """
    _take_from_archive(settings)
    follow_home(settings)
    for port, option in ((dagster_port, "--dagster-port"), (mlflow_port, "--mlflow-port")):
        require_free_port(host, port, option)
    # Not `logs`: Dagster's telemetry takes that folder for its own and empties it.
    logs = Path(os.environ["DAGSTER_HOME"]) / "server_logs"
    logs.mkdir(exist_ok=True)
    addresses = {"Dagster": f"http://{host}:{dagster_port}", "MLflow": f"http://{host}:{mlflow_port}"}
    signal.signal(signal.SIGTERM, _interrupt)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    remember_ui(f"http://{reachable_name(host, allowed_hosts)}:{mlflow_port}")
    # Not as an argument, which everybody on this machine can see: it may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(settings)
    os.environ[ALLOWED_HOSTS_VARIABLE] = ",".join((*LOOPBACK, host, *allowed_hosts))
    try:
        for name, command in server_commands(settings, host, dagster_port, mlflow_port, allowed_hosts).items():
            with (logs / f"{name}.log").open("wb") as log:
                # A group of its own, so that children end with it.
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        with console.status("starting"):
            for address in addresses.values():
                _wait_until_up(address, processes, logs)
        for name, address in addresses.items():
            console.print(f"[bold]{name:8}[/] {address}", highlight=False)
        console.print(f"Logs are in {logs}. Ctrl-C ends all.", highlight=False)
        while True:
            _require_alive(processes, logs)
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("ending")
    finally:
        stop_all(processes)


def _take_from_archive(settings: Settings) -> None:
    """Begin with what the durable copy has, unless somebody is at work here."""
    archive = open_archive(settings)
    if archive is not None:
        with contextlib.suppress(HomeInUseError), sole_use(Path(os.environ["DAGSTER_HOME"])):
            archive.fetch(lambda line: console.print(line, markup=False), with_records=True)


def server_commands(
    settings: Settings, host: str, dagster_port: int, mlflow_port: int, allowed_hosts: Sequence[str]
) -> dict[str, list[str]]:
    """Return the command line of each server."""
    location = ["-m", "srlm_pipeline.definitions"]
    python = sys.executable
    # Without names MLflow allows the loopback and private addresses.
    names = (*LOOPBACK, host, *allowed_hosts)
    listed = ",".join(form for name in names for form in (name, f"{name}:{mlflow_port}"))
    named = ["--allowed-hosts", listed] if allowed_hosts else []
    return {
        "mlflow": [
            *(python, "-m", "mlflow", "server", "--host", host, "--port", str(mlflow_port), "--workers", "1"),
            *named,
            *("--default-artifact-root", artifact_location()),
        ],
        "dagster-webserver": [
            python,
            "-m",
            "srlm_pipeline.commands.webserver",
            "-h",
            host,
            "-p",
            str(dagster_port),
            *location,
        ],
        "dagster-daemon": [python, "-m", "dagster._daemon", "run", *location],
    }


def reachable_name(host: str, allowed_hosts: Sequence[str]) -> str:
    """Return the name for links: an address that stands for all of a machine's is none that a browser can open."""
    if host not in EVERY_ADDRESS:
        return f"[{host}]" if ":" in host else host
    return next(iter(allowed_hosts), LOOPBACK[0])


def require_free_port(host: str, port: int, option: str) -> None:
    """Refuse a port that is in use.

    Raises:
        SrlmError: Naming the option that chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SrlmError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with {option}"
            ) from error


def stop_all(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """End every process group, first kindly."""
    for process in processes.values():
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes.values():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait_until_up(address: str, processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _require_alive(processes, logs)
        try:
            with urlopen(address, timeout=2):  # noqa: S310 - our own server
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise SrlmError(f"{address} did not answer within {START_SECONDS} s; see the logs in {logs}")


def _require_alive(processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            tail = (logs / f"{name}.log").read_text(errors="replace").splitlines()[-5:]
            raise SrlmError(f"{name} ended with exit code {process.returncode}:\n" + "\n".join(tail))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
