"""Errors written for the person who reads them: what was wrong, where, and what to do.

One type per kind of failure, with its facts as attributes, so that the command line and Dagster can
show the sentence and tests can check the facts.
"""

from __future__ import annotations

from pathlib import Path


class SrlmError(Exception):
    """Base of every error that a user can cause and mend."""


class SettingsError(SrlmError):
    """The configuration is not valid.

    Attributes:
        problems: One sentence per wrong field, each naming the field's dotted path.
    """

    def __init__(self, problems: list[str], source: str = "settings") -> None:
        self.problems = problems
        self.source = source
        super().__init__(f"{source} is not valid:\n" + "\n".join(f"  - {p}" for p in problems))


class DataError(SrlmError):
    """A data source holds something that cannot be used.

    Attributes:
        path: The file, or the name of the dataset.
        line: Number of the line or row, from 1; None where the whole file is meant.
        reason: What is wrong and what is expected.
    """

    def __init__(self, path: Path | str, line: int | None, reason: str, unit: str = "line") -> None:
        self.path = Path(path)
        self.line = line
        self.reason = reason
        where = f"{path}, {unit} {line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {reason}")


class EmptyDataError(SrlmError):
    """A stage was given, or has produced, no rows at all."""


class ModelError(SrlmError):
    """A model folder cannot be loaded or lacks a part that the pipeline needs.

    Attributes:
        model: Folder or hub name.
        reason: What is missing and what to do.
    """

    def __init__(self, model: Path | str, reason: str) -> None:
        self.model = str(model)
        self.reason = reason
        super().__init__(f"model {model}: {reason}")


class ServerError(SrlmError):
    """A model server cannot be reached, refuses, or answers with what cannot be used.

    Attributes:
        address: Of the server.
        reason: What it did and what to do.
        status: HTTP status of its answer, if it was one that tells of a failure.
    """

    def __init__(self, address: str, reason: str, status: int | None = None) -> None:
        self.address = address
        self.reason = reason
        self.status = status
        super().__init__(f"server {address}: {reason}")


class BudgetError(ServerError):
    """As many requests were sent to a server as may be.

    Attributes:
        sent: Requests, tries that failed included.
        answered: Answers that came of them; they are in the journal.
    """

    def __init__(self, address: str, sent: int, answered: int) -> None:
        self.sent = sent
        self.answered = answered
        super().__init__(
            address,
            f"the budget of {sent} requests (server.max_requests) is spent. The {answered} answers that came of them "
            "are kept: run it again to go on from there, or raise server.max_requests",
        )


class DivergedError(SrlmError):
    """A training came to figures that are no numbers.

    Attributes:
        step: Optimiser step, from 1.
        figure: Which one: ``loss`` or ``grad_norm``.
        learning_rate: The highest of the training.
    """

    def __init__(self, description: str, step: int, figure: str, value: float, learning_rate: float) -> None:
        self.step, self.figure, self.learning_rate = step, figure, learning_rate
        what = {"loss": "the loss", "grad_norm": "the norm of the gradient"}[figure]
        super().__init__(
            f"{description}: at step {step} {what} is {value}, and nothing is saved. Lower this stage's "
            f"learning_rate, now {learning_rate:g}; or set model.dtype to float32"
        )


class DeviceMemoryError(SrlmError):
    """A device's memory ran out.

    Attributes:
        work: What was being done.
        remedy: A sentence that names the settings to change.
    """

    def __init__(self, work: str, remedy: str) -> None:
        self.work, self.remedy = work, remedy
        super().__init__(f"{work}: the device's memory ran out. {remedy}")


class DivisionError(SrlmError):
    """A training cannot be divided among processes as the settings ask."""


class HarnessError(SrlmError):
    """lm-evaluation-harness, or the data of one of its tasks, is not to be had here.

    Attributes:
        task: The task's name; None where the library itself is meant.
        reason: What is missing and what to do.
    """

    def __init__(self, task: str | None, reason: str) -> None:
        self.task = task
        self.reason = reason
        where = f"task {task} of lm-evaluation-harness" if task else "lm-evaluation-harness"
        super().__init__(f"{where}: {reason}")


class MissingPredecessorError(SrlmError):
    """An iteration was asked for whose entering model does not exist.

    Attributes:
        iteration: The iteration that was asked for.
        missing: The asset (and partition) to materialize first.
    """

    def __init__(self, iteration: int, missing: str) -> None:
        self.iteration = iteration
        self.missing = missing
        super().__init__(
            f"iteration {iteration} starts from a model that does not exist yet: materialize {missing} first"
        )


class NoticeError(SrlmError):
    """A message could not be sent. It never holds an address, which may hold a password."""


class DiskSpaceError(SrlmError):
    """There is not enough free disk for what a stage is about to write.

    Attributes:
        folder: Where the stage writes.
        needed: Bytes needed.
        free: Bytes free.
    """

    def __init__(self, folder: Path | str, needed: int, free: int) -> None:
        self.folder = Path(folder)
        self.needed = needed
        self.free = free
        super().__init__(
            f"{folder} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed: free some disk, "
            "or set `storage` in the configuration to a larger one"
        )


class ForeignFolderError(SrlmError):
    """Something that the pipeline did not put there lies where a folder of its own belongs.

    Attributes:
        folder: The place.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        super().__init__(
            f"{folder} is in the way: the pipeline did not make it and replaces nothing that is not its own. "
            "Move it elsewhere, or choose another `project` or `storage`"
        )


class RecordError(SrlmError):
    """A file in which the pipeline wrote something down cannot be read.

    Attributes:
        path: The file.
        remedy: What to do.
    """

    def __init__(self, path: Path | str, error: Exception, remedy: str) -> None:
        self.path, self.remedy = Path(path), remedy
        super().__init__(f"{path} cannot be read ({type(error).__name__}: {error}): {remedy}")


class HomeError(SrlmError):
    """A folder cannot be a Dagster home.

    Attributes:
        home: The folder.
        reason: Why not, and what to do.
    """

    def __init__(self, home: Path | str, reason: str) -> None:
        self.home, self.reason = Path(home), reason
        super().__init__(f"DAGSTER_HOME {home}: {reason}")


class HomeInUseError(SrlmError):
    """Another process computes in the same Dagster home.

    Attributes:
        home: The folder.
        process: Its process id; None where it is a step that Dagster started.
        since: When it began, in UTC, as ISO 8601 has it.
    """

    def __init__(self, home: Path | str, process: int | None, since: str | None) -> None:
        self.home, self.process, self.since = Path(home), process, since
        who = f"`srlm run`, process {process}, since {since}," if process else "a step of a run that Dagster started"
        super().__init__(f"{who} is at work in {home}: wait for it, or end it first")


class ArchiveError(SrlmError):
    """The durable copy cannot be reached, read or written.

    Attributes:
        address: Of the copy, without a password.
        reason: What happened.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address, self.reason = address, reason
        super().__init__(f"archive {address}: {reason}")


class ArchiveConflictError(ArchiveError):
    """Another machine has written to the durable copy since this home last did.

    Attributes:
        names: What both have made, and differently; blank if there is nothing.
    """

    def __init__(self, address: str, by: str, at: str, names: str, root: Path) -> None:
        self.names = names
        who = f"{by or 'somebody'} has written there since this home last did ({at or 'nothing is there now'})"
        what = (
            f", and both have made {names}. To go on with what is there, move {root} and the Dagster home away; to go "
            "on with what is here, choose another archive.url"
            if names
            else ". One machine works at a time: `srlm run` or `srlm ui` here takes what is there first"
        )
        super().__init__(address, who + what)


class HubError(SrlmError):
    """Something could not be sent to the model hub.

    Attributes:
        repository: Where to; None where it was not tried.
        reason: What happened and what to do.
    """

    def __init__(self, repository: str | None, reason: str) -> None:
        self.repository, self.reason = repository, reason
        super().__init__(f"hub, repository {repository}: {reason}" if repository else reason)


class TableError(SrlmError):
    """A table does not follow its declared schema.

    Attributes:
        table: The table's name.
        problems: One sentence per violation.
    """

    def __init__(self, table: str, problems: list[str]) -> None:
        self.table = table
        self.problems = problems
        super().__init__(f"table {table} breaks its schema: " + "; ".join(problems))


class AssessmentError(TableError):
    """What was measured of a model is missing, damaged, or of other prompts than what it is to be compared with."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("assessment", problems)
        self.args = ("; ".join(problems),)
