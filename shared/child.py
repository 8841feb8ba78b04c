"""What a child process of ours does for its supervisor: end when that ends, and say on standard output that it is ready."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its supervisor dies, however it dies (Linux; elsewhere a supervisor that is killed
    leaves it running). The signal is tied to the supervisor's thread that started us: its event loop's. 0: no supervisor.
    """
    if sys.platform != "linux" or not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(1)


def claim_stdout() -> Callable[[str], None]:
    """Keep standard output for one line to the supervisor, which reads no more than that: what code that we do not know prints
    goes to standard error, where a full pipe cannot stop it. Returns how to say the line.
    """
    sys.stdout.flush()
    handle = os.dup(1)
    os.dup2(2, 1)

    def say(line: str) -> None:
        with os.fdopen(handle, "w", encoding="utf-8") as pipe:
            pipe.write(f"{line}\n")

    return say
