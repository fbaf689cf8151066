"""Clicking through what a person looks at in the morning, in a browser without a window."""

import shutil
from pathlib import Path

import pytest
from processes import started, write_configuration

pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("there is no Chromium with its driver", allow_module_level=True)

from browser import opened
from tour import STOPS, look, served

pytestmark = pytest.mark.slow


def test_everything_is_where_a_person_looks_for_it(tiny_model: Path, tmp_path: Path) -> None:
    home, configuration = tmp_path / "home", write_configuration(tmp_path, tiny_model)
    with started(home, configuration, "run", "-n", "1") as run:
        assert run.ends() == 0, run.said
    with served(home, configuration) as place, opened() as browser:
        for stop in STOPS:
            picture = look(stop, browser, place, tmp_path, settle=0)
            assert picture.stat().st_size < 200_000, "small enough to be kept"
