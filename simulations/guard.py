"""Outlives the simulator just long enough to end its processes: waits for standard input to close, then kills what
carries the mark.

Every process of a simulation has `SHOAL_SIMULATION=MARK` in its environment, and its children inherit it, so nothing
is missed: not a grandchild, not one that moved to a session of its own, not one whose parent was killed before it.
"""

import contextlib
import os
import signal
import sys

import psutil

MARK_VARIABLE = "SHOAL_SIMULATION"
_PASSES = 5


def marked(mark: str) -> list[psutil.Process]:
    """The live processes that carry `mark`, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK_VARIABLE) == mark:
                found.append(process)
    return found


def kill_marked(mark: str) -> int:
    """SIGKILL all that carry `mark`; again, because one may have forked meanwhile. Returns how many were killed."""
    killed = 0
    for _ in range(_PASSES):
        processes = marked(mark)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not processes:
            break
        killed += len(processes)
        psutil.wait_procs(processes, timeout=5)
    return killed


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mark = sys.argv[1]
    sys.stdin.buffer.read()  # ends when the simulator closes its end, however it ends
    kill_marked(mark)


if __name__ == "__main__":
    main()
