"""A Flower `Grid` whose nodes live in a child process: what the server's process and a client pay for a round, and what is sent.

Messages cross a pipe in Flower's own encoding. Neither side is charged for that, nor for what `Idle` covers; all else that a
process does is its own. So the peak memory of this process is the server's.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from shared.errors import Unsupported
from shared.flower import new_message, reply_error, reply_with, stamp
from simulations.local_grid import AnsweringGrid

Handle = Callable[[Message, Context], Message]


@dataclass
class Idle:
    """CPU seconds that are nobody's: making the vectors."""

    spent_s: float = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.spent_s += time.process_time() - began


# Of `Idle` and arguments: how they answer, and what the server must know of them.
Clients = Callable[..., tuple[Handle, bytes]]


@dataclass
class Stage:
    """Of a round, over all clients that answered."""

    answers: int = 0
    client_s: float = 0.0
    bytes_up: int = 0


@dataclass
class PipeGrid(AnsweringGrid):
    """`clients(Idle(), *arguments)` is called in the child; `stage_of` names what a message asks. Close it when done.

    From a round's stage `vanish_at[0]` on the nodes `vanish_at[1]` answer nothing; asked there, they do not even begin. `stages`
    is what the round has cost the clients, `own_s` what crossing the pipe has cost this process.
    """

    clients: Clients
    arguments: Sequence[Any]
    stage_of: Callable[[Message], str]
    greeting: bytes = field(init=False, default=b"")
    stages: dict[str, Stage] = field(init=False, default_factory=dict)
    own_s: float = field(init=False, default=0.0)
    vanish_at: tuple[str, frozenset[int]] = field(init=False, default=("", frozenset()))
    _vanished: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._child = context.Process(target=serve, args=(far, self.clients, self.arguments), daemon=True)
        self._child.start()
        far.close()
        self.greeting = self._pipe.recv_bytes()

    def close(self) -> None:
        self._pipe.close()
        self._child.join()

    def begin(self, stage: str = "", gone: frozenset[int] = frozenset()) -> None:
        """A round, in which `gone` vanish at `stage`."""
        self.stages, self.own_s, self.vanish_at, self._vanished = {}, 0.0, (stage, gone), False

    @property
    def client_s(self) -> float:
        """CPU seconds of a client that answers in every stage of the round."""
        return sum(stage.client_s / stage.answers for stage in self.stages.values())

    @property
    def bytes_up(self) -> float:
        """What such a client sends in the round."""
        return sum(stage.bytes_up / stage.answers for stage in self.stages.values())

    def get_node_ids(self) -> Iterable[int]:
        raise Unsupported("whoever measures knows its nodes")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.stream(messages))

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            began = time.process_time()
            reply = self._ask(message)
            self.own_s += time.process_time() - began
            if reply is not None:
                yield reply

    def _ask(self, message: Message) -> Message | None:
        name, node = self.stage_of(message), message.metadata.dst_node_id
        stage, gone = self.vanish_at
        self._vanished |= name == stage
        if self._vanished and node in gone:
            return None
        stamp(message, run_id=AnsweringGrid.run_id, message_id="m")
        self._pipe.send_bytes(json.dumps([node, message.metadata.message_type]).encode())
        self._pipe.send_bytes(_encoded(message.content))
        spent_s, error = json.loads(self._pipe.recv_bytes())
        body = self._pipe.recv_bytes()
        found = self.stages.setdefault(name, Stage())
        found.answers, found.client_s = found.answers + 1, found.client_s + spent_s
        found.bytes_up += len(body)
        return reply_error(message, *error) if error else reply_with(message, _decoded(body))


def serve(pipe: Connection, clients: Clients, arguments: Sequence[Any]) -> None:
    """The child: all clients, until the pipe is closed."""
    idle, contexts = Idle(), dict[int, Context]()
    handle, greeting = clients(idle, *arguments)
    pipe.send_bytes(greeting)
    try:
        while True:
            node, kind = json.loads(pipe.recv_bytes())
            message = new_message(
                _decoded(pipe.recv_bytes()), run_id=AnsweringGrid.run_id, node_id=node, message_type=kind
            )
            stamp(message, run_id=AnsweringGrid.run_id, message_id="m")
            context = contexts.setdefault(node, Context(AnsweringGrid.run_id, node, {}, RecordDict(), {}))
            began = time.process_time() - idle.spent_s
            reply = handle(message, context)
            spent_s = time.process_time() - idle.spent_s - began
            error = [reply.error.code, reply.error.reason] if reply.has_error() else None
            pipe.send_bytes(json.dumps([spent_s, error]).encode())
            pipe.send_bytes(b"" if error else _encoded(reply.content))
    except EOFError:
        return


def _encoded(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def _decoded(body: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(body))


class Memory:
    """The most that this process has held since, in bytes more than it held when this was made. Linux only."""

    def __init__(self) -> None:
        self.again()
        self._before = _status("VmRSS")

    def again(self) -> None:
        """The peak begins anew (proc(5)); what it is compared with stays."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        return _status("VmHWM") - self._before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not tell {name}")
