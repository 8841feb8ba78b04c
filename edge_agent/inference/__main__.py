"""The inference service as a process: `python -m edge_agent.inference --control PATH --port 0 --ready FILE`.

Once both listeners answer, FILE appears whole with {"pid", "port", "address"}, and the same line goes to standard output,
so that a supervisor can wait without polling. SIGTERM, SIGINT and Slots.Shutdown drain; a second signal ends it at once.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.inference.engine import Engine
from edge_agent.inference.server import HOST, OipListener, remove_file, start_control
from shared.child import claim_stdout, die_with
from shared.errors import ShoalError, StorageFull
from shared.files import atomic_file

_DRAIN_S = 5.0


async def serve(control: Path, port: int, ready: Path, say: Callable[[str], None]) -> None:
    """Runs until it is told to stop. Raises `Unavailable`, `ConfigError`."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[float] = loop.create_future()

    def shut_down(timeout_s: float) -> None:
        if not stopping.done():
            stopping.set_result(timeout_s)

    def signalled() -> None:
        if stopping.done():
            os._exit(1)
        shut_down(_DRAIN_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    engine = Engine()
    listener = OipListener(engine)
    await listener.start(port)
    controller = await start_control(engine, control, shut_down)
    line = json.dumps({"pid": os.getpid(), "port": listener.port, "address": f"{HOST}:{listener.port}"})
    try:
        with atomic_file(ready, durable=False) as file:  # it means nothing after a restart
            file.write(line.encode())
    except StorageFull as error:  # requests are answered all the same, and the supervisor reads the line
        print(f"warning: {error}", file=sys.stderr)
    say(line)
    gc.freeze()  # what is loaded by now stays; collections need not look at it
    timeout_s = await stopping
    remove_file(ready)
    await listener.stop(timeout_s)
    await controller.stop(0.2)
    remove_file(control)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--control", type=Path, required=True, help="Unix socket to be controlled at")
    parser.add_argument("--port", type=int, default=0, help="loopback port of the Open Inference Protocol; 0: any")
    parser.add_argument("--ready", type=Path, required=True, help="file to write once requests are answered")
    parser.add_argument("--parent", type=int, default=0, help="end when the process with this id ends")
    options = parser.parse_args(arguments)
    die_with(options.parent)
    say = claim_stdout()
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:  # not on every platform; asyncio's own loop answers the same
        factory = None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(options.control, options.port, options.ready, say))
    except ShoalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a worker thread that a runtime never returned from must not hold the process
