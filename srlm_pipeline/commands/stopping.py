"""Ending `srlm run` by Ctrl-C or SIGTERM: soon, by a second one at once, and always so that the same command continues.

Python runs signal handlers in the main thread and between two of its instructions, and Dagster puts its own in place
while a step runs. So signals are watched from a thread as well, which needs neither.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# As shells report a process that Ctrl-C ended.
STATUS = 128 + signal.SIGINT
# Seconds; what is finished is on disk, so that an end without cleaning up loses nothing either.
_GRACE = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """The person, or the machine on its way down, asked for an end."""


@contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[None]:
    """Let signals end what is inside, for a process that ends with it.

    A signal raises `KeyboardInterrupt`, or what Dagster makes of it. The process ends without further ado where that
    does not lead out of the block, and out of the process, within ten seconds, or when a second signal comes.

    Args:
        say: Told what happens; called from another thread.

    Raises:
        StoppedError: When a signal has led out of the block.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    inlet, outlet = socket.socketpair()
    outlet.setblocking(False)
    signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(inlet, outlet, say), name="signals", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt as error:
        say("stopped; the same command continues")
        # The thread goes on watching: other threads may keep the process from ending.
        raise StoppedError from error
    signal.set_wakeup_fd(-1)
    outlet.close()


def _watch(inlet: socket.socket, outlet: socket.socket, say: Callable[[str], None]) -> None:
    with inlet, outlet:
        if not _signal_comes(inlet):
            return
        say("stopping; Ctrl-C again ends it at once")
        inlet.settimeout(_GRACE)
        try:
            if not _signal_comes(inlet):
                return
            said = "ended at once; the same command continues"
        except TimeoutError:
            said = "stopped without waiting any longer; the same command continues"
        say(said)
        os._exit(STATUS)


def _signal_comes(inlet: socket.socket) -> bool:
    """Wait for one of the signals; False where none can come any more."""
    while received := inlet.recv(1):
        if received[0] in _SIGNALS:
            return True
    return False
