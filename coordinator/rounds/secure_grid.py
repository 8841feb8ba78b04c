"""`SecureGrid`: any Flower `Grid`, with secure aggregation between it and the strategy.

A train or evaluate exchange becomes the four phases of `shared.secagg` and comes back as one reply: the weighted mean
(the global arrays plus the mean change, in their own dtypes and shapes; integers to the nearest), the total weight, the
mean metrics. A strategy that only averages cannot tell the difference; `require_linear` refuses the others. The clients'
half is `edge_agent.secure_mod`.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import ExchangeObserver, Fate, NullObserver, Outcome, SecureConfig, Summary
from coordinator.rounds.validate import REJECTIONS
from shared.clock import Clock, SystemClock
from shared.errors import LocalError, Malformed, PeerError, ProtocolError, RoundAborted, ShoalError, Unsupported
from shared.flower import (
    inputs_digest,
    like,
    reply_for_all,
    to_numpy,
    unpack_words,
    weighted_mean_of_metrics,
)
from shared.secagg.fields import Fields
from shared.secagg.keys import Verifier
from shared.secagg.messages import RECORD, VECTOR_RECORD, WORDS_TYPE, Advert, Complaint, Deal, Phase, Reveal
from shared.secagg.quantize import Arrays, Total, add_change, decode
from shared.secagg.server import Server
from shared.secagg.terms import Terms

SECURED = ("train", "evaluate")
MAX_REASON = 500  # characters; a device wrote them
Take = Callable[[int, Message], None]

LINEAR: tuple[type[Strategy], ...] = (
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
)
_COMPARES = "it compares single updates with one another"
_COUNTS = "it sets its noise by the number of single replies"
WHY_NOT: Mapping[str, str] = {
    "Krum": _COMPARES,
    "MultiKrum": _COMPARES,
    "Bulyan": _COMPARES,
    "FedMedian": "a median is not a sum",
    "FedTrimmedAvg": "it sorts single updates to trim them",
    "QFedAvg": "it weighs each update by that device's own loss",
    "FedXgbBagging": "it joins single trees, it does not average",
    "FedXgbCyclic": "it hands one device's model to the next",
    "DifferentialPrivacyServerSideFixedClipping": "it clips single updates at the server",
    "DifferentialPrivacyServerSideAdaptiveClipping": "it clips single updates at the server",
    "DifferentialPrivacyClientSideFixedClipping": _COUNTS,
    "DifferentialPrivacyClientSideAdaptiveClipping": _COUNTS,
}


def require_linear(strategy: Strategy, config: SecureConfig | None = None) -> None:
    """Raises `Unsupported`, with the reason and the alternatives, unless one weighted mean is all that `strategy` needs.

    By exact type: Flower's robust strategies are subclasses of FedAvg, and a subclass of one's own may look at anything.
    """
    name = type(strategy).__name__
    if type(strategy) not in LINEAR:
        why = WHY_NOT.get(name, "it is not known to need only a weighted mean")
        known = ", ".join(kind.__name__ for kind in LINEAR)
        raise Unsupported(f"{name} cannot run with secure aggregation: {why}. Use {known}, or turn it off for this job")
    for purpose in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
        if getattr(strategy, purpose) is not weighted_mean_of_metrics:
            raise Unsupported(
                f"{name} has its own {purpose}, which would see one mean, not single metrics: leave it out"
            )
    weight_key = (config or SecureConfig()).weight_key
    if strategy.weighted_by_key != weight_key:  # type: ignore[attr-defined]
        raise Unsupported(f"{name} weighs by another key than secure aggregation: set both to {weight_key!r}")


def new_round_id() -> str:
    return secrets.token_hex(16)


class SecureGrid(Grid):
    """Wraps `inner`. `send_and_receive` raises `RoundAborted` when there is no sum, `Unsupported` for what cannot be one.

    `client_app` is what the devices run, under the name that their secure mods were given; part of what they agree on.
    """

    def __init__(
        self,
        inner: Grid,
        config: SecureConfig,
        verifier: Verifier,
        *,
        observer: ExchangeObserver | None = None,
        clock: Clock | None = None,
        round_ids: Callable[[], str] = new_round_id,
        client_app: str = "",
    ) -> None:
        self.inner = inner
        self.config = config
        self.verifier = verifier
        self.observer = observer or NullObserver()
        self.clock = clock or SystemClock()
        self.round_ids = round_ids
        self.client_app = client_app

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        if any(_category(message) in SECURED for message in batch):
            raise Unsupported(
                "train and evaluate messages need send_and_receive: pushed one by one they would not be masked"
            )
        return self.inner.push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """One reply for a train or evaluate exchange, replies as they are for a query. `timeout` covers all phases, in seconds."""
        batch = list(messages)
        kinds = {message.metadata.message_type for message in batch}
        if not any(_category(message) in SECURED for message in batch):
            return self.inner.send_and_receive(batch, timeout=timeout)
        if len(kinds) > 1 or len({message.metadata.dst_node_id for message in batch}) != len(batch):
            raise Unsupported("a secure exchange sends one message of one type to each device")
        return [_Exchange(self, batch, timeout).run()]


class _Exchange:
    """One run through the phases. Seats 1 to n are the devices in order of node id; outcomes are by node id."""

    def __init__(self, grid: SecureGrid, batch: list[Message], timeout: float | None) -> None:
        ordered = sorted(batch, key=lambda message: message.metadata.dst_node_id)
        self._grid = grid
        self._requests = dict(enumerate(ordered, start=1))
        self._seats = {message.metadata.dst_node_id: seat for seat, message in self._requests.items()}
        self._outcomes = dict.fromkeys(self._seats, Outcome(Fate.PRESENT))
        self._complained: set[int] = set()
        self._deadline = None if timeout is None else grid.clock.monotonic() + timeout
        self._category = _category(ordered[0])
        self._arrays_name, self._base = _only_arrays(ordered[0]) if self._category == "train" else ("", {})
        self._settings = grid.config.settings(self._category)
        self._schema = self._settings.schema(len(ordered), self._base)
        threshold = min(grid.config.threshold(len(ordered)), len(ordered))
        inputs = _common_inputs(ordered, grid.client_app)
        self._terms = Terms(grid.round_ids(), len(ordered), threshold, self._schema.digest, inputs)
        quorum = grid.config.quorum(len(ordered))
        self._server = Server(self._terms, self._schema.length, grid.verifier, quorum=quorum)

    def run(self) -> Message:
        try:
            total = self._phases()
        except ShoalError as error:
            self._close(aborted=str(error))
            raise
        self._close(weight=total.weight)
        return reply_for_all(self._requests[1], self._mean(total))

    def _phases(self) -> Total:
        if len(self._requests) < self._server.quorum:
            raise RoundAborted(f"{len(self._requests)} devices were selected, {self._server.quorum} are needed")
        terms = self._terms.to_fields()
        self._ask(Phase.KEYS, {seat: {**terms, "index": seat} for seat in self._requests}, self._take_advert)
        roster = self._server.close_keys().to_fields()
        self._ask(Phase.SHARES, dict.fromkeys(self._present(), roster), self._take_deal)
        inboxes = self._server.close_shares()
        settings = self._settings.to_fields()
        work = {seat: {**inbox.to_fields(), **settings} for seat, inbox in inboxes.items()}
        self._ask(Phase.MASKED, work, self._take_vector)
        requests = self._server.close_masked()
        self._ask(Phase.UNMASKED, {seat: item.to_fields() for seat, item in requests.items()}, self._take_reveal)
        counted = self._server.counted
        total = decode(self._schema, self._server.finish(), len(counted))
        self._settle(set(inboxes))
        return total

    def _ask(self, phase: Phase, questions: Mapping[int, Fields], take: Take) -> None:
        """Put one question to each device and take its answer; who fails is left out of all later phases."""
        waiting = set(questions)
        messages = [self._message(phase, seat, fields) for seat, fields in questions.items()]
        for reply in self._grid.inner.send_and_receive(messages, timeout=self._budget(phase)):
            seat = self._seats.get(reply.metadata.src_node_id)
            if seat not in waiting:
                continue  # a stranger, or a second answer
            waiting.discard(seat)
            self._judge(phase, seat, reply, take)
        for seat in waiting:
            self._fail(seat, Fate.DROPPED, f"no answer in the phase {phase}")
        self._grid.observer.phase(phase, dict(self._outcomes))

    def _message(self, phase: Phase, seat: int, fields: Fields) -> Message:
        record = ConfigRecord({**fields, "phase": str(phase), "round_id": self._terms.round_id})
        request = self._requests[seat]
        original = dict(request.content.items()) if phase is Phase.MASKED else {}
        return like(request, RecordDict({**original, RECORD: record}))

    def _budget(self, phase: Phase) -> float:
        left = float("inf") if self._deadline is None else self._deadline - self._grid.clock.monotonic()
        if left <= 0:
            raise RoundAborted(
                f"the exchange ran out of time before the phase {phase}: allow more, or select fewer devices"
            )
        return self._grid.config.timeouts.budget(phase, left)

    def _judge(self, phase: Phase, seat: int, reply: Message, take: Take) -> None:
        if reply.has_error():
            fate = Fate.REJECTED if reply.error.code in REJECTIONS else Fate.DROPPED
            self._fail(seat, fate, f"{phase}: {reply.error.reason or 'failed without a reason'}", reply.error.code)
            return
        try:
            take(seat, reply)
        except LocalError:
            raise
        except PeerError as error:
            self._fail(seat, Fate.REJECTED, f"{phase}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever one device sends costs that device only
            self._fail(seat, Fate.REJECTED, f"{phase}: an answer that cannot be read ({type(error).__name__})")

    def _fail(self, seat: int, fate: Fate, reason: str, code: int = 0) -> None:
        """A device whose vector was taken stays counted, whatever it does afterwards."""
        if seat in self._server.counted:
            fate = Fate.PRESENT
        self._outcomes[self._node(seat)] = Outcome(fate, reason[:MAX_REASON], code)

    def _take_advert(self, seat: int, reply: Message) -> None:
        advert = Advert.from_fields(_fields(reply))
        _require_seat(seat, advert.index)
        self._server.add_advert(advert)

    def _take_deal(self, seat: int, reply: Message) -> None:
        deal = Deal.from_fields(_fields(reply))
        _require_seat(seat, deal.sender)
        self._server.add_deal(deal)

    def _take_vector(self, seat: int, reply: Message) -> None:
        answer = reply.content.get(RECORD)
        if isinstance(answer, ConfigRecord) and Complaint.FIELD in answer:
            self._server.add_complaint(seat, Complaint.from_fields(_fields(reply)))
            self._fail(seat, Fate.DROPPED, f"{Phase.MASKED}: it could not use the shares that it was dealt")
            self._complained.add(self._node(seat))
            return
        record = reply.content.get(VECTOR_RECORD)
        if not isinstance(record, ArrayRecord) or list(record) != [VECTOR_RECORD]:
            raise Malformed("the reply holds no masked vector")
        self._server.add_vector(seat, unpack_words(record[VECTOR_RECORD], WORDS_TYPE))

    def _take_reveal(self, seat: int, reply: Message) -> None:
        reveal = Reveal.from_fields(_fields(reply))
        _require_seat(seat, reveal.sender)
        self._server.add_reveal(reveal)

    def _present(self) -> list[int]:
        return [seat for node, seat in self._seats.items() if self._outcomes[node].fate is Fate.PRESENT]

    def _node(self, seat: int) -> int:
        return int(self._requests[seat].metadata.dst_node_id)

    def _settle(self, dealt: set[int]) -> None:
        """The final table, once there is a sum."""
        for node, seat in self._seats.items():
            outcome = self._outcomes[node]
            if seat in self._server.counted:
                self._outcomes[node] = Outcome(Fate.COUNTED, outcome.reason)
            elif seat in dealt and outcome.fate is Fate.DROPPED:
                self._outcomes[node] = Outcome(Fate.RECOVERED, outcome.reason)

    def _close(self, *, weight: int = 0, aborted: str = "") -> None:
        false = self._server.false_dealers
        for seat, said in false.items():
            counted = self._outcomes[self._node(seat)].fate is Fate.COUNTED
            reason = (
                f"dealt shares that {said} devices could not use" if said else "dealt shares that do not fit together"
            )
            self._outcomes[self._node(seat)] = Outcome(Fate.COUNTED if counted else Fate.REJECTED, reason)
        if aborted:
            for node, item in self._outcomes.items():
                if item.fate is Fate.PRESENT or (node in self._complained and item.fate is Fate.DROPPED):
                    self._outcomes[node] = Outcome(Fate.ABANDONED, item.reason)
        liars = tuple(self._node(seat) for seat in false)
        summary = Summary(self._terms.round_id, self._category, dict(self._outcomes), weight, aborted, liars)
        self._grid.observer.closed(summary)

    def _mean(self, total: Total) -> RecordDict:
        metrics = MetricRecord({self._settings.weight_key: total.weight, **total.metrics})
        if self._category != "train":
            return RecordDict({"metrics": metrics})
        arrays = {
            item.name: Array(add_change(item, self._base[item.name], total.changes[item.name]))
            for item in self._schema.arrays
        }
        return RecordDict({self._arrays_name: ArrayRecord(arrays), "metrics": metrics})


def _category(message: Message) -> str:
    return str(message.metadata.message_type).partition(".")[0]


def _only_arrays(message: Message) -> tuple[str, Arrays]:
    """The one `ArrayRecord` that a device gets. Raises `Unsupported` for another number of them."""
    if len(message.content.array_records) != 1:
        raise Unsupported("secure training sends one ArrayRecord to each device")
    ((name, record),) = message.content.array_records.items()
    return name, {key: to_numpy(array) for key, array in record.items()}


def _common_inputs(messages: list[Message], client_app: str) -> str:
    """The digest of what every device gets. Raises `Unsupported` unless it is one and the same."""
    kind = messages[0].metadata.message_type
    found = {inputs_digest(message.content, message_type=kind, client_app=client_app) for message in messages}
    if len(found) != 1:
        raise Unsupported(
            "secure aggregation sends the same arrays and settings to every device: answers to others have no common mean"
        )
    return str(found.pop())


def _fields(reply: Message) -> Fields:
    record = reply.content.get(RECORD)
    if not isinstance(record, ConfigRecord):
        raise Malformed(f"the reply holds no record {RECORD!r}: is the device's app built with the secure mod?")
    return dict(record)


def _require_seat(seat: int, claimed: int) -> None:
    if seat != claimed:
        raise ProtocolError(f"a device in seat {seat} answers for seat {claimed}")
