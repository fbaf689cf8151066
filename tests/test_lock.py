"""The lock of a Dagster home, between processes: who is refused, what is said, and that it ends with its holder."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from srlm_pipeline.commands.launch import run_loop
from srlm_pipeline.definitions import defs
from srlm_pipeline.errors import HomeInUseError
from srlm_pipeline.lock import if_nobody_is_at_work, shared_use, sole_use

HOLD = "import sys; from pathlib import Path; from srlm_pipeline.lock import sole_use, shared_use\n"
HOLD += "with {use}(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"


@contextmanager
def held_by_another_process(home: Path, use: str = "sole_use") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLD.format(use=use), str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("use", [sole_use, shared_use])
def test_who_comes_second_is_told_who_is_at_work_and_since_when(tmp_path: Path, use: type) -> None:
    with held_by_another_process(tmp_path) as holder, pytest.raises(HomeInUseError) as caught, use(tmp_path):
        pass
    assert caught.value.process == holder.pid
    assert str(holder.pid) in str(caught.value)
    assert caught.value.since is not None
    assert caught.value.since in str(caught.value)


def test_a_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as holder:
        holder.kill()
        holder.wait()
        with sole_use(tmp_path):
            pass


def test_nobody_is_told_of_a_process_that_was_killed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_by_another_process(tmp_path) as holder:
        holder.kill()
        holder.wait()
    if_nobody_is_at_work(tmp_path, lambda: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", itertools.count(step=5).__next__)
    with held_by_another_process(tmp_path, "shared_use"), pytest.raises(HomeInUseError) as caught, sole_use(tmp_path):
        pass
    assert caught.value.process is None


def test_steps_share_a_home_and_keep_a_whole_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", itertools.count(step=5).__next__)
    with held_by_another_process(tmp_path, "shared_use"):
        with shared_use(tmp_path):
            pass
        with pytest.raises(HomeInUseError, match="a step of a run that Dagster started"), sole_use(tmp_path):
            pass


def test_who_has_a_home_alone_may_run_steps_in_it_and_homes_do_not_disturb_each_other(tmp_path: Path) -> None:
    with sole_use(tmp_path / "one"), sole_use(tmp_path / "other"), shared_use(tmp_path / "one"):
        pass
    with held_by_another_process(tmp_path / "one", "shared_use"), shared_use(tmp_path / "one"):
        pass


def test_what_wants_nobody_at_work_is_done_only_then(tmp_path: Path) -> None:
    done: list[str] = []
    if_nobody_is_at_work(tmp_path, lambda: done.append("alone"))
    for use in ("sole_use", "shared_use"):
        with held_by_another_process(tmp_path, use):
            if_nobody_is_at_work(tmp_path, lambda: done.append("beside another"))
    with sole_use(tmp_path):
        if_nobody_is_at_work(tmp_path, lambda: done.append("within"))
    assert done == ["alone"]


def test_a_second_run_is_refused_before_it_creates_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, held_by_another_process(tmp_path) as holder:
        with pytest.raises(HomeInUseError, match=f"process {holder.pid}"):
            run_loop(defs, instance, 1, {}, print)
        assert instance.get_runs() == []
    assert str(os.getpid()) not in (tmp_path / "srlm.lock").read_text()
