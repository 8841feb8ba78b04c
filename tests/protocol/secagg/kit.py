"""A fleet for protocol tests: signed identities, a group in the making, and rounds that a test can stop or damage anywhere."""

import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import FalseShares, SignatureInvalid
from shared.secagg.client import Client
from shared.secagg.graph import Rates, draw
from shared.secagg.keys import Verifier
from shared.secagg.messages import (
    Advert,
    Confirmation,
    Deal,
    Inbox,
    Members,
    Neighbourhood,
    RecoveryRequest,
    Reveal,
    Roster,
    Shares,
    Witness,
    graph_seed,
)
from shared.secagg.packing import Words
from shared.secagg.policy import Policy
from shared.secagg.schema import ArrayField, Schema
from shared.secagg.server import Round
from shared.secagg.setup import Group, Setup
from shared.secagg.terms import GroupTerms, RoundTerms

PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64
EVERYBODY = range(1, 1 << 16)
SPARSE = Rates(0.05, 0.05)  # of 30 clients: 24 draws of neighbours each, 24 witnesses


class Authority:
    """Signs devices' names and public keys, and checks what the devices sign, each thing once."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._verified: dict[tuple[bytes, bytes, bytes], str] = {}

    def enrol(self, device: str) -> "CertifiedIdentity":
        key = Ed25519PrivateKey.generate()
        body = key.public_key().public_bytes_raw() + device.encode()
        return CertifiedIdentity(device, self._key.sign(body) + body, key)

    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str:
        if device := self._verified.get((certificate, signature, data)):
            return device
        stamp, body = certificate[:SIGNATURE_BYTES], certificate[SIGNATURE_BYTES:]
        try:
            self._key.public_key().verify(stamp, body)
            Ed25519PublicKey.from_public_bytes(body[:PUBLIC_BYTES]).verify(signature, data)
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid("this authority did not enrol the signer, or the signature is false") from error
        return self._verified.setdefault((certificate, signature, data), body[PUBLIC_BYTES:].decode())


@dataclass(frozen=True)
class CertifiedIdentity:
    device: str
    certificate: bytes
    key: Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


@dataclass
class Fleet:
    """Every phase as one step; `alive` says who answers in it. In a round, clients' vectors are `vectors[seat]`."""

    size: int
    rates: Rates = field(default_factory=lambda: Rates(0.2, 0.0))
    rounds: int = 3
    bits: int = 8
    length: int = 7
    policy: Policy = field(default_factory=Policy)
    authority: Authority = field(default_factory=Authority)
    clients: dict[int, Client] = field(default_factory=dict)
    vectors: dict[int, Words] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.terms = GroupTerms(f"group-{os.urandom(4).hex()}", self.size, self.rounds, self.rates)
        self.setup = Setup(self.terms, self.authority)
        self.identities = {i: self.authority.enrol(f"dev-{i}") for i in range(1, self.size + 1)}
        self.clients = {i: Client(self.terms, i, self.policy) for i in self.identities}
        self.schema = Schema(self.size, self.bits, 10, (), (ArrayField("w", (self.length,), "float32", 1.0),))
        self.group: Group
        self.server: Round

    @property
    def verifier(self) -> Verifier:
        return self.authority

    # ---- the group

    def keys(self, alive: Container[int] = EVERYBODY) -> Members | None:
        for i in _those(self.clients, alive):
            self.setup.add_advert(self.advertise(i))
        return self.setup.close_keys()

    def advertise(self, seat: int) -> Advert:
        self.clients[seat], advert = self.clients[seat].advertise(self.identities[seat], os.urandom)
        return advert

    def coins(self, members: Members | None, alive: Container[int] = EVERYBODY) -> dict[int, Neighbourhood]:
        """Nothing to toss where the graph is complete."""
        if members is not None:
            for i in _those(members.leaves, alive):
                self.clients[i], coin = self.clients[i].toss(members)
                self.setup.add_coin(coin)
            self.setup.close_coins()
        return {i: self.setup.neighbourhood(i) for i in self.setup.present}

    def shares(self, near: Mapping[int, Neighbourhood], alive: Container[int] = EVERYBODY) -> dict[int, Inbox]:
        for i in _those(near, alive):
            self.setup.add_deal(self.deal(i, near[i]))
        return self.close_shares()

    def deal(self, seat: int, near: Neighbourhood) -> Deal:
        self.clients[seat], deal = self.clients[seat].share(near, self.authority, os.urandom)
        return deal

    def close_shares(self) -> dict[int, Inbox]:
        self.group, inboxes = self.setup.close_shares()
        return inboxes

    def receive(self, inboxes: Mapping[int, Inbox]) -> None:
        for i in inboxes:
            self.clients[i] = self.clients[i].receive(inboxes[i])

    def make(self) -> "Fleet":
        """The whole group, nobody missing."""
        self.receive(self.shares(self.coins(self.keys())))
        return self

    # ---- a round

    def begin(self, number: int = 1, present: Iterable[int] | None = None) -> RoundTerms:
        """A round with new random vectors."""
        seats = frozenset(self.group.dealt if present is None else present)
        schema = self.schema.digest
        terms = RoundTerms(self.group.binding, number, f"round-{os.urandom(4).hex()}", seats, schema, "1" * 64)
        self.server = Round(self.group, terms, self.schema)
        rng = np.random.default_rng(number)
        size = self.schema.layout.words
        self.vectors = {i: rng.integers(0, 1 << 64, size, dtype=np.uint64) for i in sorted(seats)}
        return terms

    def masked(self, alive: Container[int] = EVERYBODY) -> frozenset[int]:
        for i in _those(self.server.terms.present, alive):
            self.server.add_vector(i, self.mask(i))
        return self.server.close_masked()

    def mask(self, seat: int, terms: RoundTerms | None = None) -> bytes:
        words = self.vectors[seat].copy()
        self.clients[seat] = self.clients[seat].mask(terms or self.server.terms, words)
        return self.schema.layout.pack(words)

    def confirmed(self, counted: frozenset[int], alive: Container[int] = EVERYBODY) -> dict[int, Witness]:
        for i in _those(counted, alive):
            self.server.add_confirmation(self.confirm(i, counted))
        return self.server.close_confirmed()

    def confirm(self, seat: int, counted: frozenset[int]) -> Confirmation:
        self.clients[seat], confirmation = self.clients[seat].confirm(counted)
        return confirmation

    def unmasked(
        self, witnesses: Mapping[int, Witness], alive: Container[int] = EVERYBODY
    ) -> dict[int, RecoveryRequest]:
        for i in _those(witnesses, alive):
            self.server.add_reveal(self.reveal(i, witnesses[i]))
        return self.server.close_unmasked()

    def reveal(self, seat: int, witness: Witness) -> Reveal:
        self.clients[seat], reveal = self.clients[seat].reveal(witness)
        return reveal

    def recovered(self, requests: Mapping[int, RecoveryRequest], alive: Container[int] = EVERYBODY) -> Words:
        for i in _those(requests, alive):
            self.server.add_shares(self.recover(i, requests[i]))
        return self.finish()

    def recover(self, seat: int, request: RecoveryRequest) -> Shares:
        self.clients[seat], shares = self.clients[seat].recover(request)
        return shares

    def finish(self) -> Words:
        return self.low(self.server.finish())

    def run(
        self,
        masked: Container[int] = EVERYBODY,
        confirmed: Container[int] = EVERYBODY,
        unmasked: Container[int] = EVERYBODY,
        recovered: Container[int] = EVERYBODY,
    ) -> Words:
        """A round to its end, for those who are alive in each phase."""
        witnesses = self.confirmed(self.masked(masked), confirmed)
        return self.recovered(self.unmasked(witnesses, unmasked), recovered)

    def expected(self) -> Words:
        """The plain sum of those whom the server counts."""
        return self.low(plain_sum([self.vectors[i] for i in sorted(self.server.counted)]))

    def low(self, words: Words) -> Words:
        return self.schema.layout.low(words)


def _those(members: Iterable[int], alive: Container[int]) -> list[int]:
    return [i for i in sorted(members) if i in alive]


def plain_sum(vectors: list[Words]) -> Words:
    total: Words = np.add.reduce(vectors, dtype=vectors[0].dtype)
    return total


def stranger(fleet: Fleet, seat: int) -> Advert:
    """Keys for a seat, by a device of another authority."""
    client = Client(fleet.terms, seat, Policy())
    return client.advertise(Authority().enrol(f"dev-{seat}"), os.urandom)[1]


def flip(data: bytes) -> bytes:
    """The last bit changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


def put(near: Neighbourhood, seat: int, advert: Advert) -> Neighbourhood:
    adverts = (advert if item.index == seat else item for item in near.roster.adverts)
    return replace(near, roster=Roster(tuple(adverts)))


def of(near: Neighbourhood, *adverts: Advert) -> Neighbourhood:
    return replace(near, roster=Roster(adverts))


def in_another_seat(fleet: Fleet, seat: int, device: int) -> Advert:
    """A device that works with the server sits down twice, with a new key."""
    return Client(fleet.terms, seat, Policy()).advertise(fleet.identities[device], os.urandom)[1]


def tossed(fleet: Fleet, views: Mapping[int, Members]) -> dict[int, bytes]:
    """The coins of all who are told of members, each of its own view."""
    coins = {}
    for seat, members in sorted(views.items()):
        fleet.clients[seat], coin = fleet.clients[seat].toss(members)
        coins[seat] = coin.coin
    return coins


def told(fleet: Fleet, seat: int, members: Members, coins: Mapping[int, bytes], *others: Advert) -> Neighbourhood:
    """What a server tells a seat that is to believe in these members and coins, and in some adverts in place of true ones."""
    graph = draw(fleet.size, fleet.terms.degrees, graph_seed(fleet.terms, members, coins))
    adverts = {i: client.draft.advert for i, client in fleet.clients.items() if client.draft}
    adverts |= {advert.index: advert for advert in others}
    return Neighbourhood(coins, Roster(tuple(adverts[other] for other in graph.contacts(seat) if other in coins)))


def assert_alone(fleet: Fleet, near: Mapping[int, Neighbourhood]) -> None:
    """Device 1 can open no letter that the server has, nor can another device open its."""
    deals = {}
    for seat, item in near.items():
        fleet.clients[seat], deals[seat] = fleet.clients[seat].share(item, fleet.verifier, os.urandom)
    other = next(seat for seat in deals if 1 in deals[seat].boxes)
    for reader, strange in ((1, set(deals[1].boxes)), (other, {1})):
        boxes = {}
        for sender in deals[reader].boxes:
            sent = deals[sender].boxes if sender in deals else {}
            boxes[sender] = sent.get(reader, bytes(100))  # no neighbour of it in the graph that it believes in
        with pytest.raises(FalseShares) as caught:
            fleet.clients[reader].receive(Inbox(boxes))
        assert set(caught.value.dealers) == strange
