"""Whether a way round slow code of another library is in use, and if not, why."""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

SWITCH = "SRLM_PLAIN"
"""Environment variable. A matter of resources: no result is stale because of it."""

log = logging.getLogger(__name__)


def is_switched_off() -> bool:
    """Whether libraries are to be used as they are."""
    return os.environ.get(SWITCH, "0") not in ("", "0")


def on_cpu_only(device_type: str) -> str | None:
    """Say why a way round slow code for CPUs is of no use on a type of device; None on a CPU."""
    return None if device_type == "cpu" else f"models run on {device_type}"


@dataclass(frozen=True)
class Acceleration:
    """A way round slow code of another library.

    Attributes:
        name: What it does, for people.
        library: Whose names it leans on.
        names: What the library must have, as `pkgutil.resolve_name` reads it: functions with these parameters, abstract
            classes with these abstract methods. A last "..." stands for any more, None for whatever.
        unsuited: Says why it is of no use for models on a type of device; None where it is of use.
    """

    name: str
    library: str
    names: Mapping[str, str | None] = field(default_factory=dict)
    unsuited: Callable[[str], str | None] = on_cpu_only

    def obstacle(self, device_type: str) -> str | None:
        """Return why it is not in use, in words; None where it is.

        Args:
            device_type: Of the device that models run on, as torch names it.
        """
        switched_off = f"switched off by {SWITCH}" if is_switched_off() else None
        return switched_off or self.unsuited(device_type) or self._change()

    def in_use(self, device_type: str) -> bool:
        """Whether to go the quick way; warns once where only the library's version speaks against it."""
        if is_switched_off() or self.unsuited(device_type):
            return False
        change = self._change()
        if change:
            _warn_once(f"{change}: going on without '{self.name}', slower and with the same results")
        return change is None

    def _change(self) -> str | None:
        """Return what is not as expected in the installed library."""
        for name, form in self.names.items():
            readable = name.replace(":", ".")
            try:
                found = pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                return f"{self.library} {metadata.version(self.library)} has no {readable}"
            if form is not None and not _has_form(found, form):
                return f"{self.library} {metadata.version(self.library)} has another {readable}"
        return None


def _has_form(thing: Any, form: str) -> bool:
    if not callable(thing):
        return False
    found = ", ".join(
        sorted(thing.__abstractmethods__) if inspect.isabstract(thing) else inspect.signature(thing).parameters
    )
    return found.startswith(form[:-3]) if form.endswith("...") else found == form


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
