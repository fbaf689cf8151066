"""The morning after: the pages that a person looks at, what they have to show, and their pictures.

    python tests/nights/tour.py FOLDER

takes the pictures of docs/first-night.md in the home that `nights.py` kept in FOLDER. Selenium, Chromium and its driver
are needed (`pip install selenium`; Debian: `apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import argparse
import html
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from browser import HEIGHT, WIDTH, Browser, Unseen, opened  # noqa: E402
from processes import started  # noqa: E402

from srlm_pipeline.evaluation.promotion import read_decision  # noqa: E402

IMAGES = HERE.parent.parent / "docs" / "images"
PORTS = {"dagster": 3110, "mlflow": 5110}
TRAINING = "iteration_model"
CURVES = "win_rate/vs_(baseline|previous)$|judge/(pairwise_accuracy|length_balanced_accuracy)$"
# Of a window in which all of the graph can be read.
GRAPH = (2050, 1750)


@dataclass(frozen=True)
class Place:
    """Where the pages are, and what there is to see on them.

    Attributes:
        dagster: Address of Dagster's server.
        mlflow: Address of MLflow's.
        project: Name.
        newest: Partition of the newest iteration that is complete.
        refused: Partition of an iteration whose model was refused in the end or at first; None if there is none.
        failed: A run that failed; None if there is none.
    """

    dagster: str
    mlflow: str
    project: str
    newest: str
    refused: str | None = None
    failed: str | None = None

    def asset(self, name: str, partition: str | None = None, view: str = "partitions") -> str:
        """Return the page of an asset, or of one of its partitions."""
        chosen = "" if partition is None else f"&partition={partition}"
        return f"{self.dagster}/assets/{name}?view={view}{chosen}"


@dataclass(frozen=True)
class Stop:
    """A page that is looked at.

    Attributes:
        name: Of its picture.
        reach: Goes there.
        shows: What has to be seen there.
    """

    name: str
    reach: Callable[[Browser, Place], None]
    shows: Callable[[Place], Sequence[str]]


def timeline(browser: Browser, place: Place) -> None:
    """Go to Dagster's timeline, and choose its window."""
    browser.go(place.dagster)
    browser.click("Overview")
    browser.click("Timeline")
    browser.click("1hr")


def schedule(browser: Browser, place: Place) -> None:
    """Go from Dagster's automations to the nightly schedule's ticks."""
    browser.go(place.dagster)
    browser.click("Automation")
    browser.click("nightly_iteration")


def runs(browser: Browser, place: Place) -> None:
    """Go to the list of Dagster's runs."""
    browser.go(place.dagster)
    browser.click("Runs")


def experiment(browser: Browser, place: Place) -> None:
    """Go from MLflow's experiments to the project's runs."""
    browser.go(f"{place.mlflow}/#/experiments")
    browser.click("Model training")
    browser.click(place.project)
    browser.click("Runs")
    close_assistant(browser)
    browser.press('[data-component-id*="runnamecellrenderer"]')


def curves(browser: Browser, place: Place) -> None:
    """Go on to the run of the curves, and to some of those that matter."""
    experiment(browser, place)
    browser.click(f"{place.project}: all iterations")
    browser.click("Model metrics")
    browser.type('input[placeholder="Search metric charts"]', CURVES)


def registry(browser: Browser, place: Place) -> None:
    """Go to the versions of the project's model in MLflow."""
    browser.go(f"{place.mlflow}/#/models/{place.project}")
    close_assistant(browser)


def close_assistant(browser: Browser) -> None:
    """Close the column that MLflow opens on a first visit, for an assistant of its own."""
    with suppress(Unseen):
        browser.press('[data-component-id="mlflow.assistant.chat_panel.close"]', patience=8)


def graph(browser: Browser, place: Place) -> None:
    """Go to the whole asset graph, the two groups that matter opened."""
    browser.resize(*GRAPH)
    address = f"{place.dagster}/asset-groups?expanded=global%40global%3Aseed%2Cglobal%40global%3Aiteration"
    browser.go(address)
    browser.click("Hide navigation")
    # As much of it as there is room for now.
    browser.go("about:blank")
    browser.go(address)


STOPS = (
    Stop("night-timeline", timeline, lambda place: ["iteration", "seed"]),
    Stop("night-runs", runs, lambda place: ["iteration", place.newest]),
    Stop("night-schedule", schedule, lambda place: ["nightly_iteration", "Latest tick"]),
    Stop(
        "night-report",
        lambda browser, place: browser.go(place.asset("iteration_report", place.newest)),
        lambda place: [place.newest, "in_short", "verdict"],
    ),
    Stop(
        "night-promotion",
        lambda browser, place: browser.go(place.asset("promotion", place.refused or place.newest)),
        lambda place: ["promoted", "rules", "surprise at the best human replies"],
    ),
    Stop(
        "night-checks",
        lambda browser, place: browser.go(place.asset("promotion", view="checks")),
        lambda place: ["promoted", "Latest execution"],
    ),
    Stop(
        "judged-scores",
        lambda browser, place: browser.go(place.asset("judged_scores", place.newest)),
        lambda place: ["in_short", "score_histogram", "preview"],
    ),
    Stop("asset-graph", graph, lambda place: ["generated_prompts", "judged_scores", "seed_model"]),
    Stop("night-mlflow", experiment, lambda place: [f"{TRAINING}[{place.newest}]"]),
    Stop("curves", curves, lambda place: ["win_rate"]),
    Stop("night-registry", registry, lambda place: ["champion", "Version 1"]),
)
FAILED = Stop(
    "night-failed", lambda browser, place: browser.go(f"{place.dagster}/runs/{place.failed}"), lambda place: [TRAINING]
)


@contextmanager
def served(home: Path, configuration: Path, **known: str | None) -> Iterator[Place]:
    """Start `srlm ui` on a home that has a complete iteration; what else is known of it goes into the place."""
    project = yaml.safe_load(configuration.read_text(encoding="utf-8")).get("project", "quickstart")
    newest = max(path.stem for path in (home / "srlm" / project / "reports").glob("iter_???.html"))
    ports = [f"--{name}-port={port}" for name, port in PORTS.items()]
    with started(home, configuration, "ui", *ports) as servers:
        servers.wait_for("Ctrl-C ends all")
        try:
            addresses = {name: f"http://127.0.0.1:{port}" for name, port in PORTS.items()}
            yield Place(**addresses, project=project, newest=newest, **known)
        finally:
            servers.send(signal.SIGTERM)
            servers.ends()


def look(stop: Stop, browser: Browser, place: Place, images: Path, settle: float = 5.0) -> Path:
    """Go to a page, see what it has to show, and take its picture.

    Args:
        stop: The page.
        browser: To go there.
        place: Where that is.
        images: Folder for the picture.
        settle: Seconds until what moves on the page has come to rest.

    Returns:
        The picture.

    Raises:
        Unseen: If something is not there.
    """
    browser.resize(WIDTH, HEIGHT)
    stop.reach(browser, place)
    browser.sees(*stop.shows(place))
    picture = images / f"{stop.name}.png"
    browser.picture(picture, settle)
    return picture


def messages_page(folder: Path) -> str:
    """Return the messages that came as a page."""
    lines = (folder / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    came = [json.loads(line) for line in lines]
    parts = "".join(
        f"<article><time>{message['at'][11:16]}</time><b>{html.escape(message['title'])}</b>"
        f"<p>{'<br>'.join(map(html.escape, message['message'].splitlines()))}</p></article>"
        for message in came
    )
    style = (
        "body{font:15px/1.4 sans-serif;margin:16px auto;max-width:1180px;color:#222}"
        "article{border:1px solid #ccd;border-radius:8px;padding:8px 14px;margin:8px 0;background:#f7f8fc}"
        "time{float:right;color:#778}p{margin:4px 0 0;color:#445}"
    )
    return f"<!DOCTYPE html><meta charset='utf-8'><title>Messages</title><style>{style}</style>{parts}"


def refused_partition(home: Path, project: str) -> str | None:
    """Return an iteration whose newest verdict is a refusal."""
    for path in sorted((home / "srlm" / project / "promotions").glob("*.json")):
        decision = read_decision(path)
        if decision is not None and not decision.promoted:
            return path.stem
    return None


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of docs/first-night.md.")
    parser.add_argument("folder", type=Path, help="that nights.py filled")
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--only", nargs="*", help="names of pictures")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    nights = [json.loads(line) for line in (folder / "diary.jsonl").read_text(encoding="utf-8").splitlines()]
    failed = [run["run"] for night in nights for run in night["runs"] if run["status"] == "FAILURE"]
    page = folder / "messages.html"
    page.write_text(messages_page(folder), encoding="utf-8")
    messages = Stop("night-messages", lambda browser, place: browser.go(page.as_uri()), lambda place: ["is promoted"])
    known = {"refused": refused_partition(folder / "home", "nights"), "failed": failed[-1] if failed else None}
    with served(folder / "home", folder / "tiny.yaml", **known) as place, opened() as browser:
        for stop in (messages, *STOPS, *((FAILED,) if place.failed else ())):
            if not asked.only or stop.name in asked.only:
                look(stop, browser, place, asked.images)
                print(stop.name, flush=True)


if __name__ == "__main__":
    main()
