"""The frame of an asset: what a retry would not help is a failure in plain words, and an interruption is for good."""

import errno

import dagster as dg
import pytest

from srlm_pipeline.assets.stage import user_errors
from srlm_pipeline.errors import ModelError
from srlm_pipeline.resources.project import InterruptedFailure, ProjectResource


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("M2", "is damaged"), "model M2: is damaged"),
        (PermissionError(errno.EACCES, "x", "/store/models"), "/store/models: Permission denied"),
        (OSError(errno.EROFS, "x", "/store"), "/store: Read-only file system"),
    ],
)
def test_what_a_user_can_mend_is_not_tried_again(error: Exception, said: str) -> None:
    with pytest.raises(dg.Failure) as caught, user_errors():
        raise error
    assert said in (caught.value.description or "")
    assert not caught.value.allow_retries


def test_a_fault_of_the_program_stays_one() -> None:
    with pytest.raises(FileNotFoundError), user_errors():
        raise FileNotFoundError(errno.ENOENT, "x", "somewhere")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_an_interruption_is_not_tried_again_and_ends_the_steps_after_it(interruption: type[BaseException]) -> None:
    project, begun = ProjectResource(), []
    with pytest.raises(InterruptedFailure) as caught, project.interruptible():
        raise interruption
    assert not caught.value.allow_retries
    with pytest.raises(InterruptedFailure), project.interruptible():
        begun.append("another step of the same process")
    assert begun == []
    with ProjectResource().interruptible():
        begun.append("a step of another run")
    assert begun


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_a_retry_policy_leaves_an_interruption_alone(interruption: type[BaseException]) -> None:
    project, tries, later = ProjectResource(), [], []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=3))
    def training() -> None:
        with project.interruptible():
            tries.append(1)
            raise interruption

    @dg.asset
    def beside() -> None:
        with project.interruptible():
            later.append(1)

    with dg.instance_for_test() as instance:
        result = dg.materialize([training, beside], instance=instance, raise_on_error=False)
        kinds = [event.event_type for event in result.all_events]
    assert len(tries) == 1
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    assert len(later) <= 1, "it may have come first"
    assert not result.success
