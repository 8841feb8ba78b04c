"""`FleetGrid`: Flower's `Grid` on our session streams. Any stock strategy runs on a real fleet through it, unchanged.

A round's global arrays are encoded once, stored once as a blob, and fetched by each device once; small records travel inside the
command. It returns one reply a message, in order, an error reply for each device that failed. It also selects: `get_node_ids`
blocks until there are enough devices and then names the same ones to whoever asks, since a strategy samples before it waits.
"""

import math
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import structlog
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.fleet.ports import Sessions
from coordinator.rounds.closing import Policy
from coordinator.rounds.dispatch import Answer, Cancellation, Dispatcher
from coordinator.rounds.plan import Selection
from coordinator.rounds.ports import Directory
from coordinator.rounds.round import DeviceRef
from shared.blobs import Blobs
from shared.clock import Clock
from shared.errors import LocalError, NotFound, PeerError, RoundAborted, UpdateRejected
from shared.flower import (
    APP_RAISED,
    REFUSED,
    decode_records,
    encode_records,
    new_message,
    remember_digest,
    reply_error,
    reply_with,
    stamp,
)
from shared.ids import DeviceId, Digest, JobId, NodeId, TaskId, digest_of, new_task_id
from shared.session import Part, RunTask

_log = structlog.get_logger()
INLINE_BYTES = 4096  # arrays above this travel by digest
MAX_INLINE_BYTES = 65_536  # all other records of a message together
EXTRA_BYTES = 16 << 20  # of an answer, besides arrays
Check = Callable[[Message, RecordDict], RecordDict]
Sample = Callable[[Sequence[DeviceRef], int], Sequence[DeviceRef]]
_RANDOM = random.SystemRandom()  # nobody can foresee who is selected


@dataclass(frozen=True)
class Fleet:
    """The parts of the coordinator that a grid speaks through. `lasting` survives a crash, `inbox` need not."""

    sessions: Sessions
    directory: Directory
    dispatcher: Dispatcher
    lasting: Blobs
    inbox: Blobs

    @classmethod
    def open(
        cls,
        sessions: Sessions,
        directory: Directory,
        *,
        lasting: Blobs,
        inbox: Blobs,
        clock: Clock,
        reconnect_grace_s: float,
    ) -> "Fleet":
        """A fleet whose answers are listened to from now on."""
        dispatcher = Dispatcher(sessions, clock, reconnect_grace_s=reconnect_grace_s)
        sessions.subscribe(dispatcher)
        return cls(sessions, directory, dispatcher, lasting, inbox)


@dataclass(frozen=True)
class Ask:
    """What every task of one round attempt has in common."""

    job: JobId
    run_id: int
    round: int
    client_app: str
    secure: bool
    selection: Selection
    policy: Policy
    cancellation: Cancellation = field(default_factory=Cancellation)
    excluded: frozenset[DeviceId] = frozenset()


class FleetGrid(Grid):
    """For one attempt at one round; `close` it afterwards. `check(request, content)` returns the usable part of a reply.

    A check raises `UpdateRejected` for a reply that must not be used.
    """

    def __init__(self, fleet: Fleet, ask: Ask, *, check: Check | None = None, sample: Sample = _RANDOM.sample) -> None:
        self._fleet = fleet
        self._ask = ask
        self._check = check
        self._sample = sample
        self._run: Any = None
        self._known: dict[int, tuple[ArrayRecord, Part]] = {}
        self._model_bytes = 0
        self._passing: set[Digest] = set()  # blobs in `lasting` that this exchange alone needs
        self._read: set[Digest] = set()
        self._pushed: dict[TaskId, Message] = {}
        self.chosen: dict[NodeId, DeviceRef] = {}
        self.sampled = False  # another attempt may ask others: not all who may take part were chosen
        self.seconds: dict[NodeId, float] = {}

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
        """The devices of this attempt, in order of node id. Raises `RoundAborted` when there are not enough in time."""
        if not self.chosen:
            self._choose()
        return sorted(int(node) for node in self.chosen)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [str(task_id) for task_id in self._send(list(messages), self._ask.policy)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Waits for the answers by the round's closing rule."""
        return self._collect([TaskId(message_id) for message_id in message_ids], self._ask.policy)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Raises `RoundAborted` when the job is being stopped."""
        policy = self._policy(timeout)
        return self._collect(self._send(list(messages), policy), policy)

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Generator[Message]:
        """As `send_and_receive`, but each reply as it comes, and its update deleted once it is read: for those who keep none.

        The messages go out with the first reply that is asked for.
        """
        policy = self._policy(timeout)
        for _, answer, reply in self._answers(self._send(list(messages), policy), policy):
            yield reply
            for part in answer.result.parts:
                if part.digest is not None:
                    self._fleet.inbox.delete(part.digest)

    # ---- for the attempt

    def choose_now(self) -> bool:
        """Select without waiting, if enough devices are here. False: they are not, and `get_node_ids` will wait for them."""
        present = self._present()
        if len(present) >= self._ask.selection.min_devices:
            self._take(present)
        return bool(self.chosen)

    def know(self, record: ArrayRecord, digest: Digest) -> None:
        """This record, encoded, is that blob already. Answers may be as large as if it were sent, also where only a change is."""
        self._known[id(record)] = (record, Part(digest=digest))
        self._model_bytes = max(self._model_bytes, _most_bytes(RecordDict({"arrays": record})))

    def close(self) -> None:
        """Delete what the exchange left behind: updates read, blobs that only its tasks needed, answers that came too late.

        An update of another job that happens to be the same bytes goes too; that device is then dropped from its round.
        """
        for digest in {*self._read, *self._fleet.dispatcher.take_strays()}:
            self._fleet.inbox.delete(digest)
        for digest in self._passing:
            self._fleet.lasting.delete(digest)
        self._read.clear()

    # ---- inside

    def _choose(self) -> None:
        patience_s = self._ask.selection.wait_for_devices_s
        if not self._fleet.dispatcher.wait_for_devices(self.choose_now, patience_s, self._ask.cancellation):
            needed = self._ask.selection.min_devices
            left_out = f", {len(self._ask.excluded)} left out for false shares" if self._ask.excluded else ""
            raise RoundAborted(f"{len(self._present())} devices are connected{left_out}, {needed} are needed")

    def _take(self, present: list[DeviceRef]) -> None:
        chosen = self._sample(present, self._ask.selection.how_many(len(present)))
        self.chosen = {device.node_id: device for device in chosen}
        members = self._fleet.directory.members(self._ask.selection.cohort)
        self.sampled = len(chosen) < sum(device.id not in self._ask.excluded for device in members)

    def _present(self) -> list[DeviceRef]:
        here = self._fleet.sessions.connected().keys() - self._ask.excluded
        return [device for device in self._fleet.directory.members(self._ask.selection.cohort) if device.id in here]

    def _send(self, messages: list[Message], policy: Policy) -> list[TaskId]:
        ids = [new_task_id() for _ in messages]
        for task_id, message in zip(ids, messages, strict=True):
            stamp(message, run_id=self._ask.run_id, message_id=task_id)
            self._pushed[task_id] = message
            node_id = NodeId(message.metadata.dst_node_id)
            device = self.chosen.get(node_id)
            task = RunTask(
                task_id=task_id,
                job_id=self._ask.job,
                run_id=self._ask.run_id,
                node_id=node_id,
                round=self._ask.round,
                message_id=task_id,
                message_type=message.metadata.message_type,
                client_app=self._ask.client_app,
                timeout_s=policy.timeout_s,
                secure=self._ask.secure,
                parts=self._encode(message.content),
            )
            self._fleet.dispatcher.start(device.id if device else DeviceId(f"node {node_id}"), task)
        return ids

    def _policy(self, timeout: float | None) -> Policy:
        policy = self._ask.policy
        if timeout is None or timeout >= policy.timeout_s:
            return policy
        return Policy(timeout, policy.quorum, policy.quantile, policy.grace_s)

    def _collect(self, ids: list[TaskId], policy: Policy) -> list[Message]:
        replies = {task_id: reply for task_id, _, reply in self._answers(ids, policy)}
        return [replies[task_id] for task_id in ids]

    def _answers(self, ids: list[TaskId], policy: Policy) -> Generator[tuple[TaskId, Answer, Message]]:
        """Each answer is read while the others are still on their way."""
        with closing(self._fleet.dispatcher.answers(ids, policy, self._ask.cancellation)) as answers:
            for task_id, answer in answers:
                yield task_id, answer, self._reply(self._pushed.pop(task_id), answer)

    def _reply(self, request: Message, answer: Answer) -> Message:
        node = NodeId(request.metadata.dst_node_id)
        self.seconds[node] = self.seconds.get(node, 0.0) + answer.seconds
        result = answer.result
        if result.error_code:
            return reply_error(request, result.error_code, result.error_reason)
        try:
            content = self._decode(result.parts, max(self._model_bytes, _most_bytes(request.content)))
            return reply_with(request, self._check(request, content) if self._check else content)
        except LocalError:
            raise
        except NotFound as error:
            return reply_error(request, APP_RAISED, f"its update never arrived: {error}")
        except PeerError as error:
            return reply_error(request, REFUSED, str(error))
        except Exception as error:  # noqa: BLE001  # whatever one device sends costs that device only
            _log.warning("an answer that cannot be read", device=answer.device, exc_info=error)
            return reply_error(request, REFUSED, f"an answer that cannot be read ({type(error).__name__})")

    def _encode(self, content: RecordDict) -> tuple[Part, ...]:
        """Large arrays by digest, encoded once for all devices; everything else in one part."""
        parts: list[Part] = []
        small = RecordDict()
        for name, record in content.items():
            if isinstance(record, ArrayRecord) and record.count_bytes() > INLINE_BYTES:
                parts.append(self._blob(name, record))
            else:
                small[name] = record
        if small:
            encoded = encode_records(small)
            parts.append(Part(inline=encoded) if len(encoded) <= MAX_INLINE_BYTES else self._passing_blob(encoded))
        return tuple(parts)

    def _blob(self, name: str, record: ArrayRecord) -> Part:
        known = self._known.get(id(record))
        if known is None or known[0] is not record:
            part = self._passing_blob(encode_records(RecordDict({name: record})))
            if part.digest is not None:
                remember_digest(name, record, part.digest)
            known = self._known[id(record)] = (record, part)
        return known[1]

    def _passing_blob(self, encoded: bytes) -> Part:
        digest = digest_of(encoded)
        if not self._fleet.lasting.has(digest):
            self._fleet.lasting.write(encoded)
            self._passing.add(digest)
        return Part(digest=digest)

    def _decode(self, parts: tuple[Part, ...], most: int) -> RecordDict:
        """Raises `UpdateRejected` for more than `most` bytes, before any of them is read."""
        digests = [part.digest for part in parts if part.digest is not None]
        self._read.update(digests)
        size = sum(len(part.inline) for part in parts) + sum(map(self._fleet.inbox.size, digests))
        if size > most:
            raise UpdateRejected(f"an answer of {size} bytes to a task that allows {most}")
        content = RecordDict()
        for part in parts:
            content.update(decode_records(self._bytes(part)))
        return content

    def _bytes(self, part: Part) -> bytes:
        """Equal updates are one blob, so it stays until the exchange is over."""
        if part.digest is None:
            return part.inline
        return self._fleet.inbox.read(part.digest)


def _most_bytes(asked: RecordDict) -> int:
    """Of an answer. A masked vector takes four bytes at most for a float, which has two at least, and 18 for an integer; keys and
    shares grow with the group.
    """
    arrays = [array for record in asked.array_records.values() for array in record.values()]
    integers = sum(math.prod(array.shape) for array in arrays if not array.dtype.startswith("float"))
    return 4 * sum(len(array.data) for array in arrays) + 18 * integers + EXTRA_BYTES
