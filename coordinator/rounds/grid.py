"""`FleetGrid`: Flower's `Grid` on our session streams. Any stock strategy runs on a real fleet through it, unchanged.

A round's global arrays are encoded once, stored once as a blob, and fetched by each device once; small records travel inside the
command. It returns one reply a message, an error reply for each device that failed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.fleet.ports import Sessions
from coordinator.rounds.closing import Closing
from coordinator.rounds.dispatch import Answer, Cancellation, Dispatcher
from coordinator.rounds.ports import Directory
from coordinator.rounds.round import DeviceRef
from shared.blobs import Blobs
from shared.errors import Malformed, NotFound, RoundAborted, UpdateRejected
from shared.flower import (
    APP_RAISED,
    REFUSED,
    decode_records,
    encode_records,
    new_message,
    reply_error,
    reply_with,
    stamp,
)
from shared.ids import DeviceId, JobId, NodeId, TaskId, new_task_id
from shared.session import Part, RunTask

INLINE_BYTES = 4096
Check = Callable[[Message, RecordDict], None]


@dataclass(frozen=True)
class Fleet:
    """The parts of the coordinator that a grid speaks through."""

    sessions: Sessions
    directory: Directory
    dispatcher: Dispatcher
    lasting: Blobs
    inbox: Blobs


@dataclass(frozen=True)
class Ask:
    """What every task of one round attempt has in common."""

    job: JobId
    run_id: int
    round: int
    client_app: str
    secure: bool
    cohort: str
    min_devices: int
    wait_for_devices_s: float
    timeout_s: float
    closing: Closing
    cancellation: Cancellation = field(default_factory=Cancellation)


class FleetGrid(Grid):
    """For one attempt at one round. `check(request, content)` raises `UpdateRejected` for a reply that must not be used."""

    def __init__(self, fleet: Fleet, ask: Ask, check: Check | None = None) -> None:
        self._fleet = fleet
        self._ask = ask
        self._check = check
        self._run: Any = None
        self._parts: dict[int, tuple[ArrayRecord, Part]] = {}
        self._pushed: dict[str, Message] = {}
        self.seconds: dict[NodeId, float] = {}
        self.failures: dict[NodeId, tuple[int, str]] = {}

    # ---- Flower's Grid

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return new_message(
            content, run_id=self._ask.run_id, node_id=dst_node_id, message_type=message_type, group_id=group_id
        )

    def get_node_ids(self) -> list[int]:
        """The cohort's connected devices; blocks until there are enough, since a strategy samples before it waits.

        Raises `RoundAborted` when there are not enough in time.
        """
        enough = self._fleet.dispatcher.wait_for_devices(
            lambda: len(self.present()) >= self._ask.min_devices, self._ask.wait_for_devices_s, self._ask.cancellation
        )
        present = sorted(int(device.node_id) for device in self.present())
        if not enough:
            raise RoundAborted(f"{len(present)} devices are connected, {self._ask.min_devices} are needed")
        return present

    def present(self) -> list[DeviceRef]:
        connected = self._fleet.sessions.connected()
        return [device for device in self._fleet.directory.members(self._ask.cohort) if device.id in connected]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            task_id = new_task_id()
            stamp(message, run_id=self._ask.run_id, message_id=task_id)
            self._pushed[task_id] = message
            ids.append(str(task_id))
        self._send([TaskId(task_id) for task_id in ids], self._ask.timeout_s)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Waits for the answers by the round's closing rule."""
        return self._collect([TaskId(task_id) for task_id in message_ids], self._ask.timeout_s)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        batch = list(messages)
        limit = self._ask.timeout_s if timeout is None else min(timeout, self._ask.timeout_s)
        ids = [new_task_id() for _ in batch]
        for task_id, message in zip(ids, batch, strict=True):
            stamp(message, run_id=self._ask.run_id, message_id=task_id)
            self._pushed[task_id] = message
        self._send(ids, limit)
        return self._collect(ids, limit)

    # ---- inside

    def _send(self, ids: list[TaskId], limit: float) -> None:
        devices = {int(device.node_id): device for device in self._fleet.directory.members(self._ask.cohort)}
        for task_id in ids:
            message = self._pushed[task_id]
            node_id = message.metadata.dst_node_id
            device = devices.get(node_id)
            task = RunTask(
                task_id=task_id,
                job_id=self._ask.job,
                run_id=self._ask.run_id,
                node_id=node_id,
                round=self._ask.round,
                message_id=task_id,
                message_type=message.metadata.message_type,
                client_app=self._ask.client_app,
                timeout_s=limit,
                secure=self._ask.secure,
                parts=self._encode(message.content),
            )
            self._fleet.dispatcher.start(device.id if device else DeviceId("unknown"), task)

    def _collect(self, ids: list[TaskId], limit: float) -> list[Message]:
        answers = self._fleet.dispatcher.wait(ids, self._ask.closing, limit, self._ask.cancellation)
        return [self._reply(self._pushed.pop(task_id), answers[task_id]) for task_id in ids]

    def _reply(self, request: Message, answer: Answer) -> Message:
        node = NodeId(request.metadata.dst_node_id)
        self.seconds[node] = self.seconds.get(node, 0.0) + answer.seconds
        result = answer.result
        if result.error_code:
            return self._failed(request, result.error_code, result.error_reason)
        try:
            content = self._decode(result.parts)
            if self._check is not None:
                self._check(request, content)
        except (UpdateRejected, Malformed) as error:
            return self._failed(request, REFUSED, str(error))
        except NotFound as error:
            return self._failed(request, APP_RAISED, f"its update never arrived: {error}")
        return reply_with(request, content)

    def _failed(self, request: Message, code: int, reason: str) -> Message:
        self.failures[NodeId(request.metadata.dst_node_id)] = (code, reason)
        return reply_error(request, code, reason)

    def _encode(self, content: RecordDict) -> tuple[Part, ...]:
        """Large arrays by digest, encoded once for all devices; everything else in one inline part."""
        parts: list[Part] = []
        small = RecordDict()
        for name, record in content.items():
            if isinstance(record, ArrayRecord) and record.count_bytes() > INLINE_BYTES:
                parts.append(self._blob(name, record))
            else:
                small[name] = record
        if small:
            encoded = encode_records(small)
            parts.append(
                Part(inline=encoded)
                if len(encoded) <= 16 * INLINE_BYTES
                else Part(digest=self._fleet.lasting.write(encoded))
            )
        return tuple(parts)

    def _blob(self, name: str, record: ArrayRecord) -> Part:
        known = self._parts.get(id(record))
        if known is not None and known[0] is record:
            return known[1]
        part = Part(digest=self._fleet.lasting.write(encode_records(RecordDict({name: record}))))
        self._parts[id(record)] = (record, part)
        return part

    def _decode(self, parts: tuple[Part, ...]) -> RecordDict:
        content = RecordDict()
        for part in parts:
            content.update(decode_records(self._take(part)))
        return content

    def _take(self, part: Part) -> bytes:
        """A part's bytes. An update is read once and then forgotten."""
        if part.digest is None:
            return part.inline
        data = self._fleet.inbox.read(part.digest)
        self._fleet.inbox.delete(part.digest)
        return data
