"""One group's part in a secure exchange: its keys, its round, and what became of each of its devices. Sans-IO.

`GroupExchange.steps` yields one `Asked` after another. Whoever drives it sends the messages, hands each answer to `take` as it
comes, calls `close` when no more will, and resumes: so one driver takes many groups through their phases side by side.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from coordinator.rounds.broadcasts import Broadcast
from coordinator.rounds.exchange import Fate, Outcome
from coordinator.rounds.validate import LASTING, REJECTIONS
from shared.client_apps import NO_KEYS
from shared.errors import LocalError, Malformed, PeerError, ProtocolError, RoundAborted
from shared.flower import APP_RAISED, REFUSED, like, unpack_bytes
from shared.privacy.events import CentralGaussian
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
from shared.secagg.private import central_noise
from shared.secagg.quantize import Total, decode
from shared.secagg.schema import Arrays, Schema
from shared.secagg.server import Round
from shared.secagg.setup import Group, Setup
from shared.secagg.terms import GroupTerms, RoundTerms, Settings, rotation_of, to_bitmap

if TYPE_CHECKING:
    from coordinator.rounds.secure_grid import SecureGrid

MAKING = (Phase.KEYS, Phase.COINS, Phase.SHARES)  # of a group; who fails here is not in it
# Error codes: the app failed, or the device or this server said no, and it goes on. Any other: it may have been restarted.
KEEPS_KEYS = LASTING | {APP_RAISED, REFUSED}
LARGE = 32  # devices of a group: keys last though a few may have lost theirs
MAX_REASON = 500  # characters; a device wrote them
Take = Callable[[int, Message], None]


@dataclass(frozen=True)
class Work:
    """What the devices of an exchange are asked to do, in whichever group they are. `base` is what they train, by array, and
    `broadcast` how it gets to them, if not whole.
    """

    round_id: str
    category: str
    settings: Settings
    inputs: str  # the digest of all that they are given
    arrays_name: str
    base: Arrays
    broadcast: Broadcast | None = None

    def plan(self, clients: int, dropped: int) -> tuple[Settings, Schema]:
        """For a group of so many, of which `dropped` need not be counted: the settings, with the noise that its devices are to add,
        if any, and the layout of their vectors. Raises `Unsupported` for what cannot be summed.
        """
        settings = self.settings.with_noise(clients, dropped, self.base)
        return settings, settings.schema(clients, self.base, rotation_of(self.round_id))


@dataclass
class MadeGroup:
    """A group as the server uses it up: its seats by node id, letters that are still to be handed out, the rounds gone by, which
    version of the model (`Broadcast`) each device surely holds, by node id, and who may have lost its keys: it failed, or did not
    answer, and was not counted since.
    """

    group: Group
    seats: Mapping[int, int]
    inboxes: dict[int, Inbox]
    rounds: int = 0
    held: dict[int, int] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)

    def fits(self, nodes: Sequence[int], quorum: int, *, cautious: bool) -> bool:
        """Whether `nodes` are of this group, keys for a round are left, and those who surely have theirs, with half of the others,
        are enough for a sum over `quorum` devices at least: most that were silent are back with their keys.

        Where an attempt that comes to nothing is dear (`cautious`), nobody may be doubtful; nor in a small group, which keys cost
        little, and a device left out for a round much.
        """
        known = set(nodes) <= set(self.seats) and all(self.seats[node] in self.group.dealt for node in nodes)
        sure, terms = len(set(nodes) - self.doubtful), self.group.terms
        known &= sure == len(nodes) or not (cautious or terms.clients < LARGE)
        return known and (sure + len(nodes)) // 2 >= max(terms.fewest, quorum) and self.rounds < terms.rounds

    def next_number(self) -> int:
        self.rounds += 1
        return self.rounds


class Asked:
    """One question to some devices of a group. Its `messages` are made as they are taken: who sends one at a time holds one."""

    def __init__(
        self, exchange: "GroupExchange", phase: Phase, nodes: Iterable[int], messages: Iterator[Message], take: Take
    ) -> None:
        self.phase, self.messages = phase, messages
        self.waiting = set(nodes)
        self._exchange, self._take = exchange, take

    def take(self, reply: Message) -> None:
        """An answer: a stranger's, or a second one, is passed over. What is wrong with it costs that device only."""
        node = reply.metadata.src_node_id
        if node in self.waiting:
            self.waiting.discard(node)
            self._exchange.judge(self.phase, node, reply, self._take)

    def close(self) -> None:
        """Whoever has not answered has dropped out."""
        for node in self.waiting:
            self._exchange.fail(self.phase, node)


class GroupExchange:
    """Outcomes are by node id. Who fails a phase is left out of all later ones.

    `made` are keys that are there already; keys for so many `rounds` are made where they are not. Afterwards it is what can be
    used again, if anything.
    """

    def __init__(
        self, grid: "SecureGrid", work: Work, requests: Mapping[int, Message], made: MadeGroup | None, rounds: int
    ) -> None:
        self._grid, self._work, self._requests, self._rounds = grid, work, requests, rounds
        self.made = made
        self.outcomes = dict.fromkeys(requests, Outcome(Fate.PRESENT))
        self.false_dealers: dict[int, int] = {}  # node → how many could not use what it dealt
        self.failed = False  # it came to no sum, and is closed
        self._counted: set[int] = set()
        self._complained: set[int] = set()
        self._doubtful: set[int] = set()  # nodes that may have lost the group's keys in this exchange
        self._spoilt = False  # a device has lost the group's keys, or cannot use what it was dealt
        self._held: Mapping[int, int] = {}

    def steps(self) -> Generator[Asked, None, Total]:
        """Raises `RoundAborted` when too few take part, or the sum cannot be right."""
        made = self.made or (yield from self._make())
        total = yield from self._sum(made)
        made.doubtful = made.doubtful - self._counted | self._doubtful
        self.made = None if self.false_dealers or self._spoilt else made
        return total

    def close(self, *, used: bool, reason: str = "") -> None:
        """The last word on each device. Not `used`: there is no sum, or it counts for nothing, for this `reason`."""
        self.failed = not used
        for node, said in self.false_dealers.items():
            counted = used and self.outcomes[node].fate is Fate.COUNTED
            why = f"dealt shares that {said} devices could not use" if said else "dealt shares that do not fit together"
            self.outcomes[node] = Outcome(Fate.COUNTED if counted else Fate.REJECTED, why)
        if used:
            return
        self.made = None
        for node, item in self.outcomes.items():
            innocent = node in self._complained and item.fate is Fate.DROPPED
            if innocent or item.fate in (Fate.PRESENT, Fate.COUNTED):
                self.outcomes[node] = Outcome(Fate.ABANDONED, item.reason or reason)

    # ---- keys

    def _make(self) -> Generator[Asked, None, MadeGroup]:
        config, nodes = self._grid.config, tuple(self._requests)
        if len(nodes) < config.quorum(len(nodes)):
            raise RoundAborted(f"{len(nodes)} devices were selected, {config.quorum(len(nodes))} are needed")
        rates = config.rates_in(len(nodes))
        derive(len(nodes), rates)  # raises where no graph bears the rates, before any device is asked
        terms = GroupTerms(self._grid.sources.ids(), len(nodes), self._rounds, rates)
        setup = Setup(terms, self._grid.verifier)
        seats = {node: seat for seat, node in enumerate(nodes, start=1)}
        try:
            return (yield from self._agree(setup, seats))
        finally:
            self._blame(setup.false_dealers, seats)

    def _agree(self, setup: Setup, seats: Mapping[int, int]) -> Generator[Asked, None, MadeGroup]:
        terms, ask = setup.terms.to_fields(), _Asker(self, setup.terms.group_id, seats)
        yield ask(Phase.KEYS, seats.values(), lambda seat: {**terms, "index": seat}, _taker(Advert, setup.add_advert))
        members = setup.close_keys()
        if members is not None:
            listed = members.to_fields()
            yield ask(Phase.COINS, members.leaves, lambda _: listed, _taker(Coin, setup.add_coin))
            setup.close_coins()
        near = setup.neighbourhood
        yield ask(Phase.SHARES, setup.present, lambda seat: near(seat).to_fields(), _taker(Deal, setup.add_deal))
        group, inboxes = setup.close_shares()
        for node in (node for node, seat in seats.items() if seat in setup.left_out):
            self._fail(
                node,
                Fate.DROPPED,
                f"{Phase.SHARES}: its word about a mask is not that of a neighbour: one of them is wrong",
            )
        return MadeGroup(group, seats, inboxes)

    # ---- a round

    def _sum(self, made: MadeGroup) -> Generator[Asked, None, Total]:
        group, clients = made.group, made.group.terms.clients
        seats = {node: made.seats[node] for node in self._present() if made.seats[node] in group.dealt}
        work, dropped = self._work, group.terms.rates.dropped(clients)
        settings, schema = work.plan(clients, dropped)
        noise = self._spend(settings, schema, dropped)
        present = frozenset(seats.values())
        terms = RoundTerms(group.binding, made.next_number(), work.round_id, present, schema.digest, work.inputs)
        server = Round(group, terms, schema, quorum=self._grid.config.quorum(len(self._requests)))
        ask = _Asker(self, group.terms.group_id, made.seats)
        try:
            yield from self._masked(made, server, ask, settings)
            yield from self._unmask(server, ask, clients)
            summed = server.finish(self._grid.apply)
            central = central_noise(noise, self._grid.sources.entropy) if noise else None
            total = decode(schema, summed, len(server.counted), central)
        finally:
            self._blame(server.false_dealers, made.seats)
        self._settle(set(seats))
        return total

    def _spend(self, settings: Settings, schema: Schema, dropped: int) -> CentralGaussian | None:
        """Say what a private exchange will cost. Returns the noise that the server itself must add, if any."""
        if settings.privacy is None:
            return None
        event = settings.privacy.calibrated(schema, dropped)
        self._grid.observer.spends(event)
        return event if isinstance(event, CentralGaussian) else None

    def _masked(
        self, made: MadeGroup, server: Round, ask: "_Asker", settings: Settings
    ) -> Generator[Asked, None, None]:
        terms, inboxes = server.terms, made.inboxes
        common = {
            **settings.to_fields(),
            "number": terms.number,
            "round_id": terms.round_id,
            "present": to_bitmap(terms.present, made.group.terms.clients),
            "schema_digest": terms.schema_digest,
            "inputs_digest": terms.inputs_digest,
        }

        def work(seat: int) -> Fields:
            return {**common, **inboxes[seat].to_fields()} if seat in inboxes else common

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

        self._held = made.held
        yield ask(Phase.MASKED, terms.present, work, take)
        self._counted = {ask.nodes[seat] for seat in server.counted}
        if (sent := self._work.broadcast) is not None:
            made.held = dict.fromkeys(self._counted, sent.version)
        made.inboxes = {seat: inbox for seat, inbox in inboxes.items() if seat not in server.counted}

    def _unmask(self, server: Round, ask: "_Asker", clients: int) -> Generator[Asked, None, None]:
        counted = server.close_masked()
        said = {"counted": to_bitmap(counted, clients)}
        yield ask(Phase.CONFIRMED, sorted(counted), lambda _: said, _taker(Confirmation, server.add_confirmation))
        witness = server.close_confirmed()
        yield ask(Phase.UNMASKED, witness, lambda seat: witness[seat].to_fields(), _taker(Reveal, server.add_reveal))
        requests = server.close_unmasked()
        if requests:
            shares = _taker(Shares, server.add_shares)
            yield ask(Phase.RECOVERED, requests, lambda seat: requests[seat].to_fields(), shares)

    # ---- what becomes of devices

    def judge(self, phase: Phase, node: int, reply: Message, take: Take) -> None:
        """One answer. What it is worth is up to `take`."""
        if reply.has_error():
            fate = Fate.REJECTED if reply.error.code in REJECTIONS else Fate.DROPPED
            if phase not in MAKING and reply.error.code not in KEEPS_KEYS:
                self._doubtful.add(node)
                self._spoilt |= reply.error.code == NO_KEYS
            self._fail(node, fate, f"{phase}: {reply.error.reason or 'failed without a reason'}", reply.error.code)
            return
        try:
            take(node, reply)
        except LocalError:
            raise
        except PeerError as error:
            self._fail(node, Fate.REJECTED, f"{phase}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever one device sends costs that device only
            self._fail(node, Fate.REJECTED, f"{phase}: an answer that cannot be read ({type(error).__name__})")

    def fail(self, phase: Phase, node: int) -> None:
        """No answer came."""
        if phase not in MAKING:
            self._doubtful.add(node)
        self._fail(node, Fate.DROPPED, f"no answer in the phase {phase}")

    def _fail(self, node: int, fate: Fate, reason: str, code: int = 0) -> None:
        """A device whose vector was taken stays counted, whatever it does afterwards."""
        self.outcomes[node] = Outcome(Fate.PRESENT if node in self._counted else fate, reason[:MAX_REASON], code)

    def message(
        self, phase: Phase, node: int, fields: Fields, group_id: str, known: dict[Hashable, ConfigRecord]
    ) -> Message:
        """A phase's question to one device. Only the masked phase carries what the app is to work on.

        Devices that are told the same share a record, which is in `known`: Flower takes long to make one.
        """
        request, content = self._requests[node], RecordDict()
        said: Fields = {}
        told: Hashable = None
        if phase is Phase.MASKED:
            held, counted = self._held.get(node, 0), self._grid.carried.counted.get(node, "")
            content, told = request.content, (held, counted)
            if (sent := self._work.broadcast) is not None:
                content, said = sent.for_holder(content, held)
            said = {**said, "counted_round": counted}
        if told not in known:
            known[told] = ConfigRecord({**fields, **said, "group_id": group_id, "phase": str(phase)})
        return like(request, RecordDict({**content, RECORD: known[told]}))

    def _present(self) -> list[int]:
        return [node for node, outcome in self.outcomes.items() if outcome.fate is Fate.PRESENT]

    def _blame(self, dealers: Mapping[int, int], seats: Mapping[int, int]) -> None:
        nodes = {seat: node for node, seat in seats.items()}
        self.false_dealers.update({nodes[seat]: said for seat, said in dealers.items()})

    def _settle(self, masked: set[int]) -> None:
        """The final table, once there is a sum. `masked` took part in the round: the masks of those that then failed were taken
        out.
        """
        for node, outcome in self.outcomes.items():
            if node in self._counted:
                self.outcomes[node] = Outcome(Fate.COUNTED, outcome.reason)
            elif node in masked and outcome.fate is Fate.DROPPED:
                self.outcomes[node] = Outcome(Fate.RECOVERED, outcome.reason)


class _Asker:
    """Puts one question to each seat of a group. `fields_of` gives the same object to seats that are told the same."""

    def __init__(self, exchange: GroupExchange, group_id: str, seats: Mapping[int, int]) -> None:
        self._exchange, self._group_id, self._seats = exchange, group_id, seats
        self.nodes = {seat: node for node, seat in seats.items()}

    def __call__(self, phase: Phase, seats: Iterable[int], fields_of: Callable[[int], Fields], take: Take) -> Asked:
        asked = tuple(seats)
        return Asked(
            self._exchange,
            phase,
            (self.nodes[seat] for seat in asked),
            self._messages(phase, asked, fields_of),
            lambda node, reply: take(self._seats[node], reply),
        )

    def _messages(self, phase: Phase, seats: Iterable[int], fields_of: Callable[[int], Fields]) -> Iterator[Message]:
        said: Fields = {}
        known: dict[Hashable, ConfigRecord] = {}  # of those that are told what `said` holds
        for seat in seats:
            fields = fields_of(seat)
            if fields is not said:
                said, known = fields, {}
            yield self._exchange.message(phase, self.nodes[seat], fields, self._group_id, known)


def _taker(kind: Any, take: Callable[[Any], None]) -> Take:
    """Reads an answer as `kind`, which says whose seat it is for, and hands it on."""

    def read(seat: int, reply: Message) -> None:
        record = reply.content.get(RECORD)
        if not isinstance(record, ConfigRecord):
            raise Malformed(f"the reply holds no record {RECORD!r}: is the device's app built with the secure mod?")
        answer = kind.from_fields(dict(record))
        claimed = answer.index if hasattr(answer, "index") else answer.sender
        if seat != claimed:
            raise ProtocolError(f"a device in seat {seat} answers for seat {claimed}")
        take(answer)

    return read
