"""Files under an address that fsspec knows; what goes wrong there is tried again, and told in a sentence."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from srlm_pipeline.errors import ArchiveError

T = TypeVar("T")
# Seconds; every further one is twice as long.
_FIRST_PAUSE = 1.0
# Another try would say the same.
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError)
# Where folders are but part of a name; to make one there would make a bucket.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
_PROBE = ".probe"


class Remote:
    """A place for files, by names relative to it.

    Args:
        url: Of the place.
        max_retries: Of each call.
        pause: Called with the seconds to wait before another try.

    Raises:
        ArchiveError: If the address cannot be used.
    """

    def __init__(self, url: str, max_retries: int, pause: Callable[[float], None] = time.sleep) -> None:
        from fsspec.core import url_to_fs

        # What stands before an @ may be a password.
        self.address = re.sub(r"//[^/@]*@", "//", url).rstrip("/")
        self._max_retries, self._pause = max_retries, pause
        try:
            self._files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ArchiveError(self.address, f"cannot be used: {error}") from error
        self._root = str(root).rstrip("/")
        named = self._files.protocol
        kinds = {named} if isinstance(named, str) else set(named)
        self._makes_folders = kinds.isdisjoint(_WITHOUT_FOLDERS)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""

        def get() -> bytes | None:
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._tried(f"{name} cannot be read", get)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""

        def put() -> None:
            self._make_folder(name)
            self._files.pipe_file(self._path(name), content)

        self._tried(f"{name} cannot be written", put)

    def put(self, source: Path, name: str) -> None:
        """Copy a file to the place."""

        def put() -> None:
            self._make_folder(name)
            self._files.put_file(str(source), self._path(name))

        self._tried(f"{name} cannot be written", put)

    def get(self, name: str, target: Path) -> bool:
        """Copy a file from the place; returns whether there is one."""

        def get() -> bool:
            try:
                self._files.get_file(self._path(name), str(target))
            except FileNotFoundError:
                return False
            return True

        return self._tried(f"{name} cannot be read", get)

    def remove(self, name: str) -> None:
        """Delete a file; none there is none too many."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._tried(f"{name} cannot be deleted", remove)

    def probe(self) -> None:
        """Write, read and delete a small file.

        Raises:
            ArchiveError: If one of these fails.
        """
        self.write(_PROBE, b"srlm_pipeline was here\n")
        if self.read(_PROBE) is None:
            raise ArchiveError(self.address, "what was written there is not there")
        self.remove(_PROBE)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        if self._makes_folders:
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _tried(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(self._max_retries + 1):
            if attempt:
                self._pause(_FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                return call()
            except Exception as error:
                # Each kind of place has errors of its own, which have no other base in common.
                if attempt == self._max_retries or isinstance(error, _FINAL):
                    raise ArchiveError(self.address, f"{what} ({_in_words(error)})") from error
        raise AssertionError("the last attempt returns or raises")


def _in_words(error: Any) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
