"""`python -m edge_agent.inference`: the inference service as a process of its own.

Writes one JSON line, `{"ready": true, "port": …, "pid": …}`, to standard output once it answers. Ends on SIGTERM, on
the control socket's Shutdown, and, with `--with-parent`, when its standard input closes: the supervisor holds the
other end of that pipe, so a supervisor that dies in whatever way takes its service with it, and nothing else does.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from edge_agent.inference.engine import MAX_MODEL_BYTES, Engine
from edge_agent.inference.server import ControlServer, InferenceServer, check_socket_path
from shared.errors import ShoalError

_DRAIN_S = 5.0
_SWITCH_INTERVAL_S = 0.0005


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.inference", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--control", type=Path, required=True, metavar="PATH", help="Unix socket for the supervisor")
    parser.add_argument("--host", default="127.0.0.1", help="address of the inference protocol (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="its port; 0 lets the system choose")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="Unix socket for the inference protocol as well")
    parser.add_argument("--max-model-bytes", type=int, default=MAX_MODEL_BYTES, metavar="N")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    return parser.parse_args(argv)


async def serve(arguments: argparse.Namespace) -> None:
    """Runs until told to stop, then drains."""
    loop = asyncio.get_running_loop()
    ending: asyncio.Future[float] = loop.create_future()

    def end(timeout_s: float) -> None:
        if not ending.done():
            ending.set_result(timeout_s)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, _DRAIN_S)
    if arguments.with_parent:
        loop.add_reader(sys.stdin.fileno(), _watch_parent, loop, end)
    engine = Engine(max_model_bytes=arguments.max_model_bytes)
    control = ControlServer(engine, arguments.control, end)
    server = InferenceServer(engine, host=arguments.host, port=arguments.port, socket=arguments.socket)
    await server.start()
    await control.start()
    sys.stdout.write(json.dumps({"ready": True, "port": server.port, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    timeout_s = await ending
    await engine.close(timeout_s)
    await server.stop(0.5)
    await control.stop(0.5)


def _watch_parent(loop: asyncio.AbstractEventLoop, end: Callable[[float], None]) -> None:
    """Standard input is readable: the parent writes nothing, so it is the end of it."""
    if not os.read(sys.stdin.fileno(), 1):
        loop.remove_reader(sys.stdin.fileno())
        end(_DRAIN_S)


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="inference: %(message)s")
    os.umask(0o077)
    # The worker threads need the interpreter for a moment after each run: do not let them queue behind the loop for
    # the default 5 ms.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        check_socket_path(arguments.control)
        _run(arguments)
    except ShoalError as error:
        sys.stderr.write(f"inference: {error}\n")
        return error.exit_code
    return 0


def _run(arguments: argparse.Namespace) -> None:
    try:
        import uvloop
    except ImportError:  # not on every platform; asyncio's own loop answers the same
        asyncio.run(serve(arguments))
    else:
        uvloop.run(serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
