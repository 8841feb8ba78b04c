"""Our secure aggregation with all parts played in this process, one client at a time: what a client and the server cost.

CPU is charged to whoever's code runs. The server sees a client's vector only packed, and nothing outlives its client but what the
client itself would keep; so what this process holds at its peak is the server's memory, and one client's.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from shared.secagg.client import Client
from shared.secagg.fields import Fields
from shared.secagg.graph import Rates
from shared.secagg.keys import UnsignedIdentity, UnsignedVerifier
from shared.secagg.masks import apply_masks
from shared.secagg.packing import lane, pack
from shared.secagg.policy import Policy
from shared.secagg.quantize import Update, decode, encode
from shared.secagg.schema import Schema, array_fields
from shared.secagg.server import Apply, Round
from shared.secagg.setup import Group, Setup
from shared.secagg.terms import CLIPS, GroupTerms, RoundTerms, rotation_of

BITS = 8
Vectors = Callable[[int], NDArray[np.float32]]  # by seat


class Stopwatch:
    """CPU seconds of this process, by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._since = time.process_time()

    def charge(self, part: str) -> None:
        now = time.process_time()
        self.spent[part] = self.spent.get(part, 0.0) + now - self._since
        self._since = now

    def skip(self) -> None:
        """What was done since is nobody's."""
        self._since = time.process_time()


@dataclass(frozen=True)
class Cost:
    """CPU seconds a client and of the server, bytes up a client; how many masks the server expanded, and for how many seconds of
    wall time it worked once the last answer was there.
    """

    client_s: float
    server_s: float
    bytes_up: float
    masks: int = 0
    finish_s: float = 0.0


class Fleet:
    """`clients` seats with a group's keys for `rounds` rounds. Nobody signs: Flower's clients do not either."""

    def __init__(self, clients: int, rates: Rates, rounds: int) -> None:
        self._terms = GroupTerms("bench", clients, rounds, rates)
        self._watch = Stopwatch()
        self._members = {seat: Client(self._terms, seat, Policy()) for seat in range(1, clients + 1)}
        self._group, self.setup = self._make()

    def _make(self) -> tuple[Group, Cost]:
        watch, verifier, members = self._watch, UnsignedVerifier(), self._members
        setup = Setup(self._terms, verifier)
        identities = {seat: UnsignedIdentity(f"device-{seat}") for seat in members}
        sent = self._each(
            members, lambda seat, client: client.advertise(identities[seat], os.urandom), setup.add_advert
        )
        listed = setup.close_keys()
        watch.charge("server")
        if listed is not None:
            sent += self._each(members, lambda _, client: client.toss(listed), setup.add_coin)
            setup.close_coins()
            watch.charge("server")
        near = {seat: setup.neighbourhood(seat) for seat in members}
        watch.charge("server")
        sent += self._each(members, lambda seat, client: client.share(near[seat], verifier, os.urandom), setup.add_deal)
        group, inboxes = setup.close_shares()
        watch.charge("server")
        for seat, client in members.items():
            members[seat] = client.receive(inboxes[seat])
        watch.charge("client")
        count = len(members)
        return group, Cost(watch.spent["client"] / count, watch.spent["server"], sent / count)

    def round(self, number: int, vectors: Vectors, dropped: frozenset[int], apply: Apply = apply_masks) -> Cost:
        """Round `number`: `dropped` send no vector. Raises `ArithmeticError` unless the sum is that of the rounded vectors."""
        watch, members = self._watch, self._members
        watch.spent.clear()
        schema = self._schema(number, vectors(1).size)
        terms = RoundTerms(self._group.binding, number, f"round-{number}", frozenset(members), schema.digest, "inputs")
        server = Round(self._group, terms, schema)
        expected, sent = schema.zeros(), 0
        for seat in members:
            packed = self._masked(seat, terms, schema, vectors(seat), expected if seat not in dropped else None)
            if seat in dropped:
                continue
            sent += len(packed)
            watch.skip()
            server.add_vector(seat, packed)
            watch.charge("server")
        counted = server.close_masked()
        sent += self._each(sorted(counted), lambda _, client: client.confirm(counted), server.add_confirmation)
        witness = server.close_confirmed()
        watch.charge("server")
        masks = len(counted)

        def reveal(seat: int, client: Client) -> tuple[Client, Any]:
            nonlocal masks
            client, found = client.reveal(witness[seat])
            masks += len(found.pairs)
            return client, found

        sent += self._each(sorted(counted), reveal, server.add_reveal)
        began = time.perf_counter()
        if server.close_unmasked():
            raise ArithmeticError("nobody was silent, and yet shares are asked for")
        total = server.finish(apply)
        took = time.perf_counter() - began
        watch.charge("server")
        low = total.dtype.type((1 << schema.modulus_bits) - 1)
        if not np.array_equal(total & low, expected & low):
            raise ArithmeticError("the sum is not that of the rounded vectors")
        watch.skip()
        decode(schema, total, len(counted))
        watch.charge("server")
        return Cost(watch.spent["client"] / len(members), watch.spent["server"], sent / len(counted), masks, took)

    def _schema(self, number: int, elements: int) -> Schema:
        rotation = rotation_of(f"round-{number}").hex()
        fields = array_fields({"w": np.empty(elements, np.float32)}, [1.0])
        return Schema(len(self._members), BITS, 1, (), fields, clip=CLIPS[BITS], rotation=rotation)

    def _masked(
        self, seat: int, terms: RoundTerms, schema: Schema, vector: NDArray[np.float32], expected: Any
    ) -> bytes:
        """A client's work from its float vector on; its rounded vector is added to `expected`, which is nobody's work."""
        watch, base = self._watch, {"w": np.zeros_like(vector)}
        watch.skip()
        residues, _ = encode(schema, Update(1, {}, {"w": vector}, base), os.urandom, feedback=False)
        watch.charge("client")
        if expected is not None:
            expected += residues
        watch.skip()
        self._members[seat] = self._members[seat].mask(terms, residues)
        packed = pack(residues, schema.modulus_bits)
        watch.charge("client")
        return packed

    def _each(
        self,
        seats: Iterable[int],
        act: Callable[[int, Client], tuple[Client, Any]],
        take: Callable[[Any], None],
    ) -> int:
        """Every client's part of a phase, then the server's taking of it. Returns the bytes that were sent up."""
        answers = []
        self._watch.skip()
        for seat in seats:
            self._members[seat], answer = act(seat, self._members[seat])
            answers.append(answer)
        self._watch.charge("client")
        sent = sum(bytes_of(answer.to_fields()) for answer in answers)
        self._watch.skip()
        for answer in answers:
            take(answer)
        self._watch.charge("server")
        return sent


def keystream_s(length: int, bits: int) -> float:
    """CPU seconds of AES-256-CTR for one mask, in blocks that stay in the cache, measured here: what no server can do without."""
    size, block = length * lane(bits).itemsize, bytearray(1 << 18)
    spent = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(8):
            cipher = Cipher(AES(bytes(32)), CTR(bytes(16))).encryptor()
            for done in range(0, size, len(block)):
                part = memoryview(block)[: size - done]
                cipher.update_into(part, part)
        spent.append((time.process_time() - start) / 8)
    return sorted(spent)[2]


def bytes_of(fields: Fields) -> int:
    """Of an answer, without any transport's framing."""
    return sum(map(size_of, fields.values()))


def size_of(value: Any) -> int:
    if isinstance(value, Iterable) and not isinstance(value, bytes | str):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, bytes | str) else 8
