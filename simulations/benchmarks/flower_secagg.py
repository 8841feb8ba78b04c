"""Flower's own SecAgg+ (its workflow and mod, unchanged) on vectors of ours, in this process: what its clients and server cost.

The messages between them are copied, as a transport would, and neither side is charged for that.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import log2
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey

from shared.flower import assume_identity
from simulations.benchmarks.secagg_ours import Vectors, size_of

RUN_ID = 1


@dataclass
class Cost:
    """CPU seconds a client and of the server, and the bytes that one client sends in a round."""

    client_s: float
    server_s: float
    bytes_up: float
    aborted: bool


@dataclass
class _Proxy:
    node_id: int


@dataclass
class _Strategy:
    proxies: list[_Proxy]
    mean: Any = None

    def configure_fit(self, _round: int, parameters: Any, _manager: Any) -> list[tuple[_Proxy, FitIns]]:
        return [(proxy, FitIns(parameters, {})) for proxy in self.proxies]

    def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[None, dict[str, Any]]:
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


@dataclass
class _Manager:
    clients: int

    def num_available(self) -> int:
        return self.clients


@dataclass
class _Grid:
    """Hands each message to Flower's mod, and loses what the dropped would answer in the third stage."""

    vectors: Vectors
    dropped: frozenset[int]
    contexts: dict[int, Context] = field(default_factory=dict)
    client_s: float = 0.0
    own_s: float = 0.0  # copying, which is nobody's
    idle_s: float = 0.0  # making vectors, which is nobody's either
    bytes_up: int = 0
    stage: int = 0

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        began, replies, worked = time.process_time(), [], 0.0
        self.stage += 1
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.dropped and self.stage > 3:
                continue
            copy = _copy(message)
            context = self.contexts.setdefault(node, Context(RUN_ID, node, {}, RecordDict(), {}))
            start = time.process_time()
            reply = secaggplus_mod(copy, context, self._train)
            worked += time.process_time() - start
            if node in self.dropped and self.stage == 3:
                continue
            self.bytes_up += _size(reply.content)
            replies.append(reply)
        self.client_s += worked
        self.own_s += time.process_time() - began
        return replies

    def _train(self, message: Message, _context: Context) -> Message:
        start = time.process_time()
        vector = self.vectors(message.metadata.dst_node_id)
        self.idle_s += time.process_time() - start
        answer = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), 1, {})
        return Message(compat.fitres_to_recorddict(answer, False), reply_to=message)


def _copy(message: Message) -> Message:
    content = RecordDict()
    for name, record in message.content.items():
        kind: Any = type(record)
        content[name] = kind(dict(record.items())) if not isinstance(record, ArrayRecord) else ArrayRecord(dict(record))
    copy = Message(content, dst_node_id=message.metadata.dst_node_id, message_type=message.metadata.message_type)
    copy.metadata.__dict__["_message_id"] = "m"
    return copy


def _size(content: RecordDict) -> int:
    """Bytes of what a client answers, without any transport's framing."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        elif isinstance(record, ConfigRecord | MetricRecord):
            total += sum(map(size_of, record.values()))
    return total


def neighbours(clients: int) -> int:
    """As its users set it: twice the logarithm, odd, itself included; all where that is more than there are."""
    return min(clients, 2 * int(np.ceil(log2(clients))) + 1)


def one_round(clients: int, elements: int, vectors: Vectors, dropped: frozenset[int]) -> Cost:
    """A round over `vectors`, by node from 1 on. `dropped` send no masked vector."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    assume_identity(run_id=RUN_ID)
    shares, nodes = neighbours(clients), range(1, clients + 1)
    grid, strategy = _Grid(vectors, dropped), _Strategy([_Proxy(node) for node in nodes])
    context: Any = LegacyContext(Context(RUN_ID, 1, {}, RecordDict(), {}), None, strategy, _Manager(clients))  # type: ignore[arg-type]
    context.state[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    zeros = ndarrays_to_parameters([np.zeros(elements, np.float32)])
    context.state[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(zeros, True)
    workflow = SecAggPlusWorkflow(shares, max(2, round(2 * shares / 3)), max_weight=1.0)
    start = time.process_time()
    workflow(grid, context)  # type: ignore[arg-type]
    server_s = time.process_time() - start - grid.own_s
    return Cost(
        (grid.client_s - grid.idle_s) / clients,
        server_s,
        grid.bytes_up / (clients - len(dropped)),
        strategy.mean is None,
    )
