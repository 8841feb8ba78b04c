"""A round of Flower's own SecAgg+: its workflow in this process, its mod on every client in another, both unchanged."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey

from shared.flower import assume_identity
from simulations.benchmarks.secagg_ours import Vector, vector_of
from simulations.benchmarks.two_processes import Handle, Idle, PipeGrid


@dataclass(frozen=True)
class Round:
    """What one cost. CPU seconds and bytes of a client that takes part to the end."""

    client_s: float
    server_s: float
    bytes_up: float


def clients(idle: Idle) -> tuple[Handle, bytes]:
    """In the child."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    assume_identity(run_id=PipeGrid.run_id)

    def train(message: Message, _context: Context) -> Message:
        with idle():
            given = compat.recorddict_to_fitins(message.content, keep_input=True)
            (model,) = parameters_to_ndarrays(given.parameters)
            parameters = ndarrays_to_parameters([vector_of(message.metadata.dst_node_id, model.size)])
        answer = FitRes(Status(Code.OK, ""), parameters, 1, {})
        return Message(compat.fitres_to_recorddict(answer, False), reply_to=message)

    return lambda message, context: secaggplus_mod(message, context, train), b""


def stage_of(message: Message) -> str:
    return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])


@dataclass
class _Proxy:
    node_id: int


@dataclass
class _Strategy:
    proxies: list[_Proxy]
    mean: Vector | None = None

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


def neighbours(clients: int) -> int:
    """As its users set it: twice the logarithm, odd, itself included; all where that is more than there are."""
    return min(clients, 2 * ceil(log2(clients)) + 1)


@dataclass
class Fleet:
    """Clients and their server. Close its `grid` when done."""

    def __post_init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        assume_identity(run_id=PipeGrid.run_id)
        self.grid = PipeGrid(clients, (), stage_of)

    def round(
        self, nodes: Sequence[int], elements: int, gone: frozenset[int], *, after_masking: bool = False
    ) -> tuple[Round, Vector | None]:
        """`gone` fall silent when they are asked for their vectors, or right after they sent them. Also returns the mean.

        There is none where the workflow gives up: it draws another graph each time, and some have a client with too few left.
        """
        grid, strategy, count = self.grid, _Strategy([_Proxy(node) for node in nodes]), len(nodes)
        grid.begin(Stage.UNMASK if after_masking else Stage.COLLECT_MASKED_VECTORS, gone)
        context: Any = LegacyContext(Context(PipeGrid.run_id, 1, {}, RecordDict(), {}), None, strategy, _Manager(count))  # type: ignore[arg-type]
        context.state[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
        zeros = ndarrays_to_parameters([np.zeros(elements, np.float32)])
        context.state[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(zeros, True)
        shares = neighbours(count)
        workflow = SecAggPlusWorkflow(shares, max(2, round(2 * shares / 3)), max_weight=1.0)
        began = time.process_time()
        workflow(grid, context)
        server_s = time.process_time() - began - grid.own_s
        return Round(grid.client_s, server_s, grid.bytes_up), strategy.mean
