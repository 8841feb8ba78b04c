"""A fleet for protocol tests: signed identities, and a round that a test can stop or damage between any two steps."""

import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import SignatureInvalid
from shared.secagg.client import Client, Policy
from shared.secagg.keys import Verifier
from shared.secagg.masks import Words
from shared.secagg.messages import Advert, Deal, Inbox, Reveal, Roster, UnmaskRequest
from shared.secagg.server import Server
from shared.secagg.terms import Terms

PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64
EVERYBODY = range(1, 1 << 16)


class Authority:
    """Signs devices' names and public keys, and checks what the devices sign."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def enrol(self, device: str) -> "CertifiedIdentity":
        key = Ed25519PrivateKey.generate()
        body = key.public_key().public_bytes_raw() + device.encode()
        return CertifiedIdentity(device, self._key.sign(body) + body, key)

    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str:
        stamp, body = certificate[:SIGNATURE_BYTES], certificate[SIGNATURE_BYTES:]
        try:
            self._key.public_key().verify(stamp, body)
            Ed25519PublicKey.from_public_bytes(body[:PUBLIC_BYTES]).verify(signature, data)
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid("this authority did not enrol the signer, or the signature is false") from error
        return body[PUBLIC_BYTES:].decode()


@dataclass(frozen=True)
class CertifiedIdentity:
    device: str
    certificate: bytes
    key: Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


@dataclass
class Round:
    """Every phase as one step; `alive` says who answers in it. Clients' vectors are `vectors[i]`."""

    size: int
    threshold: int
    length: int = 7
    authority: Authority = field(default_factory=Authority)
    policy: Policy = field(default_factory=Policy)
    clients: dict[int, Client] = field(default_factory=dict)
    vectors: dict[int, Words] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.terms = Terms(f"round-{os.urandom(4).hex()}", self.size, self.threshold, "0" * 64, "1" * 64)
        self.server = Server(self.terms, self.length, self.authority)
        self.identities = {i: self.authority.enrol(f"dev-{i}") for i in range(1, self.size + 1)}
        self.clients = {i: Client(self.terms, i, self.policy) for i in self.identities}
        rng = np.random.default_rng(self.size)
        self.vectors = {i: rng.integers(0, 2**32, self.length, dtype="<u4") for i in self.identities}

    @property
    def verifier(self) -> Verifier:
        return self.authority

    def keys(self, alive: Container[int] = EVERYBODY) -> Roster:
        for i in self._those(self.clients, alive):
            self.clients[i], advert = self.clients[i].advertise(self.identities[i], os.urandom)
            self.server.add_advert(advert)
        return self.server.close_keys()

    def shares(self, roster: Roster, alive: Container[int] = EVERYBODY) -> dict[int, Inbox]:
        for i in self._those([advert.index for advert in roster.adverts], alive):
            self.server.add_deal(self.deal(i, roster))
        return self.server.close_shares()

    def deal(self, index: int, roster: Roster) -> Deal:
        self.clients[index], deal = self.clients[index].share(roster, self.authority, os.urandom)
        return deal

    def masked(self, inboxes: dict[int, Inbox], alive: Container[int] = EVERYBODY) -> dict[int, UnmaskRequest]:
        for i in self._those(inboxes, alive):
            self.server.add_vector(i, self.mask(i, inboxes[i]))
        return self.server.close_masked()

    def mask(self, index: int, inbox: Inbox) -> Words:
        words = self.vectors[index].copy()
        self.clients[index] = self.clients[index].receive(inbox).mask(words)
        return words

    def unmasked(self, requests: dict[int, UnmaskRequest], alive: Container[int] = EVERYBODY) -> Words:
        for i in self._those(requests, alive):
            self.server.add_reveal(self.reveal(i, requests[i]))
        return self.server.finish()

    def reveal(self, index: int, request: UnmaskRequest) -> Reveal:
        self.clients[index], reveal = self.clients[index].reveal(request)
        return reveal

    def expected(self) -> Words:
        """The plain sum of those the server counts."""
        return plain_sum([self.vectors[i] for i in sorted(self.server.counted)])

    @staticmethod
    def _those(members: Iterable[int], alive: Container[int]) -> list[int]:
        return [i for i in sorted(members) if i in alive]


def plain_sum(vectors: list[Words]) -> Words:
    total: Words = np.add.reduce(vectors, dtype=np.dtype("<u4"))
    return total


def stranger(group: Round, index: int) -> Advert:
    """Keys for a seat, by a device of another authority."""
    client = Client(group.terms, index, Policy())
    return client.advertise(Authority().enrol(f"dev-{index}"), os.urandom)[1]


def flip(data: bytes) -> bytes:
    """The last bit changed."""
    return data[:-1] + bytes([data[-1] ^ 1])
