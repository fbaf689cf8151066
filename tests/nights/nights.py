"""Seven nights in a row that nobody watches, in each of them something else, and the mornings after.

    python tests/nights/nights.py FOLDER

keeps in FOLDER the Dagster home in which a tiny model went through them, the messages that came, and a diary. Nothing
of it is played: Dagster's daemon runs as `srlm ui` runs it, its schedule ticks, and the runs that it asks for are
processes of their own, which the daemon watches and starts again. Two things save time: the schedule ticks every minute
and is switched on for one tick a night, so that the days are left out; and the steps of a run share its process
(`together.py`). The disk that fills up is a small file system of its own, which needs the right to mount.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import dagster as dg
import psutil
import yaml
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickStatus

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "chaos"), str(HERE.parent.parent)]

from chaos import small_file_system  # noqa: E402
from conftest import write_tiny_model  # noqa: E402
from disturbed import filler  # noqa: E402
from processes import write_configuration  # noqa: E402

from srlm_pipeline.commands.servers import stop_all  # noqa: E402

PORT = 3100
SCHEDULE = "nightly_iteration"
# Of waiting for what must come; seconds.
PATIENCE = 1200.0
LOCATION = "srlm_pipeline.definitions"
TRAINING = "iteration_model"
# Of a model of random weights nothing can be proved to be better; what training can spoil is asked of it.
MARGINS = {
    **dict.fromkeys(
        ("unfit", "loops", "echoes", "recites", "empty", "refuses", "other_language", "cut_off", "closed_tasks")
    ),
    **dict.fromkeys(("verifiable", "nearness", "judge")),
    "human_likelihood": 0.25,
}
MONITORS = ("max_score_share", "min_score_std", "max_variety_drop", "max_recital_rise", "max_judge_accuracy_drop")
USUAL, RASH = 0.01, 0.3
SETTINGS: dict[str, Any] = {
    "prompt_generation": {"count": 6},
    "candidates": {"per_prompt": 3, "max_new_tokens": 16},
    "dpo": {"learning_rate": USUAL},
    "monitors": dict.fromkeys(MONITORS),
    "promotion": {"proven_gain": False, "margins": MARGINS},
    "schedule": {"cron": "* * * * *", "planned_iterations": 8, "after_rejection": "retry"},
    "evaluation": {"arbiters": [{"model": "self", "method": "scores"}]},
}


class Inbox:
    """Somebody's messages: a web server that takes what notices send.

    Args:
        file: Where they are kept, one JSON a line.
    """

    def __init__(self, file: Path) -> None:
        self.titles: list[str] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                came = {
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "title": body["title"],
                    "message": body["message"],
                }
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(came) + "\n")
                inbox.titles.append(body["title"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """As notices take it."""
        return f"json://127.0.0.1:{self._server.server_port}/"


@dataclass
class House:
    """Where the nights pass: a Dagster home, Dagster's servers, and the configuration.

    Attributes:
        folder: Of the home; on a file system that may fill up.
        logs: Folder for what the servers print; elsewhere.
        configuration: The settings' file.
        inbox: Of the messages.
    """

    folder: Path
    logs: Path
    configuration: Path
    inbox: Inbox
    _servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The Dagster home."""
        return self.folder / "home"

    def environment(self) -> dict[str, str]:
        """Of every process of the nights."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SRLM_", "MLFLOW_TRACKING", "DAGSTER_"))},
            "DAGSTER_HOME": str(self.home),
            "SRLM_CONFIG": str(self.configuration),
            "SRLM_NOTICE_URLS": self.inbox.address,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(HERE.parent.parent), str(HERE))),
            "COLUMNS": "160",
        }

    def srlm(self, *words: str) -> str:
        """Run a command of `srlm` to its end; return what it printed."""
        command = [sys.executable, "-m", "srlm_pipeline.cli", *words]
        ended = subprocess.run(command, env=self.environment(), cwd=self.folder, capture_output=True, text=True)
        if ended.returncode:
            raise SystemExit(f"srlm {' '.join(words)}:\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def edit(self, settings: dict[str, dict[str, Any]]) -> None:
        """Change settings in the configuration file, as a person does who thinks of something in the evening."""
        written = yaml.safe_load(self.configuration.read_text(encoding="utf-8"))
        for section, values in settings.items():
            written[section].update(values)
        self.configuration.write_text(yaml.safe_dump(written), encoding="utf-8")

    def open(self) -> None:
        """Start the web server, and wait until it answers; then the daemon."""
        modules = {
            "dagster-webserver": ("srlm_pipeline.commands.webserver", "-h", "127.0.0.1", "-p", str(PORT)),
            "dagster-daemon": ("dagster._daemon", "run"),
        }
        workspace = self.logs / "workspace.yaml"
        location = {"python_module": {"module_name": "together", "location_name": LOCATION}}
        workspace.write_text(yaml.safe_dump({"load_from": [location]}), encoding="utf-8")
        for name, command in modules.items():
            if name not in self._servers or self._servers[name].poll() is not None:
                with (self.logs / f"{name}.txt").open("ab") as log:
                    self._servers[name] = subprocess.Popen(
                        [sys.executable, "-u", "-m", *command, "-w", workspace],
                        env=self.environment(),
                        cwd=self.folder,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
        wait("Dagster's server answers", lambda: self.ask("{ version }"), every=2.0)

    def close(self) -> None:
        """End the servers, and what they have started."""
        stop_all(self._servers)

    def kill_daemon(self) -> None:
        """End Dagster's daemon without a word."""
        self._servers["dagster-daemon"].kill()
        self._servers["dagster-daemon"].wait()

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask Dagster's server, as its pages do; empty if it does not answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(f"http://127.0.0.1:{PORT}/graphql", body, {"Content-Type": "application/json"})
        with suppress(OSError), urlopen(request, timeout=30) as answer:
            return dict(json.load(answer)["data"])
        return {}

    def switch_on(self) -> None:
        """Switch the schedule on."""
        chosen = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "scheduleName": SCHEDULE}
        words = "mutation($chosen: ScheduleSelector!) { startSchedule(scheduleSelector: $chosen) { __typename } }"
        answer = self.ask(words, chosen=chosen)
        if "ScheduleStateResult" not in str(answer):
            raise SystemExit(f"the schedule was not switched on: {answer}")


def wait(what: str, happened: Callable[[], Any], every: float = 1.0, patience: float = PATIENCE) -> Any:
    """Wait until something is there; return it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        # A full disk also keeps others from reading Dagster's records.
        with suppress(Exception):
            found = happened()
            if found:
                return found
        time.sleep(every)
    raise SystemExit(f"it never happened: {what}")


def schedule(instance: dg.DagsterInstance) -> InstigatorState:
    """Return what Dagster keeps of the schedule."""
    return next(state for state in instance.all_instigator_state() if state.name == SCHEDULE)


def tick_after(instance: dg.DagsterInstance, when: float) -> InstigatorTick | None:
    """Return the schedule's first tick after a time, once it is over."""
    kept = schedule(instance)
    ticks = instance.get_ticks(kept.instigator_origin_id, kept.selector_id, after=when)
    return next((tick for tick in reversed(ticks) if tick.status != TickStatus.STARTED), None)


def over(instance: dg.DagsterInstance, since: float) -> list[dg.RunRecord]:
    """Return all runs of iterations since a time, if all have ended and none is to be tried again; nothing before."""
    after = dg.RunsFilter(created_after=datetime.fromtimestamp(since, UTC))
    records = [record for record in instance.get_run_records(after) if record.dagster_run.job_name == "iteration"]
    again = {record.dagster_run.parent_run_id for record in records}
    for record in records:
        run = record.dagster_run
        if not run.is_finished or (run.tags.get("dagster/will_retry") == "true" and run.run_id not in again):
            return []
    return list(reversed(records))


def process_of(instance: dg.DagsterInstance, run_id: str) -> psutil.Process | None:
    """Return the process that Dagster started for a run."""
    for event in instance.all_logs(run_id):
        found = re.search(r"Started process for run \(pid: (\d+)\)", event.message or "")
        if found:
            return psutil.Process(int(found.group(1)))
    return None


def until_it_trains(instance: dg.DagsterInstance, run_id: str) -> None:
    """Wait until a run is in the midst of training."""
    kind = dg.DagsterEventType.STEP_START

    def trains() -> bool:
        records = instance.get_records_for_run(run_id, of_type=kind).records
        return any(record.event_log_entry.step_key == TRAINING for record in records)

    wait("the run trains", trains, every=0.2)
    time.sleep(1.0)


def kill_run(house: House, instance: dg.DagsterInstance, run_id: str) -> None:
    """Kill a run's process while it trains, as the operating system does when memory runs out."""
    until_it_trains(instance, run_id)
    process = process_of(instance, run_id)
    assert process is not None
    process.kill()


def kill_daemon(house: House, instance: dg.DagsterInstance, run_id: str) -> None:
    """Kill Dagster's daemon while a run that it started trains; it is started again a minute later."""
    until_it_trains(instance, run_id)
    house.kill_daemon()
    time.sleep(60)
    house.open()


def fill_disk(house: House, instance: dg.DagsterInstance, run_id: str) -> None:
    """Take all the room on the home's disk while a run trains; in the morning somebody frees it."""
    until_it_trains(instance, run_id)
    process = process_of(instance, run_id)
    with filler(house.home).open("wb") as stream, suppress(OSError):
        while True:
            stream.write(b"\0" * 2**16)
            stream.flush()
    with suppress(psutil.Error, SystemExit):
        wait("the run's process has ended", lambda: process is None or not process.is_running(), patience=180)
    time.sleep(45)
    filler(house.home).unlink()
    house.open()


@dataclass(frozen=True)
class Night:
    """What is to happen in a night.

    Attributes:
        what: In words.
        settings: Changed in the evening.
        disturb: Called with the house, Dagster's records and the run; None: nothing is done.
    """

    what: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    disturb: Callable[[House, dg.DagsterInstance, str], None] | None = None


NIGHTS = (
    Night("nothing happens"),
    Night("the run's process is killed while it trains", disturb=kill_run),
    Night(f"`dpo.learning_rate` was set to {RASH} in the evening", {"dpo": {"learning_rate": RASH}}),
    Night(f"`dpo.learning_rate` was set back to {USUAL}", {"dpo": {"learning_rate": USUAL}}),
    Night("the disk fills up while it trains; it is freed in the morning", disturb=fill_disk),
    Night("Dagster's daemon is killed while it trains, and started again", disturb=kill_daemon),
    Night("nothing happens"),
)


def pass_night(number: int, night: Night, house: House, instance: dg.DagsterInstance) -> dict[str, Any]:
    """Let a night pass; return what there is to tell of it in the morning."""
    began, told = time.time(), len(house.inbox.titles)
    house.edit(night.settings)
    house.switch_on()
    tick = wait("the schedule ticks", lambda: tick_after(instance, began))
    kept = schedule(instance)
    instance.stop_schedule(kept.instigator_origin_id, kept.selector_id, None)
    runs: Sequence[dg.RunRecord] = ()
    if tick.run_ids:
        if night.disturb is not None:
            night.disturb(house, instance, tick.run_ids[0])
        runs = wait("all runs are over", lambda: over(instance, began))
    # The sensor that tells of failures looks every half minute.
    time.sleep(45 if any(record.dagster_run.status != dg.DagsterRunStatus.SUCCESS for record in runs) else 3)
    return {
        "night": number,
        "at": datetime.fromtimestamp(tick.timestamp, UTC).isoformat(timespec="seconds"),
        "what": night.what,
        "runs": [
            {
                "run": record.dagster_run.run_id,
                "partition": record.dagster_run.tags.get("dagster/partition"),
                "again": record.dagster_run.parent_run_id is not None,
                "status": record.dagster_run.status.value,
            }
            for record in runs
        ],
        "skipped": tick.skip_reason,
        "messages": house.inbox.titles[told:],
        "seconds": round(time.time() - began),
    }


@contextmanager
def furnished(folder: Path) -> Iterator[House]:
    """Prepare everything, and keep the home in the folder when all is over."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    write_tiny_model(folder / "tiny")
    configuration = write_configuration(folder, folder / "tiny", **SETTINGS)
    named = {**yaml.safe_load(configuration.read_text(encoding="utf-8")), "project": "nights"}
    configuration.write_text(yaml.safe_dump(named), encoding="utf-8")
    with small_file_system(folder / "disk") as mounted:
        if not mounted:
            raise SystemExit("a small file system cannot be mounted here; run as root")
        house = House(folder / "disk", folder / "logs", configuration, Inbox(folder / "messages.jsonl"))
        house.home.mkdir()
        try:
            yield house
        finally:
            house.close()
            shutil.copytree(house.home, folder / "home", symlinks=True)


def main() -> None:
    """Go through the nights, and write the diary."""
    parser = argparse.ArgumentParser(description="Seven nights that nobody watches.")
    parser.add_argument("folder", type=Path, help="for home, messages and diary; new")
    folder = parser.parse_args().folder.resolve()
    with furnished(folder) as house:
        print(house.srlm("run", "-n", "0"), flush=True)
        house.open()
        os.environ["DAGSTER_HOME"] = str(house.home)
        with dg.DagsterInstance.get() as instance, (folder / "diary.jsonl").open("w", encoding="utf-8") as diary:
            for number, night in enumerate(NIGHTS, start=1):
                told = pass_night(number, night, house, instance)
                diary.write(json.dumps(told) + "\n")
                diary.flush()
                print(json.dumps(told, indent=1), flush=True)
        print(house.srlm("status"))


if __name__ == "__main__":
    main()
