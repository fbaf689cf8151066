"""A durable copy of a project under an address that fsspec knows, and homes that are lost, two, or half copied."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import write_configuration

from srlm_pipeline.archive import Archive, open_archive
from srlm_pipeline.archive.remote import Remote
from srlm_pipeline.archive.sync import URL_VARIABLE
from srlm_pipeline.config import load_settings
from srlm_pipeline.errors import ArchiveConflictError, ArchiveError, SettingsError
from srlm_pipeline.files import leftovers
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.models.checkpoint import is_checkpoint, write_marker
from srlm_pipeline.models.integrity import empty, verify
from srlm_pipeline.store import ProjectStore

PATIENT = 3


class Machine:
    """A Dagster home with a project, without anything that computes."""

    def __init__(self, folder: Path, url: str, pause: Callable[[float], None] = lambda _: None) -> None:
        self.home, self.url = folder, url
        self.home.mkdir(parents=True, exist_ok=True)
        self.store = ProjectStore(folder / "srlm" / "p", folder / "srlm")
        self.remote = Remote(url, PATIENT, pause)
        self.archive = Archive(self.remote, self.store, folder)
        self.warnings: list[str] = []

    def fetch(self, with_records: bool = True) -> list[str]:
        return self.archive.fetch(self.warnings.append, with_records)

    def write(self, name: str, text: str) -> Path:
        path = self.store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def train(self, name: str, **shards: str) -> Path:
        """Put a model in place, as `save_checkpoint` does."""
        folder = self.store.model_folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        for shard, weights in shards.items():
            self.write(f"models/{name}/{shard}.safetensors", weights)
        write_marker(folder, name, None, {"run": uuid.uuid4().hex})
        return folder

    def files(self) -> dict[str, bytes]:
        """What of the project is to be seen, trainings in progress left out."""
        found = (p for p in self.store.root.rglob("*") if p.is_file())
        named = {p.relative_to(self.store.root).as_posix(): p.read_bytes() for p in found}
        return {name: content for name, content in named.items() if not name.startswith("work/")}


Open = Callable[..., Machine]


@pytest.fixture(params=["memory", "file"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens homes that share an address."""
    import fsspec

    place = uuid.uuid4().hex
    url = f"memory://{place}" if request.param == "memory" else (tmp_path / "elsewhere").as_uri()
    yield lambda name, **more: Machine(tmp_path / name, url, **more)
    if request.param == "memory":
        fsspec.filesystem("memory").rm(f"/{place}", recursive=True)


def failing_after(machine: Machine, n_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an address take some files and then none."""
    put, left = machine.remote.put, iter(range(n_files))

    def failing(source: Path, name: str) -> None:
        if next(left, None) is None:
            raise ArchiveError(machine.remote.address, "is full")
        put(source, name)

    monkeypatch.setattr(machine.remote, "put", failing)


def test_what_is_finished_comes_back_and_what_is_not_is_left_out(machine: Open) -> None:
    one = machine("one")
    one.fetch()
    one.train("M1", a="weights")
    for name in ("tables/candidates/iter_001.parquet", "journals/candidates/iter_001/items.jsonl", "reports/i.html"):
        one.write(name, name)
    whole = one.files()
    one.write("work/M2/abc/checkpoint-9/state", "in progress")
    one.write("models/M2/a.safetensors", "no marker yet")
    one.write("tables/.candidates.parquet.0123abcd.tmp", "half written")
    assert set(one.archive.push()) == set(whole)
    assert one.archive.push() == [], "nothing has changed"
    two = machine("two")
    assert set(two.fetch()) == set(whole)
    assert two.files() == whole
    assert is_checkpoint(two.store.model_folder("M1"))
    assert (two.fetch(), two.warnings, leftovers(two.home)) == ([], [], [])


def test_a_file_that_was_lost_is_taken_and_one_that_is_newer_here_is_not(machine: Open) -> None:
    one = machine("one")
    one.fetch()
    lost, newer = one.write("tables/a.parquet", "1"), one.write("tables/b.parquet", "1")
    one.archive.push()
    lost.unlink()
    newer.write_text("second")
    assert one.fetch(with_records=False) == ["tables/a.parquet"]
    assert (lost.read_text(), newer.read_text()) == ("1", "second")
    assert one.archive.push() == ["tables/b.parquet"]


@pytest.mark.parametrize("n_files", range(3))
def test_a_model_that_was_copied_in_part_does_not_count_until_all_of_it_is_there(
    machine: Open, n_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.fetch()
    one.write("tables/a.parquet", "1")
    one.archive.push()
    folder = one.train("M2", a="half", b="the other half")
    with monkeypatch.context() as patch:
        failing_after(one, n_files, patch)
        with pytest.raises(ArchiveError, match="is full"):
            one.archive.push()
    assert one.remote.read("models/M2/srlm.json") is None, "nor for who looks there without the manifest"
    two = machine("two")
    assert two.fetch() == ["tables/a.parquet"]
    assert not two.store.model_folder("M2").exists()
    one.archive.push()
    three = machine("three")
    assert "models/M2/srlm.json" in three.fetch()
    verify(three.store.model_folder("M2"))
    verify(folder)


def test_a_model_that_was_trained_again_replaces_all_of_the_one_before(machine: Open) -> None:
    one, two = machine("one"), machine("two")
    one.fetch()
    one.train("M2", a="1", b="2", c="3")
    one.archive.push()
    two.fetch()
    one.train("M2", a="1", d="all")
    one.archive.push()
    assert one.remote.read("models/M2/b.safetensors") is None
    two.fetch()
    assert two.files() == one.files()
    verify(two.store.model_folder("M2"))


def test_what_is_damaged_there_is_not_taken_but_journals_hold_at_least_what_they_held(machine: Open) -> None:
    one, two = machine("one"), machine("two")
    one.fetch()
    one.train("M1", a="weights")
    one.write("tables/a.parquet", "1")
    Journal(one.store.journal_folder("x")).append({"k": {"reply": "yes"}})
    one.archive.push()
    one.remote.write("models/M1/a.safetensors", b"weight")
    one.remote.write("tables/a.parquet", b"2")
    Journal(one.store.journal_folder("x")).append({"l": {"reply": "no"}})
    one.remote.put(one.store.journal_folder("x") / "items.jsonl", "journals/x/items.jsonl")
    assert two.fetch() == ["journals/x/items.jsonl"]
    assert set(Journal(two.store.journal_folder("x")).items) == {"k", "l"}
    assert [("M1" in w, "only in part" in w) for w in two.warnings] == [(True, True), (False, True)]
    # It is made again then, and goes there.
    two.train("M1", a="weights")
    two.write("tables/a.parquet", "1")
    two.archive.push()
    three = machine("three")
    three.fetch()
    assert three.files() == two.files()


def test_a_changed_byte_of_a_model_does_not_reach_the_copy_and_is_mended_from_it(machine: Open) -> None:
    one = machine("one")
    one.fetch()
    folder = one.train("M1", a="weights", b="more")
    one.archive.push()
    (folder / "a.safetensors").write_text("wEights")
    assert one.archive.push() == []
    assert one.fetch() == ["models/M1/a.safetensors"]
    verify(folder)


def test_what_is_cleaned_away_is_deleted_there_and_does_not_come_back(machine: Open) -> None:
    one = machine("one")
    one.fetch()
    emptied, journal = one.train("M1", a="weights"), one.write("journals/x/iter_001/items.jsonl", "")
    one.train("M2", a="weights")
    one.archive.push()
    empty(emptied)
    shutil.rmtree(journal.parent)
    one.archive.push(removed=[emptied, journal.parent])
    assert one.remote.read("models/M1/a.safetensors") is None
    assert one.remote.read("models/M1/srlm.json") is not None, "it stays known what it was"
    assert one.fetch() == []
    two = machine("two")
    assert set(two.fetch()) == set(one.files())


def test_of_two_machines_that_work_at_a_time_the_second_is_told(machine: Open) -> None:
    one, two = machine("one"), machine("two")
    one.fetch()
    one.write("tables/a.parquet", "1")
    one.archive.push()
    two.fetch()
    two.write("tables/a.parquet", "2")
    two.archive.push()
    one.write("tables/b.parquet", "1")
    with pytest.raises(ArchiveConflictError, match="`srlm run` or `srlm ui` here takes what is there first"):
        one.archive.push()
    with pytest.raises(ArchiveConflictError):
        one.fetch(with_records=False)
    # By turns they can.
    assert one.fetch() == ["tables/a.parquet"]
    assert one.archive.push() == ["tables/b.parquet"]
    one.write("tables/a.parquet", "3")
    one.archive.push()
    two.write("tables/a.parquet", "4")
    with pytest.raises(ArchiveConflictError, match=r"both have made tables/a\.parquet"):
        two.fetch()
    assert (two.store.root / "tables/a.parquet").read_text() == "4"


def test_records_come_back_into_databases_that_are_open(machine: Open) -> None:
    one, two = machine("one"), machine("two")
    one.fetch()
    (one.home / "history/runs").mkdir(parents=True)
    with closing(sqlite3.connect(one.home / "history/runs/index.db")) as known:
        known.execute("PRAGMA journal_mode=WAL")
        known.execute("CREATE TABLE events (body)")
        known.execute("INSERT INTO events VALUES ('materialized')")
        known.commit()
        # Still in its log.
        assert "home/history/runs/index.db" in one.archive.push(with_records=True)
    (two.home / "history/runs").mkdir(parents=True)
    with closing(sqlite3.connect(two.home / "history/runs/index.db")) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
        opened.execute("CREATE TABLE events (body)")
        opened.commit()
        two.fetch()
        assert opened.execute("SELECT body FROM events").fetchall() == [("materialized",)]
    assert two.fetch() == []


def test_an_address_that_does_not_answer_is_tried_again_and_then_told_in_a_sentence(
    machine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    one = machine("one", pause=pauses.append)
    one.fetch()
    one.write("tables/a.parquet", "1")
    put, sick = one.remote._files.put_file, iter(range(PATIENT))

    def sometimes(*words: str) -> None:
        if next(sick, None) is not None:
            raise OSError("connection reset")
        put(*words)

    monkeypatch.setattr(one.remote._files, "put_file", sometimes)
    assert one.archive.push() == ["tables/a.parquet"]
    assert pauses == [1.0, 2.0, 4.0]
    monkeypatch.setattr(one.remote._files, "cat_file", lambda _: (_ for _ in ()).throw(TimeoutError("no\nanswer")))
    with pytest.raises(ArchiveError, match=r"manifest\.json cannot be read \(TimeoutError: no answer\)"):
        one.archive.push()
    assert one.fetch() == []
    assert "goes on with what is here" in one.warnings[0]
    with pytest.raises(ArchiveError):
        # Of an empty home: everything would be computed again.
        machine("two").fetch()


def test_an_address_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for url, reason in (("no-such-thing://x", "Protocol not known"), ("file:///dev/null/x", "cannot be read")):
        monkeypatch.setenv(URL_VARIABLE, url)
        with pytest.raises(ArchiveError, match=reason):
            archive = open_archive(load_settings(None, {"archive": {"max_retries": 0}}))
            assert archive is not None
            archive.fetch(lambda _: None, with_records=True)
    assert Remote("file://user:secret@host/x", 0).address == "file://host/x"
    with pytest.raises(SettingsError, match=r"archive\.url takes an address"):
        load_settings(None, {"storage": "s3://bucket"})


Step = tuple[str, str, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "push", "fail", "lose"]), st.sampled_from(["a", "b", "c"]), st.sampled_from("123")
    ),
    max_size=20,
)


@given(steps=STEPS)
@settings(max_examples=60)
def test_a_lost_home_gets_back_each_file_as_it_was_last_copied_whole_or_not_at_all(steps: list[Step]) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        machine, copied, n_homes = Machine(Path(folder) / "0", url), {}, 1
        machine.fetch()
        for act, name, value in steps:
            if act == "write":
                machine.write(f"tables/{name}.parquet", value)
            if act == "push":
                machine.archive.push()
                copied = machine.files()
            if act == "fail":
                with pytest.MonkeyPatch.context() as patch:
                    failing_after(machine, int(value) - 1, patch)
                    try:
                        machine.archive.push()
                        copied = machine.files()
                    except ArchiveError:
                        pass
            if act == "lose":
                machine = Machine(Path(folder) / str(n_homes), url)
                machine.fetch()
                n_homes += 1
                assert machine.files().items() <= copied.items()
                assert set(machine.files()) == set(copied) or machine.warnings
        machine.archive.push()
        whole = Machine(Path(folder) / "whole", url)
        whole.fetch()
        assert whole.files().items() >= machine.files().items()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 server of this machine."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    if not find_spec("s3fs"):
        pytest.skip("needs s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="nightly")
    yield "s3://nightly/srlm"
    server.stop()


def test_a_bucket_that_does_not_exist_is_no_empty_one(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no-such-bucket.*cannot be written \(FileNotFoundError"):
        Machine(tmp_path, "s3://no-such-bucket/x").fetch()


@pytest.mark.slow
def test_a_home_that_was_lost_goes_on_from_a_bucket_and_nothing_is_computed_again(
    bucket: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRLM_CONFIG", str(write_configuration(tmp_path, tiny_model)))
    monkeypatch.setenv(URL_VARIABLE, bucket)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")

    def run(home: str) -> str:
        environment = {**os.environ, "DAGSTER_HOME": str(tmp_path / home)}
        command = [sys.executable, "-m", "srlm_pipeline.cli", "run", "-n", "1"]
        ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def contents(home: str) -> dict[str, bytes]:
        root = tmp_path / home / "srlm" / "quickstart"
        files = (p for p in root.rglob("*") if p.is_file() and "work" not in p.relative_to(root).parts)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}

    assert "iteration iter_001: done" in run("first")
    made = contents("first")
    with closing(sqlite3.connect(tmp_path / "first/mlflow.db")) as store:
        figures = store.execute("SELECT key, value, step FROM metrics ORDER BY 1, 2, 3").fetchall()
    shutil.rmtree(tmp_path / "first")
    said = run("second")
    assert "seed: everything is up to date" in said
    assert "iteration iter_001: everything is up to date" in said
    assert contents("second") == made
    with closing(sqlite3.connect(tmp_path / "second/mlflow.db")) as store:
        assert store.execute("SELECT key, value, step FROM metrics ORDER BY 1, 2, 3").fetchall() == figures
        (sources,) = zip(*store.execute("SELECT source FROM model_versions").fetchall(), strict=True)
    assert sources
    assert all(source.startswith((tmp_path / "second").as_uri()) for source in sources)
    assert json.loads((tmp_path / "second/srlm/quickstart/models/M2/srlm.json").read_text())["name"] == "M2"
