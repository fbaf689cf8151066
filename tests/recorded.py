"""Which settings an asset really reads while it is materialized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from srlm_pipeline.assets import stage
from srlm_pipeline.config import Section, Settings, role_of
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import definition_settings


class Recorder:
    """Dotted keys of the settings that were read, by asset; the declarations' own reading is left out."""

    def __init__(self) -> None:
        self.read: dict[str, set[str]] = defaultdict(set)
        self._asset: str | None = None
        self._paused = 0
        # The sections are kept, so that no other object can have their place in memory.
        self._paths: dict[int, tuple[str, Section]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        plain = Section.__getattribute__

        def recording(section: Section, name: str) -> Any:
            value = plain(section, name)
            if name not in type(section).model_fields:
                return value
            known = ("", section) if isinstance(section, Settings) else self._paths.get(id(section))
            if known is None:
                # No part of the project's settings: defaults, or a copy with other values.
                return value
            key = f"{known[0]}.{name}".lstrip(".")
            if isinstance(value, Section):
                self._paths[id(value)] = (key, value)
            elif self._asset and not self._paused:
                self.read[self._asset].add(key)
            return value

        def begin(context: Any, project: Any) -> None:
            self._asset = context.asset_key.to_user_string()

        patch.setattr(Section, "__getattribute__", recording)
        patch.setattr(stage, "warn_of_edits", begin)
        for name in ("keys", "all_keys", "fingerprint"):
            patch.setattr(Reads, name, self._unrecorded(getattr(Reads, name)))
        # Where `srlm run` loads the definitions with its overrides, these were loaded without: nothing would be fresh.
        version = self._unrecorded(Reads.version)
        patch.setattr(Reads, "version", lambda reads, _: version(reads, definition_settings()))
        working = stage.user_errors

        @contextmanager
        def until_the_end() -> Iterator[None]:
            with working():
                try:
                    yield
                finally:
                    self._asset = None

        patch.setattr(stage, "user_errors", until_the_end)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _unrecorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*args: Any) -> Any:
            with self._pause():
                return function(*args)

        return paused


def is_resource(key: str) -> bool:
    """Return whether a setting, or a section that it is in, decides only how something is computed."""
    model: type[Section] = Settings
    for part in key.split("."):
        field = model.model_fields[part]
        if role_of(field) == "resources":
            return True
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            model = field.annotation
    return False
