"""The command line as a person meets it: what it prints, how it ends, what it says of mistakes."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from srlm_pipeline import cli
from srlm_pipeline.attempts import read_attempt
from srlm_pipeline.commands import diagnosis, home
from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import OVERRIDES_VARIABLE
from srlm_pipeline.errors import RecordError
from srlm_pipeline.evaluation.promotion import read_decision

Srlm = Callable[..., tuple[int, str]]


@pytest.fixture
def srlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Srlm:
    """Run `srlm ...` in a fresh folder; return its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    for variable in ("DAGSTER_HOME", "SRLM_CONFIG", OVERRIDES_VARIABLE):
        # Set first, so that what the command sets is taken back afterwards.
        monkeypatch.setenv(variable, "x")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(console, "width", 200)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["srlm", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        code = ended.value.code
        return (code if isinstance(code, int) else 0), capsys.readouterr().out

    return run


def test_without_a_command_the_commands_are_listed(srlm: Srlm) -> None:
    _, said = srlm("--help")
    assert all(
        command in said for command in ("run", "plan", "status", "report", "chat", "read", "ui", "doctor", "settings")
    )


def test_every_setting_is_listed_with_its_meaning(srlm: Srlm) -> None:
    code, said = srlm("settings")
    assert code == 0
    assert "dpo.learning_rate" in said
    assert "eft.targets" in said
    assert "differ by no more than this are ties" in said


def test_an_unknown_setting_is_named_with_the_nearest_and_nothing_is_run(srlm: Srlm, tmp_path: Path) -> None:
    code, said = srlm("run", "--set", "dpo.learning_rte=1e-5")
    assert code == 1
    assert "dpo.learning_rte: unknown setting; did you mean 'learning_rate'" in said
    assert not (tmp_path / "dagster_home" / "srlm").exists()


def test_a_broken_configuration_file_is_named(srlm: Srlm, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("dpo: [1, 2\n", encoding="utf-8")
    code, said = srlm("status", "--config", "my.yaml")
    assert code == 1
    assert "my.yaml" in said
    assert "not valid YAML" in said


def test_more_iterations_than_planned_are_refused_before_anything_is_run(srlm: Srlm, tmp_path: Path) -> None:
    code, said = srlm("run", "--iterations", "11")
    assert code == 1
    assert "raise schedule.planned_iterations" in said
    assert not (tmp_path / "dagster_home" / "srlm").exists()


def test_what_is_needed_no_more_is_shown_and_only_deleted_when_asked(srlm: Srlm, tmp_path: Path) -> None:
    code, said = srlm("gc")
    assert (code, "nothing yet" in said) == (0, True)
    left = tmp_path / "dagster_home" / "srlm" / "quickstart" / "tables" / ".candidates.0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"0" * 2048)
    code, said = srlm("gc")
    assert (code, left.exists()) == (0, True)
    assert "half-written by a killed process" in said
    assert "would free 2.0 KiB" in said
    code, said = srlm("gc", "--delete")
    assert (code, left.exists()) == (0, False)
    assert "1 deleted, 2.0 KiB freed" in said


def test_the_status_of_a_new_project_is_an_empty_table(srlm: Srlm) -> None:
    code, said = srlm("status")
    assert code == 0
    assert "Project quickstart" in said


def test_a_report_that_is_not_there_says_how_to_make_it(srlm: Srlm) -> None:
    code, said = srlm("report")
    assert code == 1
    assert "there is no report yet" in said


def test_a_report_is_shown(srlm: Srlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dagster_home" / "srlm" / "quickstart" / "reports"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"iter_00{number}.md").write_text(f"# iteration {number} it is\n", encoding="utf-8")
        for page in ("", "_replies", "_candidates"):
            (folder / f"iter_00{number}{page}.html").write_text("<!DOCTYPE html>\n", encoding="utf-8")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert "iteration 2 it is" in srlm("report")[1]
    assert str(folder / "iter_001.html") in srlm("report", "1")[1].replace("\n", "")
    assert opened == []
    assert "iteration 1 it is" in srlm("report", "1", "--open")[1]
    assert opened == [(folder / "iter_001.html").as_uri()]


def test_talking_to_a_model_that_is_not_there_names_those_that_are(srlm: Srlm) -> None:
    code, said = srlm("chat", "M7")
    assert code == 1
    assert "model M7: does not exist; there are: base" in said


def test_words_in_brackets_are_shown_and_not_taken_for_markup(srlm: Srlm, monkeypatch: pytest.MonkeyPatch) -> None:
    from srlm_pipeline.errors import MissingPredecessorError

    def fail(*_: object) -> None:
        raise MissingPredecessorError(2, "iteration_model[iter_001]")

    monkeypatch.setattr(cli, "load_settings", fail)
    assert "iteration_model[iter_001]" in srlm("status")[1]


def test_the_doctor_finds_this_machine_ready_and_says_what_it_will_use(
    srlm: Srlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "COMFORTABLE_MEMORY", 0)
    monkeypatch.setattr(diagnosis, "COMFORTABLE_DISK", 0)
    code, said = srlm("doctor")
    assert code == 0
    assert "computing in" in said
    assert "torch 2." in said
    assert "keys and values in place" in " ".join(said.split())
    assert "182 instruction pairs, 100 judging prompts, 70 evaluation prompts" in said
    assert "not independent (M1, which every later model descends from" in " ".join(said.split())
    assert "nearness to reference replies" in " ".join(said.split())
    assert "ready" in said


def test_the_doctor_counts_what_is_left_out_of_the_data(srlm: Srlm, tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "response": "b"}', "{", '{"prompt": "c"}', "{"]
    (tmp_path / "ift.jsonl").write_text("\n".join(rows), encoding="utf-8")
    _, said = srlm("doctor", "--set", f"data.ift={tmp_path}/ift.jsonl", "--set", "data.bad_rows=skip")
    said = " ".join(said.split())
    assert "1 instruction pairs (left out: 2 bad row: not valid JSON, 1 bad row: response: Field required)" in said
    assert "100 judging prompts, 70 evaluation prompts" in said


def test_the_doctor_knows_whose_answers_the_models_will_meet(srlm: Srlm, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    for generator, found in (
        ("qwen2.5-7b@q4_k_m", r"ok +other answers +qwen2.5-7b@q4_k_m"),
        ("M2", "!! +other answers"),
    ):
        path.write_text(json.dumps([{"instruction": "Hi", "output": "Yes.", "generator": generator}]))
        _, said = srlm("doctor", "--set", f"evaluation.other_answers=[{path}]")
        assert re.search(found, said), said


def test_the_doctor_marks_what_is_wrong_and_goes_on(
    srlm: Srlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "ift.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n', encoding="utf-8")
    monkeypatch.setattr(diagnosis, "COMFORTABLE_DISK", 2**60)
    code, said = srlm("doctor", "--set", f"base_model={tmp_path}/model", "--set", f"data.ift={tmp_path}/ift.jsonl")
    assert code == 1
    assert "no tokenizer could be loaded" in said
    assert "ift.jsonl, line 2: not valid JSON" in said
    assert "not ready" in said
    assert "GiB" in said


@pytest.mark.parametrize("name", ["a#b", "a%20b", "a?b"])
def test_a_home_that_databases_cannot_name_is_refused(
    srlm: Srlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / name))
    code, said = srlm("status")
    assert code == 1
    assert "choose another folder" in said
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("command", [("run", "-n", "0"), ("status",), ("ui",)])
def test_a_home_that_is_read_only_is_said_so(
    srlm: Srlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    # Whoever runs the tests may be allowed to write everywhere.
    monkeypatch.setattr(home.os, "access", lambda path, mode: Path(path) != tmp_path / "home")
    code, said = srlm(*command)
    assert code == 1
    assert f"DAGSTER_HOME {tmp_path / 'home'}: cannot be written to" in said


def test_a_home_that_cannot_be_written_to_is_said_so(
    srlm: Srlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file" / "home"))
    code, said = srlm("status")
    assert code == 1
    assert "Not a directory" in said
    assert "DAGSTER_HOME" in said
    assert "Traceback" not in said


def test_a_damaged_decision_or_attempt_is_named_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "iter_001.json"
    for content in (b"", b"[]", b'{"rules": 3}', b"\xff", b"{}"):
        path.write_bytes(content)
        for read in (read_decision, read_attempt):
            if read is read_attempt and content == b"{}":
                continue
            with pytest.raises(RecordError, match=r"iter_001\.json cannot be read.*delete it"):
                read(path)
