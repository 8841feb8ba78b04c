"""One secure exchange: a batch of messages taken through the phases of `shared.secagg`, and what became of each device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from coordinator.rounds.exchange import Fate, Outcome, Summary
from coordinator.rounds.validate import LASTING, REJECTIONS
from shared.errors import LocalError, Malformed, PeerError, ProtocolError, RoundAborted, ShoalError, Unsupported
from shared.flower import APP_RAISED, inputs_digest, like, reply_for_all, to_numpy, unpack_bytes
from shared.secagg.fields import Fields
from shared.secagg.graph import derive
from shared.secagg.messages import (
    PACKED_TYPE,
    RECORD,
    VECTOR_RECORD,
    Advert,
    Coin,
    Complaint,
    Confirmation,
    Deal,
    Inbox,
    Phase,
    Reveal,
    Shares,
)
from shared.secagg.quantize import Total, add_change, decode
from shared.secagg.schema import Arrays, Schema
from shared.secagg.server import Round
from shared.secagg.setup import Group, Setup
from shared.secagg.terms import GroupTerms, RoundTerms, rotation_of, to_bitmap

if TYPE_CHECKING:
    from coordinator.rounds.secure_grid import SecureGrid

SECURED = ("train", "evaluate")
MAKING = (Phase.KEYS, Phase.COINS, Phase.SHARES)  # of a group; who fails here is not in it
KEEPS_KEYS = LASTING | {
    APP_RAISED
}  # error codes: the app failed, the device goes on. Any other: it may have been restarted
MAX_REASON = 500  # characters; a device wrote them
Take = Callable[[int, Message], None]


@dataclass
class MadeGroup:
    """A group as the server uses it up: its seats by node id, letters that are still to be handed out, and the rounds gone by."""

    group: Group
    seats: Mapping[int, int]
    inboxes: dict[int, Inbox]
    rounds: int = 0

    def fits(self, nodes: Sequence[int]) -> bool:
        """Whether `nodes` are of this group, enough of it, and keys for a round are left."""
        known = set(nodes) <= set(self.seats) and all(self.seats[node] in self.group.dealt for node in nodes)
        return known and len(nodes) >= self.group.terms.fewest and self.rounds < self.group.terms.rounds

    def next_number(self) -> int:
        self.rounds += 1
        return self.rounds


@dataclass
class Exchange:
    """Outcomes are by node id. Who fails a phase is left out of all later ones."""

    grid: "SecureGrid"
    batch: list[Message]
    timeout: float | None
    outcomes: dict[int, Outcome] = field(init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.batch, key=lambda message: message.metadata.dst_node_id)
        self._requests = {message.metadata.dst_node_id: message for message in ordered}
        self.outcomes = dict.fromkeys(self._requests, Outcome(Fate.PRESENT))
        self._false: dict[int, int] = {}  # node → how many could not use what it dealt
        self._counted: set[int] = set()
        self._complained: set[int] = set()
        self._spoilt = False  # a device may have lost the group's keys, or cannot use what it was dealt
        self._deadline = None if self.timeout is None else self.grid.clock.monotonic() + self.timeout
        self._category = category_of(ordered[0])
        self._arrays_name, self._base = _only_arrays(ordered[0]) if self._category == "train" else ("", {})
        self._settings = self.grid.settings(self._category)
        self._inputs = _common_inputs(ordered, self.grid.client_app)
        self._round_id = self.grid.ids()
        self._schema(len(ordered))  # so that what cannot be summed is refused before any device hears of it

    def run(self) -> Message:
        try:
            group = self.grid.usable_group(tuple(self._requests)) or self._make_group()
            total = self._sum(group)
        except ShoalError as error:
            self.grid.carried.group = None
            self._close(aborted=str(error))
            raise
        self.grid.carried.settings[self._category] = self._settings.after(total)
        self._close(weight=total.weight)
        return reply_for_all(next(iter(self._requests.values())), self._mean(total))

    # ---- a group

    def _make_group(self) -> MadeGroup:
        config, nodes = self.grid.config, tuple(self._requests)
        if len(nodes) < config.quorum(len(nodes)):
            raise RoundAborted(f"{len(nodes)} devices were selected, {config.quorum(len(nodes))} are needed")
        derive(len(nodes), config.rates)  # raises where no graph bears the rates, before any device is asked
        terms = GroupTerms(self.grid.ids(), len(nodes), config.group_rounds, config.rates)
        setup = Setup(terms, self.grid.verifier)
        seats = {node: seat for seat, node in enumerate(nodes, start=1)}
        try:
            return self._agree(setup, seats)
        finally:
            self._blame(setup.false_dealers, {seat: node for node, seat in seats.items()})

    def _agree(self, setup: Setup, seats: Mapping[int, int]) -> MadeGroup:
        terms, group_id = setup.terms.to_fields(), setup.terms.group_id
        ask = _Asker(self, group_id, seats)
        ask(Phase.KEYS, {seat: {**terms, "index": seat} for seat in seats.values()}, _taker(Advert, setup.add_advert))
        members = setup.close_keys()
        if members is not None:
            ask(Phase.COINS, dict.fromkeys(members.leaves, members.to_fields()), _taker(Coin, setup.add_coin))
            setup.close_coins()
        near = {seat: setup.neighbourhood(seat).to_fields() for seat in setup.present}
        ask(Phase.SHARES, near, _taker(Deal, setup.add_deal))
        group, inboxes = setup.close_shares()
        return MadeGroup(group, seats, inboxes)

    # ---- a round

    def _sum(self, made: MadeGroup) -> Total:
        group, clients = made.group, made.group.terms.clients
        seats = {node: made.seats[node] for node in self._present() if made.seats[node] in group.dealt}
        schema = self._schema(clients)
        present = frozenset(seats.values())
        terms = RoundTerms(group.binding, made.next_number(), self._round_id, present, schema.digest, self._inputs)
        server = Round(group, terms, schema, quorum=self.grid.config.quorum(len(self._requests)))
        ask = _Asker(self, group.terms.group_id, made.seats)
        try:
            self._masked(made, server, ask)
            self._unmask(server, ask, clients)
            total = decode(schema, server.finish(self.grid.apply), len(server.counted))
        finally:
            self._blame(server.false_dealers, {seat: node for node, seat in made.seats.items()})
        self._settle(set(seats))
        self.grid.carried.group = None if self._false or self._spoilt else made
        return total

    def _schema(self, clients: int) -> Schema:
        return self._settings.schema(clients, self._base, rotation_of(self._round_id))

    def _masked(self, made: MadeGroup, server: Round, ask: "_Asker") -> None:
        terms, inboxes = server.terms, made.inboxes
        common = {
            **self._settings.to_fields(),
            "number": terms.number,
            "round_id": terms.round_id,
            "present": to_bitmap(terms.present, made.group.terms.clients),
            "schema_digest": terms.schema_digest,
            "inputs_digest": terms.inputs_digest,
        }
        work = {seat: {**common, **(inboxes[seat].to_fields() if seat in inboxes else {})} for seat in terms.present}

        def take(seat: int, reply: Message) -> None:
            answer = reply.content.get(RECORD)
            if isinstance(answer, ConfigRecord) and Complaint.FIELD in answer:
                server.add_complaint(seat, Complaint.from_fields(dict(answer)))
                node = ask.nodes[seat]
                self._fail(node, Fate.DROPPED, f"{Phase.MASKED}: it could not use the shares that it was dealt")
                self._complained.add(node)
                self._spoilt = True
                return
            record = reply.content.get(VECTOR_RECORD)
            if not isinstance(record, ArrayRecord) or list(record) != [VECTOR_RECORD]:
                raise Malformed("the reply holds no masked vector")
            server.add_vector(seat, unpack_bytes(record[VECTOR_RECORD], PACKED_TYPE))

        ask(Phase.MASKED, work, take)
        self._counted = {ask.nodes[seat] for seat in server.counted}
        made.inboxes = {seat: inbox for seat, inbox in inboxes.items() if seat not in server.counted}

    def _unmask(self, server: Round, ask: "_Asker", clients: int) -> None:
        counted = server.close_masked()
        said = {"counted": to_bitmap(counted, clients)}
        ask(Phase.CONFIRMED, dict.fromkeys(sorted(counted), said), _taker(Confirmation, server.add_confirmation))
        witness = {seat: item.to_fields() for seat, item in server.close_confirmed().items()}
        ask(Phase.UNMASKED, witness, _taker(Reveal, server.add_reveal))
        requests = {seat: item.to_fields() for seat, item in server.close_unmasked().items()}
        if requests:
            ask(Phase.RECOVERED, requests, _taker(Shares, server.add_shares))

    # ---- what becomes of devices

    def judge(self, phase: Phase, node: int, seat: int, reply: Message, take: Take) -> None:
        """One answer. What it is worth is up to `take`."""
        if reply.has_error():
            fate = Fate.REJECTED if reply.error.code in REJECTIONS else Fate.DROPPED
            self._spoilt |= phase not in MAKING and reply.error.code not in KEEPS_KEYS
            self._fail(node, fate, f"{phase}: {reply.error.reason or 'failed without a reason'}", reply.error.code)
            return
        try:
            take(seat, reply)
        except LocalError:
            raise
        except PeerError as error:
            self._fail(node, Fate.REJECTED, f"{phase}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever one device sends costs that device only
            self._fail(node, Fate.REJECTED, f"{phase}: an answer that cannot be read ({type(error).__name__})")

    def fail(self, phase: Phase, node: int) -> None:
        """No answer came."""
        self._spoilt |= phase not in MAKING
        self._fail(node, Fate.DROPPED, f"no answer in the phase {phase}")

    def _fail(self, node: int, fate: Fate, reason: str, code: int = 0) -> None:
        """A device whose vector was taken stays counted, whatever it does afterwards."""
        self.outcomes[node] = Outcome(Fate.PRESENT if node in self._counted else fate, reason[:MAX_REASON], code)

    def budget(self, phase: Phase) -> float:
        """Seconds that a phase may take. Raises `RoundAborted` when none are left."""
        left = float("inf") if self._deadline is None else self._deadline - self.grid.clock.monotonic()
        if left <= 0:
            raise RoundAborted(
                f"the exchange ran out of time before the phase {phase}: allow more, or select fewer devices"
            )
        return self.grid.config.timeouts.budget(phase, left)

    def message(self, phase: Phase, node: int, fields: Fields) -> Message:
        """A phase's question to one device. Only the masked phase carries what the app is to work on."""
        request = self._requests[node]
        original = dict(request.content.items()) if phase is Phase.MASKED else {}
        return like(request, RecordDict({**original, RECORD: ConfigRecord({**fields, "phase": str(phase)})}))

    def _present(self) -> list[int]:
        return [node for node, outcome in self.outcomes.items() if outcome.fate is Fate.PRESENT]

    def _blame(self, dealers: Mapping[int, int], nodes: Mapping[int, int]) -> None:
        self._false.update({nodes[seat]: said for seat, said in dealers.items()})

    def _settle(self, masked: set[int]) -> None:
        """The final table, once there is a sum. `masked` took part in the round: the masks of those that then failed were taken
        out.
        """
        for node, outcome in self.outcomes.items():
            if node in self._counted:
                self.outcomes[node] = Outcome(Fate.COUNTED, outcome.reason)
            elif node in masked and outcome.fate is Fate.DROPPED:
                self.outcomes[node] = Outcome(Fate.RECOVERED, outcome.reason)

    def _close(self, *, weight: int = 0, aborted: str = "") -> None:
        for node, said in self._false.items():
            counted = self.outcomes[node].fate is Fate.COUNTED
            reason = (
                f"dealt shares that {said} devices could not use" if said else "dealt shares that do not fit together"
            )
            self.outcomes[node] = Outcome(Fate.COUNTED if counted else Fate.REJECTED, reason)
        if aborted:
            for node, item in self.outcomes.items():
                if item.fate is Fate.PRESENT or (node in self._complained and item.fate is Fate.DROPPED):
                    self.outcomes[node] = Outcome(Fate.ABANDONED, item.reason)
        liars = tuple(self._false)
        summary = Summary(self._round_id, self._category, dict(self.outcomes), weight, aborted, liars)
        self.grid.observer.closed(summary)

    def _mean(self, total: Total) -> RecordDict:
        metrics = MetricRecord({self._settings.weight_key: total.weight, **total.metrics})
        if self._category != "train":
            return RecordDict({"metrics": metrics})
        arrays = {
            name: Array(add_change(str(base.dtype), base, total.changes[name])) for name, base in self._base.items()
        }
        return RecordDict({self._arrays_name: ArrayRecord(arrays), "metrics": metrics})


class _Asker:
    """Puts one question to each seat of a group and has its answer taken."""

    def __init__(self, exchange: Exchange, group_id: str, seats: Mapping[int, int]) -> None:
        self._exchange = exchange
        self._group_id = group_id
        self._seats = seats
        self.nodes = {seat: node for node, seat in seats.items()}

    def __call__(self, phase: Phase, questions: Mapping[int, Fields], take: Take) -> None:
        exchange, grid = self._exchange, self._exchange.grid
        waiting = {self.nodes[seat] for seat in questions}
        messages = [
            exchange.message(phase, self.nodes[seat], {**fields, "group_id": self._group_id})
            for seat, fields in questions.items()
        ]
        for reply in grid.inner.send_and_receive(messages, timeout=exchange.budget(phase)):
            node = reply.metadata.src_node_id
            if node not in waiting:
                continue  # a stranger, or a second answer
            waiting.discard(node)
            exchange.judge(phase, node, self._seats[node], reply, take)
        for node in waiting:
            exchange.fail(phase, node)
        grid.observer.phase(phase, dict(exchange.outcomes))


def _taker(kind: Any, take: Callable[[Any], None]) -> Take:
    """Reads an answer as `kind`, which says whose seat it is for, and hands it on."""

    def read(seat: int, reply: Message) -> None:
        answer = kind.from_fields(_fields(reply))
        claimed = answer.index if hasattr(answer, "index") else answer.sender
        if seat != claimed:
            raise ProtocolError(f"a device in seat {seat} answers for seat {claimed}")
        take(answer)

    return read


def category_of(message: Message) -> str:
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
