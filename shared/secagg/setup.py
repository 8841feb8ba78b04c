"""The server's side of making a group: keys, coins, shares. It relays letters that it cannot open, and keeps digests and sealed
records.

A message is checked whole before anything changes. What a client gets wrong raises a `PeerError` (leave that client out, and
name it); what ends the group raises `RoundAborted`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from shared.errors import ProtocolError, RoundAborted
from shared.secagg.graph import Graph, draw
from shared.secagg.keys import KEY_BYTES, TAG_BYTES, KeyPair, Secret, Verifier
from shared.secagg.messages import (
    DIGEST_BYTES,
    Advert,
    Coin,
    Deal,
    Inbox,
    Members,
    Neighbourhood,
    Roster,
    coin_digest,
    graph_seed,
    group_binding,
)
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import SETUP, SetupEvent, SetupState, advance
from shared.secagg.terms import GroupTerms

SEAL_BYTES = 16  # what AES-GCM adds
_PROBE = KeyPair.from_private(
    Secret(bytes(range(KEY_BYTES)))
)  # no secret: it finds keys of small order before clients stumble


@dataclass(frozen=True)
class Dealt:
    """What the server keeps of one deal, by round number from 1: `[number - 1]`."""

    partners: tuple[int, ...]
    seed_digests: tuple[bytes, ...]
    key_digests: tuple[bytes, ...]
    records: tuple[bytes, ...]
    pair_digests: tuple[bytes, ...]


@dataclass(frozen=True)
class Group:
    """A group that is made. `dealt` is by seat: who may take part in its rounds."""

    terms: GroupTerms
    graph: Graph
    binding: bytes
    devices: Mapping[int, str]
    dealt: Mapping[int, Dealt]

    def holders(self, seat: int) -> tuple[int, ...]:
        return tuple(other for other in self.graph.neighbours(seat) if other in self.dealt)


@dataclass
class Setup:
    """One group in the making. `left_out` are seats whose word about a pair's mask differs from a partner's; `false_dealers`, with
    how many, those that differ from more than half of their partners: fewer might be lying about them.
    """

    terms: GroupTerms
    verifier: Verifier
    state: SetupState = SetupState.KEYS
    false_dealers: dict[int, int] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    _adverts: dict[int, Advert] = field(default_factory=dict)
    _coins: dict[int, bytes] = field(default_factory=dict)
    _deals: dict[int, Deal] = field(default_factory=dict)
    _graph: Graph | None = None

    def add_advert(self, advert: Advert) -> None:
        """Raises `ProtocolError` or `SignatureInvalid`."""
        state = advance(SETUP, self.state, SetupEvent.ADVERT)
        if not 1 <= advert.index <= self.terms.clients or advert.index in self._adverts:
            raise ProtocolError(f"client {advert.index} was not invited, or has sent keys already")
        for other in self._adverts.values():
            if advert.device == other.device or advert.public == other.public:
                raise ProtocolError(f"{advert.device} takes part in this group already, or another has its key")
        advert.check(self.terms, self.verifier)
        _PROBE.agree(advert.public)
        self._adverts[advert.index] = advert
        self.state = state

    @property
    def members(self) -> Members:
        return Members.of([self._adverts[seat] for seat in sorted(self._adverts)])

    def close_keys(self) -> Members | None:
        """What to ask coins with; nothing where the graph is complete. Raises `RoundAborted` for too few."""
        skip = self.terms.degrees.complete
        self._close(SetupEvent.SKIP_COINS if skip else SetupEvent.CLOSE_KEYS, len(self._adverts), "sent keys")
        if not skip:
            return self.members
        self._draw()
        return None

    def add_coin(self, coin: Coin) -> None:
        """Raises `ProtocolError`."""
        state = advance(SETUP, self.state, SetupEvent.COIN)
        advert = self._adverts.get(coin.index)
        if advert is None or coin.index in self._coins:
            raise ProtocolError(f"client {coin.index} sent no keys, or told its coin already")
        if len(coin.coin) != KEY_BYTES or coin_digest(self.terms, coin.index, coin.coin) != advert.coin_digest:
            raise ProtocolError(f"{advert.device} told another coin than it promised")
        self._coins[coin.index] = coin.coin
        self.state = state

    def close_coins(self) -> None:
        """Raises `RoundAborted` for too few."""
        self._close(SetupEvent.CLOSE_COINS, len(self._coins), "told their coins")
        self._draw()

    def _draw(self) -> None:
        coins = {seat: self._coins[seat] for seat in sorted(self._coins)}
        self._coins = coins
        self._graph = draw(self.terms.clients, self.terms.degrees, graph_seed(self.terms, self.members, coins))

    @property
    def present(self) -> tuple[int, ...]:
        """Who may deal shares, in ascending order."""
        return tuple(self._coins or sorted(self._adverts))

    def neighbourhood(self, seat: int) -> Neighbourhood:
        """What `seat` needs to deal shares."""
        near = [self._adverts[other] for other in self._drawn().contacts(seat) if other in self._present]
        return Neighbourhood(self._coins, Roster(tuple(near)))

    @property
    def _present(self) -> Mapping[int, object]:
        return self._coins or self._adverts

    def add_deal(self, deal: Deal) -> None:
        """Raises `ProtocolError`."""
        state = advance(SETUP, self.state, SetupEvent.DEAL)
        if deal.sender not in self._present or deal.sender in self._deals:
            raise ProtocolError(f"client {deal.sender} is not in this group, or has dealt shares already")
        graph, name = self._drawn(), self._adverts[deal.sender].device
        holders = [seat for seat in graph.neighbours(deal.sender) if seat in self._present]
        rounds = self.terms.rounds
        if list(deal.boxes) != holders:
            raise ProtocolError(f"{name} dealt shares to others than its neighbours")
        sizes = (
            ([*deal.boxes.values()], len(holders), 2 * SHARE_BYTES * rounds + SEAL_BYTES),
            (deal.seed_digests, rounds, DIGEST_BYTES),
            (deal.key_digests, rounds, DIGEST_BYTES),
            (deal.records, rounds, len(holders) * KEY_BYTES + SEAL_BYTES),
            (deal.pair_digests, rounds, len(holders) * TAG_BYTES),
        )
        if any(len(rows) != count or any(len(row) != size for row in rows) for rows, count, size in sizes):
            raise ProtocolError(f"{name} dealt shares, digests or records of another size or number than this group's")
        self._deals[deal.sender] = deal
        self.state = state

    def close_shares(self) -> tuple[Group, dict[int, Inbox]]:
        """The group, and each member's letters. Raises `RoundAborted` for too few.

        Two members that name different digests for their common mask cannot both be right. Whoever differs from most is left out.
        """
        self._leave_out_liars()
        self._close(SetupEvent.CLOSE_SHARES, len(self._deals), "dealt shares")
        graph, deals = self._drawn(), self._deals
        dealt = {
            seat: Dealt(
                tuple(other for other in graph.neighbours(seat) if other in self._present),
                deal.seed_digests,
                deal.key_digests,
                deal.records,
                deal.pair_digests,
            )
            for seat, deal in sorted(deals.items())
        }
        inboxes = {
            seat: Inbox({other: deals[other].boxes[seat] for other in graph.neighbours(seat) if other in deals})
            for seat in dealt
        }
        binding = group_binding(self.terms, self.members, graph.seed)
        devices = {seat: item.device for seat, item in self._adverts.items()}
        self._deals = {}
        return Group(self.terms, graph, binding, devices, dealt), inboxes

    def _leave_out_liars(self) -> None:
        quarrels = self._quarrels()
        while quarrels:
            differing = Counter(seat for pair in quarrels for seat in pair)
            most = max(differing.values())
            for seat in [seat for seat, count in differing.items() if count == most]:
                if 2 * most > len(self._near(seat)):
                    self.false_dealers[seat] = most
                self.left_out.add(seat)
                self._deals.pop(seat, None)
            quarrels = {pair for pair in quarrels if not pair & self.left_out}

    def _quarrels(self) -> set[frozenset[int]]:
        """Pairs of dealers whose digests of a common mask differ."""
        told: dict[tuple[int, int], bytes] = {}  # by teller and partner, until the partner's word is looked at
        quarrels = set()
        for seat, deal in self._deals.items():
            rows = np.frombuffer(b"".join(deal.pair_digests), np.uint8).reshape(self.terms.rounds, -1, TAG_BYTES)
            for place, other in enumerate(self._near(seat)):
                if other not in self._deals:
                    continue
                row = rows[:, place].tobytes()
                if (other, seat) not in told:
                    told[seat, other] = row
                elif told.pop((other, seat)) != row:
                    quarrels.add(frozenset({seat, other}))
        return quarrels

    def _near(self, seat: int) -> list[int]:
        return [other for other in self._drawn().neighbours(seat) if other in self._present]

    def abort(self) -> None:
        """Drop everything."""
        self.state = advance(SETUP, self.state, SetupEvent.ABORT)
        self._deals, self._coins = {}, {}

    def _drawn(self) -> Graph:
        if self._graph is None:
            raise ProtocolError("the graph of this group is not drawn yet")
        return self._graph

    def _close(self, event: SetupEvent, size: int, what: str) -> None:
        state = advance(SETUP, self.state, event)
        if size < self.terms.fewest:
            self.abort()
            raise RoundAborted(
                f"only {size} devices {what}, {self.terms.fewest} are needed: run the round again with fresh keys"
            )
        self.state = state
