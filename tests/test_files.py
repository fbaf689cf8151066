import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from srlm_pipeline.errors import DiskSpaceError, ForeignFolderError
from srlm_pipeline.files import (
    digest_files,
    disk_trouble,
    replacing_file,
    replacing_folder,
    require_disk,
    scratch_folder,
    tidy,
)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_appears_with_its_content_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "result.txt"
    with replacing_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names_in(target.parent) == {"result.txt"}


def test_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with replacing_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(error), replacing_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names_in(tmp_path) == {"result.txt"}


def test_writing_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), replacing_file(target):
        pass
    assert target.read_text() == "old"


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with replacing_folder(target, "a") as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names_in(target) == {"a"}
    assert names_in(target.parent) == {"model"}


def test_new_folder_has_nothing_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    (target / "a").write_text("mark")
    with replacing_folder(target, "a") as temporary:
        (temporary / "new").write_text("2")
        assert names_in(target) == {"old", "a"}
    assert names_in(target) == {"new"}
    assert names_in(tmp_path) == {"model"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    (target / "a").write_text("mark")
    with pytest.raises(error), replacing_folder(target, "a") as temporary:
        (temporary / "half").write_text("2")
        raise error
    assert names_in(target) == {"old", "a"}
    assert names_in(tmp_path) == {"model"}


def test_failing_last_rename_keeps_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    (target / "a").write_text("mark")
    real = os.replace

    def replace(source: Path, destination: Path) -> None:
        if Path(destination) == target and (Path(source) / "new").exists():
            raise OSError("input/output error")
        real(source, destination)

    with pytest.raises(OSError, match="input/output"), replacing_folder(target, "a") as temporary:
        (temporary / "new").write_text("2")
        monkeypatch.setattr(os, "replace", replace)
    assert any(names_in(folder) in ({"old", "a"}, {"new"}) for folder in tmp_path.iterdir())


def test_enough_disk_passes_even_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "yet", 1)
    assert not (tmp_path / "not").exists()


def test_relative_folder_that_does_not_exist_yet_can_be_asked_about() -> None:
    require_disk(Path("not/yet/there"), 1)


def test_too_little_disk_names_what_is_needed_and_what_is_free(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).total * 10
    with pytest.raises(DiskSpaceError) as caught:
        require_disk(tmp_path / "model", needed)
    assert caught.value.needed == needed
    assert 0 <= caught.value.free < needed
    assert caught.value.folder == tmp_path / "model"
    assert f"{needed / 2**30:.1f} GiB are needed" in str(caught.value)


def test_digest_changes_with_content_name_and_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    before = digest_files([a, b])
    assert digest_files([a, b]) == before
    assert len(before) == 16
    assert digest_files([b, a]) != before
    c = a.rename(tmp_path / "c")
    assert digest_files([c, b]) != before
    c.rename(a)
    a.write_text("3")
    assert digest_files([a, b]) != before


def test_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").write_text("same")
    assert digest_files([tmp_path / "x" / "weights"]) == digest_files([tmp_path / "y" / "weights"])


@pytest.mark.parametrize("filled", ["tables", "tables/candidates.parquet"])
def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path, filled: str) -> None:
    target = tmp_path / "smollm2-135m-instruct"
    (target / filled).mkdir(parents=True)
    with pytest.raises(ForeignFolderError, match="choose another `project`"), replacing_folder(target, "config.json"):
        raise AssertionError("work whose result could not be kept")
    assert (target / filled).is_dir()
    assert names_in(tmp_path) == {target.name}


def test_a_folder_that_someone_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ForeignFolderError), replacing_folder(target, "config.json") as temporary:
        (temporary / "config.json").write_text("{}")
        (target / "tables").mkdir(parents=True)
    assert names_in(target) == {"tables"}


def test_an_empty_folder_is_in_nobodys_way(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with replacing_folder(target, "a") as temporary:
        (temporary / "a").write_text("1")
    assert names_in(target) == {"a"}


KILLED = "import os, sys; from pathlib import Path; from srlm_pipeline.files import replacing_folder, replacing_file\n"
KILLED_WRITING = (
    KILLED
    + """
here = Path(sys.argv[1])
with replacing_file(here / "deep" / "table.parquet") as t, replacing_folder(here / "M2", "a") as f:
    t.write_text("half"); (f / "half").mkdir(); os.kill(os.getpid(), 9)
"""
)
KILLED_BETWEEN_RENAMES = (
    KILLED
    + """
with replacing_folder(Path(sys.argv[1]) / "M2", "a") as folder:
    (folder / "a").write_text("new")
    rename = Path.replace
    def once(path, target): rename(path, target); os.kill(os.getpid(), 9)
    Path.replace = once
"""
)


@pytest.mark.parametrize("code", [KILLED_WRITING, KILLED_BETWEEN_RENAMES])
def test_after_a_kill_the_old_folder_is_there_and_nothing_else(tmp_path: Path, code: str) -> None:
    (tmp_path / "M2").mkdir()
    (tmp_path / "M2" / "a").write_text("old")
    (tmp_path / ".hidden.txt").write_text("someone else's")
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".M2.") for path in tmp_path.iterdir())
    tidy(tmp_path)
    assert names_in(tmp_path) - {"deep"} == {"M2", ".hidden.txt"}
    assert (tmp_path / "M2" / "a").read_text() == "old"
    assert not list(tmp_path.rglob(".table*"))


def test_a_scratch_folder_goes_with_its_block_and_after_a_kill_with_tidying(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "probe") as folder:
        (folder / "weights").write_text("1")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == set()
    with scratch_folder(tmp_path / "probe") as folder:
        tidy(tmp_path)
        assert not folder.exists()


def test_what_is_young_may_still_be_written(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "base", "a") as temporary:
        (temporary / "a").write_text("1")
        tidy(tmp_path, everywhere=False, older_than=60)
    assert names_in(tmp_path) == {"base"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_trouble_with_the_disk_is_said_with_place_and_remedy(number: int) -> None:
    said = disk_trouble(OSError(number, "x", "/somewhere/M2"))
    assert said is not None
    assert said.startswith(f"/somewhere/M2: {os.strerror(number)}: ")
    assert "`storage`" in said


@pytest.mark.parametrize(
    ("message", "remedy"),
    [("database or disk is full", "free some disk"), ("attempt to write a readonly database", "make it writable")],
)
def test_trouble_with_a_database_is_seen_behind_the_errors_of_others(message: str, remedy: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        try:
            try:
                raise sqlite3.OperationalError(message)
            except sqlite3.Error as error:
                raise ValueError("as a library says it") from error
        except ValueError as error:
            raise RuntimeError("as another says it") from error
    said = disk_trouble(raised.value)
    assert said is not None
    assert message in said and remedy in said


def test_other_errors_are_no_trouble_with_the_disk() -> None:
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "x", "y")) is None
    assert disk_trouble(OSError("no number")) is None
    assert disk_trouble(sqlite3.OperationalError("no such table: runs")) is None
