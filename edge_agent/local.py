"""A word with the running agent over its Unix socket: one line of JSON each way."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from shared.errors import Malformed, Unavailable

_MAX_LINE = 1 << 20
_TIMEOUT_S = 5.0
Status = Mapping[str, Any]


async def serve(path: Path, status: Callable[[], Awaitable[Status]]) -> asyncio.Server:
    """Listen at `path`, which lies in a folder for the agent's user alone."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
            async with asyncio.timeout(_TIMEOUT_S):
                question = await reader.readline()
            reply = await status() if question.strip() == b'"status"' else {"error": "not understood"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = await asyncio.start_unix_server(answer, path, limit=_MAX_LINE)
    os.chmod(path, 0o600)
    return server


def ask(path: Path) -> Status:
    """The running agent's status. Raises `Unavailable` when none runs."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b'"status"\n')
            data = b""
            while not data.endswith(b"\n") and (piece := connection.recv(65536)):
                data += piece
    except OSError as error:
        raise Unavailable("no agent runs here", detail=str(error)) from error
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Malformed("the agent's answer is not JSON") from error
    if not isinstance(value, dict):
        raise Malformed("the agent's answer is not a status")
    return value
