"""The trainer as a process: `python -m edge_agent.trainer --socket PATH --settings JSON --memory-mib N --parent PID`.

Once the socket answers, a line goes to standard output, so that the supervisor can wait without polling. It is niced, capped in
memory, and dies with its supervisor.

The cap is RLIMIT_DATA, which counts writable private memory: heap, arenas and tensors, not the gigabytes of libraries that torch
maps (RLIMIT_AS counts those). Too much is then a MemoryError inside one task, where a watchdog that kills on resident size would
come after the memory is gone, and take the keys of rounds under way with it.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.child import claim_stdout, die_with

NICE = 10
KEPT_MEMORY_MIB = 64


def _limit(memory_mib: int) -> None:
    with contextlib.suppress(OSError):  # some containers forbid it
        os.nice(NICE)
    if memory_mib:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.trainer", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to be controlled at")
    parser.add_argument("--settings", required=True, help="folders and policy of this device, JSON")
    parser.add_argument("--memory-mib", type=int, default=0, help="cap on writable memory; 0: none")
    parser.add_argument("--parent", type=int, default=0, help="end when the process with this id ends")
    options = parser.parse_args(arguments)
    die_with(options.parent)
    _limit(options.memory_mib)
    say = claim_stdout()  # client apps print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    from edge_agent.trainer import server
    from edge_agent.trainer.worker import Worker, WorkerSettings
    from shared.allocator import keep_freed_memory
    from shared.errors import ShoalError
    from shared.observe import configure_logs
    from shared.settings import from_mapping

    keep_freed_memory(KEPT_MEMORY_MIB)
    try:
        settings = from_mapping(WorkerSettings, json.loads(options.settings))
        configure_logs(level=settings.log_level, as_json=settings.log_json)  # plain tracebacks: no values of examples
        worker = Worker(settings)
        listening = server.start(worker, options.socket)
    except ShoalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    say("ready")
    listening.wait_for_termination()
    return 0


if __name__ == "__main__":
    sys.exit(main())
