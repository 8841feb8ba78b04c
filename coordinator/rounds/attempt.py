"""One attempt at one round: select, exchange, aggregate. Each transition is written before its effect is visible."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds.exchange import Fate, Summary
from coordinator.rounds.exchange import Outcome as SecureOutcome
from coordinator.rounds.grid import Ask, Fleet, FleetGrid
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.ports import JobStore, Traffic
from coordinator.rounds.round import DeviceRef, DeviceRow, Event, Outcome, RoundRow
from coordinator.rounds.secure_grid import SecureGrid
from coordinator.rounds.states import RoundState, advance
from coordinator.rounds.strategies import restore_dtypes, secure_config
from coordinator.rounds.validate import check_update, weight_of
from shared.clock import Clock
from shared.errors import RoundAborted
from shared.flower import REFUSED
from shared.ids import NodeId
from shared.secagg.keys import Verifier
from shared.secagg.messages import Phase

_FATES: Mapping[Fate, Outcome] = {
    Fate.COUNTED: Outcome.COUNTED,
    Fate.RECOVERED: Outcome.RECOVERED,
    Fate.REJECTED: Outcome.REJECTED,
}


@dataclass(frozen=True)
class Result:
    """What a successful attempt leads to: the new global arrays, and the round's row, ready to be committed."""

    arrays: ArrayRecord
    row: RoundRow


@dataclass(frozen=True)
class Bench:
    """What an attempt works with."""

    store: JobStore
    fleet: Fleet
    traffic: Traffic
    verifier: Verifier
    clock: Clock


class Attempt:
    """Implements `ExchangeObserver` for its own exchange. `row` is what is written so far."""

    def __init__(self, bench: Bench, spec: JobSpec, ask: Ask, row: RoundRow) -> None:
        self._bench = bench
        self._spec = spec
        self._check = None if spec.secure.enabled else check_update("num-examples")
        self._grid = FleetGrid(bench.fleet, ask, self._check)
        self._summary: Summary | None = None
        self._selected: dict[NodeId, DeviceRef] = {}
        self.row = row

    def run(self, strategy: FedAvg, arrays: ArrayRecord, model_json: str) -> Result:
        """Raises `RoundAborted` when too few devices take part; `row` then says what became of each."""
        self._bench.store.begin(self.row, self._event("PLANNED", {}))
        config = ConfigRecord({**self._spec.train, "server-round": self.row.round})
        messages = list(strategy.configure_train(self.row.round, arrays, config, self._grid))
        self._select(messages, model_json)
        replies = list(self._exchange_grid().send_and_receive(messages, timeout=self._spec.selection.round_timeout_s))
        self._settle(replies)
        merged, metrics = strategy.aggregate_train(self.row.round, replies)
        if merged is None:
            raise RoundAborted("no usable update came back")
        total = self._total_weight(replies)
        self._advance(RoundState.AGGREGATED, {"examples": total})
        self.row = replace(self.row, total_weight=total, metrics=_plain(metrics), ended_at=self._bench.clock.now())
        return Result(restore_dtypes(merged, arrays), self.row)

    # ---- steps

    def _exchange_grid(self) -> Grid:
        if not self._spec.secure.enabled:
            return self._grid
        return SecureGrid(self._grid, secure_config(self._spec), self._bench.verifier, observer=self)

    def _select(self, messages: list[Message], model_json: str) -> None:
        by_node = {device.node_id: device for device in self._grid.present()}
        for message in messages:
            node = NodeId(message.metadata.dst_node_id)
            if node in by_node:
                self._selected[node] = by_node[node]
                self._bench.traffic.take(by_node[node].id)  # from here on, for this round
            if model_json:
                message.content["model"] = ConfigRecord({"json": model_json})
        if len(self._selected) < self._spec.selection.min_devices:
            raise RoundAborted("devices left while the round was planned")
        self._advance(RoundState.SELECTED, {"devices": len(self._selected)})

    def _settle(self, replies: list[Message]) -> None:
        """Every selected device gets exactly one outcome; too few counted ones end the round."""
        if self._spec.secure.enabled:
            outcomes = self._secure_outcomes()
        else:
            self._advance(RoundState.TRAINED, {"answers": sum(not reply.has_error() for reply in replies)})
            outcomes = self._plain_outcomes(replies)
        self.row = replace(self.row, devices=self._device_rows(outcomes))
        self.row = replace(
            self.row,
            bytes_down=sum(device.bytes_down for device in self.row.devices),
            bytes_up=sum(device.bytes_up for device in self.row.devices),
        )
        counted = sum(device.outcome is Outcome.COUNTED for device in self.row.devices)
        needed = self._spec.selection.quorum * len(self._selected)
        if counted < needed:
            raise RoundAborted(f"{counted} of {len(self._selected)} devices counted, {needed:.0f} are needed")

    def _plain_outcomes(self, replies: list[Message]) -> dict[NodeId, tuple[Outcome, str, int]]:
        out: dict[NodeId, tuple[Outcome, str, int]] = {}
        for reply in replies:
            node = NodeId(reply.metadata.src_node_id)
            if reply.has_error():
                outcome = Outcome.REJECTED if reply.error.code == REFUSED else Outcome.DROPPED
                out[node] = (outcome, reply.error.reason or "failed without a reason", 0)
            else:
                out[node] = (Outcome.COUNTED, "", int(weight_of(reply.content, "num-examples")))
        return out

    def _secure_outcomes(self) -> dict[NodeId, tuple[Outcome, str, int]]:
        found: Mapping[int, SecureOutcome] = self._summary.outcomes if self._summary else {}
        return {NodeId(node): (_FATES.get(item.fate, Outcome.DROPPED), item.reason, 0) for node, item in found.items()}

    def _device_rows(self, outcomes: Mapping[NodeId, tuple[Outcome, str, int]]) -> tuple[DeviceRow, ...]:
        rows = []
        for node, device in self._selected.items():
            outcome, reason, weight = outcomes.get(node, (Outcome.DROPPED, "no answer", 0))
            down, up = self._bench.traffic.take(device.id)
            seconds = self._grid.seconds.get(node, 0.0)
            rows.append(DeviceRow(device.id, outcome, reason[:500], weight, down, up, seconds))
        return tuple(rows)

    def _total_weight(self, replies: list[Message]) -> int:
        """Plain: the counted devices' weights. Secure: what the sum itself says, since single weights are secret."""
        if self._spec.secure.enabled:
            return self._summary.total_weight if self._summary else 0
        return sum(device.weight for device in self.row.devices)

    # ---- ExchangeObserver

    def phase(self, phase: Phase, outcomes: Mapping[int, SecureOutcome]) -> None:
        lost = {
            str(node): item.reason for node, item in outcomes.items() if item.fate not in (Fate.PRESENT, Fate.COUNTED)
        }
        self._advance(RoundState[phase.name], {"present": len(outcomes) - len(lost), "lost": len(lost)})

    def closed(self, summary: Summary) -> None:
        self._summary = summary
        if summary.aborted:
            self.row = replace(self.row, devices=self._device_rows(self._secure_outcomes()))

    # ---- writing

    def _advance(self, state: RoundState, detail: Mapping[str, str | int | float]) -> None:
        advance(self.row.state, state)
        self._bench.store.advance(self.row, state, self._event(state, detail))
        self.row = replace(self.row, state=state)

    def _event(self, kind: str, detail: Mapping[str, str | int | float]) -> Event:
        return Event(self.row.job, self.row.round, self.row.attempt, self._bench.clock.now(), str(kind), detail)


def _plain(metrics: MetricRecord | None) -> dict[str, float]:
    return {key: float(value) for key, value in (metrics or {}).items() if isinstance(value, int | float)}


def as_records(arrays: ArrayRecord) -> RecordDict:
    """The form in which global arrays are stored and sent, so that both are one blob."""
    return RecordDict({"arrays": arrays})
