"""What a stage reads beside its inputs, declared once: versions, unfinished training and MLflow's parameters follow.

A result is up to date as long as its code version is: the package's version, the settings that change results or
verdicts, and what lies in the files and models that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from srlm_pipeline import __version__
from srlm_pipeline.config import Settings

Keys = Sequence[str] | Callable[[Settings], Sequence[str]]


def _nothing(_: Settings) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Reads:
    """The declaration.

    Attributes:
        settings: Dotted paths of sections or fields that change the result; which they are may depend on others.
        verdicts: Of those that change only what is thought of it.
        contents: Gives digests of whatever lies outside of the settings.
    """

    settings: Keys = ()
    verdicts: Sequence[str] = ()
    contents: Callable[[Settings], Sequence[str]] = _nothing

    def keys(self, settings: Settings) -> tuple[str, ...]:
        """Return the paths that change the result under these settings."""
        return tuple(self.settings(settings) if callable(self.settings) else self.settings)

    def all_keys(self, settings: Settings) -> tuple[str, ...]:
        """Return the paths of results and verdicts: all that is read under these settings."""
        return (*self.keys(settings), *self.verdicts)

    def fingerprint(self, settings: Settings) -> str:
        """Return what unfinished work is kept under: as long as it is the same, the work can go on."""
        return settings.fingerprint(*self.keys(settings))

    def version(self, settings: Settings) -> str:
        """Return the code version: as long as it is the same, what was made and said of it still holds."""
        # The project is part of it: two projects in one Dagster home must not take each other's work for their own.
        chosen = settings.fingerprint("project", "storage", *self.all_keys(settings))
        return "-".join([__version__, chosen, *filter(None, self.contents(settings))])


# Of every stage, by the name of its asset.
STAGES: dict[str, Reads] = {}
