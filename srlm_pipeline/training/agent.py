"""torchrun, ended by the operating system when the process that started it ends, however that comes about.

torchrun puts every process that it starts into a session of its own, so that a signal to torchrun's group reaches none
of them. Linux can send a process a signal at its parent's end; each asks for that.
"""

from __future__ import annotations

import ctypes
import os
import signal

# Names the process whose end is to be one's own.
PARENT = "SRLM_TRAINING_PARENT"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends.

    Linux takes the end of the thread that started it for that.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        # It ended before it was asked for.
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.run import main

    main()
