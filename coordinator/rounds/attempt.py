"""One attempt at one round: select, exchange, aggregate. Each transition is written before its effect is visible."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds.exchange import ExchangeObserver, Fate, Summary
from coordinator.rounds.exchange import Outcome as SecureOutcome
from coordinator.rounds.grid import Ask, Fleet, FleetGrid
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.ports import JobStore, Traffic
from coordinator.rounds.privacy import SPENT, detail_of, ledger_of, with_spend
from coordinator.rounds.round import DeviceRow, Event, Outcome, RoundRow
from coordinator.rounds.secure_grid import AppRun, Carried, SecureGrid
from coordinator.rounds.shelf import GlobalState, Shelf
from coordinator.rounds.states import RoundState, advance
from coordinator.rounds.strategies import load_state, restore_dtypes, secure_config
from coordinator.rounds.validate import LASTING, REJECTIONS, agreed, checked, weight_of
from shared.clock import Clock
from shared.errors import Corrupt, RoundAborted
from shared.flower import to_numpy
from shared.ids import DeviceId, NodeId
from shared.privacy.events import CentralGaussian
from shared.privacy.events import Event as Noise
from shared.secagg.keys import Verifier
from shared.secagg.messages import Phase

Detail = Mapping[str, str | int | float]
MAX_REASON = 500  # characters; a device may have written them
SLOW_BYTES = 64 << 20  # of updates: adding up more takes long enough for somebody to watch

_FATES: Mapping[Fate, Outcome] = {
    Fate.COUNTED: Outcome.COUNTED,
    Fate.RECOVERED: Outcome.RECOVERED,
    Fate.REJECTED: Outcome.REJECTED,
}


@dataclass(frozen=True)
class Bench:
    """What an attempt works with."""

    store: JobStore
    shelf: Shelf
    fleet: Fleet
    traffic: Traffic
    verifier: Verifier
    clock: Clock


@dataclass(frozen=True)
class _Judged:
    outcome: Outcome
    reason: str = ""
    weight: int = 0
    code: int = 0  # of the error that it answered


_LAST = (Phase.UNMASKED, Phase.RECOVERED)  # after these nothing follows, unless devices have gone
_SILENT = _Judged(Outcome.DROPPED, "no answer")


class Attempt:
    """Implements `ExchangeObserver` for its own exchange. `row` is what is known so far, also after a failure."""

    def __init__(self, bench: Bench, spec: JobSpec, ask: Ask, row: RoundRow, carried: Carried) -> None:
        self._bench = bench
        self._carried = carried
        self._spec = spec
        self._cancellation = ask.cancellation
        self._grid = FleetGrid(bench.fleet, ask, check=None if spec.secure.enabled else checked)
        self._summary: Summary | None = None
        self._judged: dict[NodeId, _Judged] = {}
        self._unwritten: list[Event] = []
        self.false_dealers: tuple[DeviceId, ...] = ()
        self._begun = False
        self.spent: Detail = {}  # for the commit, where it is what counts
        self.row = row

    def run(self, strategy: FedAvg, state: GlobalState) -> ArrayRecord:
        """The new global arrays, on the shelf; the round's row and `unwritten` are then ready to be committed.

        Raises `RoundAborted` when too few devices take part.
        """
        self._unwritten.append(self._event(RoundState.PLANNED, {}))
        try:
            load_state(strategy, state.kept, state.arrays)
            replies = self._train(strategy, state)
            arrays = self._aggregate(strategy, replies, state.arrays)
            if self._spec.evaluate.due(self.row.round):
                self._evaluate(strategy, arrays, state.model_json)
            return arrays
        finally:
            self._grid.close()
            self._fill_in_devices()

    @property
    def unwritten(self) -> tuple[Event, ...]:
        """Transitions that had no effect yet that anybody could see; whoever writes the next one writes them with it."""
        return tuple(self._unwritten)

    @property
    def hopeless(self) -> bool:
        """Whether another attempt would end like this one: it asks the same devices again, and so many of them cannot do the task,
        ever, that those who are left are too few.
        """
        selected = len(self._grid.chosen)
        unfit = sum(item.code in LASTING for item in self._judged.values())
        return bool(unfit) and not self._grid.sampled and selected - unfit < self._needed(selected)

    def write(self) -> None:
        """Put what is unwritten into the store."""
        if self._begun and self._unwritten:
            self._bench.store.advance(self.row, *self._unwritten)
        elif self._unwritten:
            self._bench.store.begin(self.row, *self._unwritten)
        self._begun, self._unwritten = True, []

    # ---- steps

    def _train(self, strategy: FedAvg, state: GlobalState) -> list[Message]:
        self._grid.know(state.arrays, state.digest)
        if not self._grid.choose_now():
            self.write()  # PLANNED, which may last minutes
        config = ConfigRecord({**self._spec.app_config})
        messages = list(strategy.configure_train(self.row.round, state.arrays, config, self._grid))
        self._prepare(messages, state.model_json)
        for device in self._grid.chosen.values():
            self._bench.traffic.take(device.id)  # what it moved before this round
        self._advance(RoundState.SELECTED, {"devices": len(messages)})
        self.write()
        grid = self._exchange_grid(self)
        replies = list(grid.send_and_receive(messages, timeout=self._spec.selection.round_timeout_s))
        if not self._spec.secure.enabled:
            replies = agreed(messages, replies)
            self._judge(replies)
            self._advance(RoundState.TRAINED, {"answers": sum(not reply.has_error() for reply in replies)})
        self._require_quorum()
        if len(replies) * state.arrays.count_bytes() > SLOW_BYTES:
            self.write()
        return replies

    def _aggregate(self, strategy: FedAvg, replies: list[Message], sent: ArrayRecord) -> ArrayRecord:
        total = self._total_weight(replies)
        try:
            with np.errstate(all="ignore"):  # what overflows is judged below
                merged, metrics = strategy.aggregate_train(self.row.round, replies)
        except Exception as error:  # each strategy has its own, and any of them is the end of this attempt
            reason = f"{type(strategy).__name__} cannot aggregate {len(replies)} updates"
            raise RoundAborted(reason, detail=str(error)[:MAX_REASON]) from error
        if merged is None:
            raise RoundAborted("no usable update came back")
        _require_finite(merged)
        with np.errstate(all="ignore"):
            arrays = restore_dtypes(merged, sent)
        if any(arrays[name] is not merged[name] for name in arrays):
            _require_finite(arrays)  # a narrower dtype holds less
        digest = self._bench.shelf.put(arrays)
        self._grid.know(arrays, digest)
        self.row = replace(
            self.row, total_weight=total, arrays_digest=digest, metrics={**self.row.metrics, **_plain(metrics)}
        )
        groups = {"groups": len(replies)} if self._spec.secure.groups > 1 else {}
        self._advance(RoundState.AGGREGATED, {"examples": total, **groups})
        if self._spec.evaluate.due(self.row.round) or self._spec.prune_after(self.row.round):
            self.write()  # devices see the new arrays, or a worker is busy with them for minutes
        return arrays

    def _evaluate(self, strategy: FedAvg, arrays: ArrayRecord, model_json: str) -> None:
        """Measure the new arrays on the devices. A measurement that fails does not cost the round."""
        try:
            config = ConfigRecord({**self._spec.app_config})
            messages = list(strategy.configure_evaluate(self.row.round, arrays, config, self._grid))
            self._prepare(messages, model_json)
            timeout = self._spec.selection.round_timeout_s
            replies = list(self._exchange_grid(None).send_and_receive(messages, timeout=timeout))
            if not self._spec.secure.enabled:
                replies = agreed(messages, replies)
            metrics = strategy.aggregate_evaluate(self.row.round, replies)
        except RoundAborted as error:
            self._cancellation.check()
            self._bench.store.note(self._event("evaluate.failed", {"reason": str(error)[:MAX_REASON]}))
            return
        found = {f"evaluate_{name}": value for name, value in _plain(metrics).items()}
        self.row = replace(self.row, metrics={**self.row.metrics, **found})

    def _exchange_grid(self, observer: ExchangeObserver | None) -> Grid:
        if not self._spec.secure.enabled:
            return self._grid
        config, app = secure_config(self._spec), AppRun(self._spec.client_app)
        return SecureGrid(self._grid, config, self._bench.verifier, app=app, observer=observer, carried=self._carried)

    def _prepare(self, messages: list[Message], model_json: str) -> None:
        """In order of node, since sums of floats depend on it; with the model's description, if there is one."""
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        if model_json:
            for message in messages:
                message.content["model"] = ConfigRecord({"json": model_json})

    # ---- what became of each device: exactly one outcome each

    def _judge(self, replies: list[Message]) -> None:
        for reply in replies:
            node = NodeId(reply.metadata.src_node_id)
            if reply.has_error():
                outcome = Outcome.REJECTED if reply.error.code in REJECTIONS else Outcome.DROPPED
                reason = reply.error.reason or "failed without a reason"
                self._judged[node] = _Judged(outcome, reason, code=reply.error.code)
            else:
                self._judged[node] = _Judged(Outcome.COUNTED, weight=weight_of(reply.content))

    def _require_quorum(self) -> None:
        selected = len(self._grid.chosen)
        counted = sum(item.outcome is Outcome.COUNTED for item in self._judged.values())
        needed = self._needed(selected)
        if counted < needed:
            raise RoundAborted(f"{counted} of {selected} devices counted, {needed} are needed")

    def _needed(self, selected: int) -> int:
        """How many of the selected must be counted: secret sums have their own threshold, whatever the job's quorum is."""
        enough = self._spec.selection.enough(selected)
        return max(enough, secure_config(self._spec).fewest(selected)) if self._spec.secure.enabled else enough

    def _total_weight(self, replies: list[Message]) -> int:
        """Plain: the counted devices' weights. Secure: what the sum itself says, since single weights are secret."""
        if self._spec.secure.enabled:
            return self._summary.total_weight if self._summary else 0
        handed_over = sum(weight_of(reply.content) for reply in replies if not reply.has_error())
        counted = sum(item.weight for item in self._judged.values())
        if handed_over != counted:
            raise Corrupt(f"the counted weights add up to {counted}, the aggregate's to {handed_over}")
        return counted

    def _fill_in_devices(self) -> None:
        rows = []
        for node, device in sorted(self._grid.chosen.items()):
            judged = self._judged.get(node, _SILENT)
            down, up = self._bench.traffic.take(device.id)
            seconds = self._grid.seconds.get(node, 0.0)
            reason = judged.reason[:MAX_REASON]
            group = self._summary.groups.get(node, 0) if self._summary else 0
            rows.append(DeviceRow(device.id, judged.outcome, reason, judged.weight, down, up, seconds, group))
        self.row = replace(
            self.row,
            devices=tuple(rows),
            bytes_down=sum(row.bytes_down for row in rows),
            bytes_up=sum(row.bytes_up for row in rows),
            ended_at=self._bench.clock.now(),
        )

    # ---- ExchangeObserver

    def spends(self, event: Noise) -> None:
        """Raises `Conflict` if the job would overspend."""
        privacy, row = self._spec.privacy.terms(self._spec.rounds), self.row
        assert privacy is not None  # noqa: S101  # or nothing would be spent
        ledger = with_spend(
            ledger_of(row.job, privacy, self._bench.store.events(row.job)), event, row.round, row.attempt
        )
        self.row = replace(row, metrics={**row.metrics, "epsilon": ledger.spent})
        if isinstance(event, CentralGaussian):
            self.spent = detail_of(event)
        else:
            self._bench.store.note(self._event(SPENT, {**detail_of(event), "epsilon": ledger.spent}))

    def phase(self, phase: Phase, outcomes: Mapping[int, SecureOutcome]) -> None:
        lost = sum(item.fate not in (Fate.PRESENT, Fate.COUNTED) for item in outcomes.values())
        self._advance(RoundState[phase.name], {"present": len(outcomes) - lost, "lost": lost})
        if phase not in _LAST or any(item.reason for item in outcomes.values()):
            self.write()  # devices are told what follows

    def closed(self, summary: Summary) -> None:
        self._summary = summary
        for node, item in summary.outcomes.items():
            reason = item.reason or (summary.aborted if item.fate is Fate.ABANDONED else "")
            self._judged[NodeId(node)] = _Judged(_FATES.get(item.fate, Outcome.DROPPED), reason, code=item.code)
        self.false_dealers = tuple(self._grid.chosen[NodeId(node)].id for node in summary.false_dealers)

    # ---- writing

    def _advance(self, state: RoundState, detail: Detail) -> None:
        """Call `write` before the transition has an effect that anybody can see. Until then it may share a transaction."""
        self.row = replace(self.row, state=advance(self.row.state, state))
        self._unwritten.append(self._event(state, detail))

    def _event(self, kind: str, detail: Detail) -> Event:
        return Event(self.row.job, self.row.round, self.row.attempt, self._bench.clock.now(), str(kind), detail)


def _require_finite(arrays: ArrayRecord) -> None:
    for name, array in arrays.items():
        value = to_numpy(array)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RoundAborted(f"the aggregate of {name} is not finite: lower the strategy's learning rate")


def _plain(metrics: MetricRecord | None) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in (metrics or {}).items()
        if isinstance(value, int | float) and isfinite(value)
    }
