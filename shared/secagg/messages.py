"""What clients and server say to each other: frozen values, each with a flat form. `from_fields` raises `Malformed`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from shared.errors import ProtocolError
from shared.secagg.fields import Fields, Reader
from shared.secagg.keys import KEY_BYTES, PROTOCOL, KeyPair, Secret, Verifier, bind, digest
from shared.secagg.terms import Terms

RECORD = "shoal.secagg"  # the record of a Flower message that makes it a phase of this protocol
VECTOR_RECORD = "masked"
WORDS_TYPE = "shoal.secagg.words"  # how a masked vector is serialized: little-endian uint32, raw

_PROBE = KeyPair.from_private(Secret(bytes(range(KEY_BYTES))))  # no secret: it finds public keys of small order


class Phase(StrEnum):
    """One exchange with every client that is left."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    UNMASKED = "unmasked"


@dataclass(frozen=True)
class Advert:
    """A client's two public keys. The signature is by the device's long-lived key over `statement(terms)`."""

    index: int
    device: str
    share_public: bytes
    mask_public: bytes
    certificate: bytes
    signature: bytes

    def statement(self, terms: Terms) -> bytes:
        return bind(PROTOCOL, "advert", terms.digest, self.index, self.device, self.share_public, self.mask_public)

    def check(self, terms: Terms, verifier: Verifier) -> None:
        """Raises `SignatureInvalid` unless the named device signed these keys for this round; `ProtocolError`."""
        if len(self.share_public) != KEY_BYTES or len(self.mask_public) != KEY_BYTES:
            raise ProtocolError(f"the keys of {self.device} are not X25519 keys")
        for public in (self.share_public, self.mask_public):
            _PROBE.agree(public)
        signer = verifier.verify(self.certificate, self.signature, self.statement(terms))
        if signer != self.device:
            raise ProtocolError(f"the keys of {self.device} are signed by {signer}")

    def to_fields(self) -> Fields:
        return Roster((self,)).to_fields()

    @classmethod
    def from_fields(cls, fields: Fields) -> "Advert":
        adverts = Roster.from_fields(fields).adverts
        Reader(fields, "an advert").columns(adverts, (None,))
        return adverts[0]


@dataclass(frozen=True)
class Roster:
    """Everybody whose keys arrived, in ascending order of index."""

    adverts: tuple[Advert, ...]

    def to_fields(self) -> Fields:
        return {
            "indices": [item.index for item in self.adverts],
            "devices": [item.device for item in self.adverts],
            "share_publics": [item.share_public for item in self.adverts],
            "mask_publics": [item.mask_public for item in self.adverts],
            "certificates": [item.certificate for item in self.adverts],
            "signatures": [item.signature for item in self.adverts],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Roster":
        read = Reader(fields, "the keys of a round")
        rows = read.columns(
            read.integers("indices"),
            read.texts("devices"),
            read.blobs("share_publics"),
            read.blobs("mask_publics"),
            read.blobs("certificates"),
            read.blobs("signatures"),
        )
        return cls(tuple(Advert(*row) for row in rows))


@dataclass(frozen=True)
class Letter:
    """One holder's two shares, sealed, with commitments by which a changed share is told and its holder named.

    `peer` is the recipient in a `Deal`, the sender in an `Inbox`. A dealer's letter to itself has an empty box.
    """

    peer: int
    box: bytes
    key_commitment: bytes
    seed_commitment: bytes


@dataclass(frozen=True)
class Deal:
    """All shares that one client deals. `seed_digest` is what the recovered seed must hash to."""

    sender: int
    seed_digest: bytes
    letters: tuple[Letter, ...]

    def to_fields(self) -> Fields:
        return {"sender": self.sender, "seed_digest": self.seed_digest, **_letters_to_fields(self.letters)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Deal":
        read = Reader(fields, "a deal of shares")
        return cls(read.integer("sender"), read.blob("seed_digest"), _letters_from_fields(read))


@dataclass(frozen=True)
class Inbox:
    """The letters to one client. Their senders are the clients that may still be counted."""

    letters: tuple[Letter, ...]

    def to_fields(self) -> Fields:
        return _letters_to_fields(self.letters)

    @classmethod
    def from_fields(cls, fields: Fields) -> "Inbox":
        return cls(_letters_from_fields(Reader(fields, "the shares for this device")))


def _letters_to_fields(letters: tuple[Letter, ...]) -> Fields:
    return {
        "peers": [item.peer for item in letters],
        "boxes": [item.box for item in letters],
        "key_commitments": [item.key_commitment for item in letters],
        "seed_commitments": [item.seed_commitment for item in letters],
    }


def _letters_from_fields(read: Reader) -> tuple[Letter, ...]:
    rows = read.columns(
        read.integers("peers"),
        read.blobs("boxes"),
        read.blobs("key_commitments"),
        read.blobs("seed_commitments"),
    )
    return tuple(Letter(*row) for row in rows)


@dataclass(frozen=True)
class Complaint:
    """In place of a masked vector: this client cannot use what `dealers` dealt it."""

    FIELD: ClassVar[str] = "false_dealers"  # by which it is told from other answers

    dealers: tuple[int, ...]

    def to_fields(self) -> Fields:
        return {self.FIELD: list(self.dealers)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Complaint":
        return cls(tuple(Reader(fields, "a complaint").integers(cls.FIELD)))


@dataclass(frozen=True)
class UnmaskRequest:
    """Of whom the server wants seeds (counted) and of whom mask keys (dropped after dealing). Nobody may be in both."""

    seeds_of: tuple[int, ...]
    keys_of: tuple[int, ...]

    def to_fields(self) -> Fields:
        return {"seeds_of": list(self.seeds_of), "keys_of": list(self.keys_of)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "UnmaskRequest":
        read = Reader(fields, "an unmask request")
        return cls(tuple(read.integers("seeds_of")), tuple(read.integers("keys_of")))


@dataclass(frozen=True)
class Reveal:
    """One client's answer: its share of each requested secret, by dealer."""

    sender: int
    seed_shares: Mapping[int, Secret]
    key_shares: Mapping[int, Secret]

    def to_fields(self) -> Fields:
        return {
            "sender": self.sender,
            "seeds_of": list(self.seed_shares),
            "seed_shares": [share.reveal() for share in self.seed_shares.values()],
            "keys_of": list(self.key_shares),
            "key_shares": [share.reveal() for share in self.key_shares.values()],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Reveal":
        read = Reader(fields, "revealed shares")
        seeds = read.columns(read.integers("seeds_of"), read.blobs("seed_shares"))
        keys = read.columns(read.integers("keys_of"), read.blobs("key_shares"))
        return cls(
            read.integer("sender"),
            {dealer: Secret(share) for dealer, share in seeds},
            {dealer: Secret(share) for dealer, share in keys},
        )


def share_commitment(kind: str, terms: Terms, dealer: int, holder: int, share: Secret) -> bytes:
    """Hiding, since a share of a threshold above one is uniform; binding, so a holder cannot change it later."""
    return digest("share", kind, terms.digest, dealer, holder, share.reveal())


def seed_digest(terms: Terms, dealer: int, seed: Secret) -> bytes:
    return digest("seed", terms.digest, dealer, seed.reveal())
