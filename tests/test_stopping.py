"""`srlm run` ended by signals, as a process: soon, without a second attempt, and so that it continues."""

import signal
from pathlib import Path

import dagster as dg
import pytest
from processes import started, write_configuration

pytestmark = pytest.mark.slow

# Long enough to be hit in the middle.
LONG = {"sft": {"epochs": 500, "save_every": 2}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_without_a_second_attempt_and_the_same_command_continues(
    tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    home, configuration = tmp_path / "home", write_configuration(tmp_path, tiny_model, **LONG)
    work = home / "srlm" / "quickstart" / "work" / "sft_baseline"
    with started(home, configuration, "run", "-n", "0") as run:
        run.wait_until(lambda: list(work.glob("*/checkpoint-*/srlm_complete.json")))
        run.send(number)
        assert run.ends() == 130
        assert "stopped; the same command continues" in run.said
        assert "Traceback" not in run.said
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (record,) = instance.get_run_records()
        kinds = {event.dagster_event_type for event in instance.all_logs(record.dagster_run.run_id)}
        assert record.dagster_run.is_finished
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    with started(home, configuration, "run", "-n", "0") as again:
        again.wait_for("training the SFT baseline: continuing")
        again.send(number)
        again.send(number)
        assert again.ends() == 130
        assert "the same command continues" in again.said
