"""What clients and server say to each other: frozen values, each with a flat form. `from_fields` raises `Malformed`.

Seats are numbered from 1. Rows of equal length travel end to end in one string of bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from shared.errors import Malformed, ProtocolError
from shared.secagg.fields import Fields, Reader
from shared.secagg.keys import KEY_BYTES, PROTOCOL, TAG_BYTES, Secret, Verifier, bind, bind_each, digest, digests
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import GroupTerms, row_of

RECORD = "shoal.secagg"  # the record of a Flower message that makes it a phase of this protocol
VECTOR_RECORD = "masked"
PACKED_TYPE = "shoal.secagg.packed"  # how a masked vector is serialized: see `packing`
DIGEST_BYTES = 32


class Phase(StrEnum):
    """One exchange with every client that is left. The first three are a group's, the others each round's."""

    KEYS = "keys"
    COINS = "coins"
    SHARES = "shares"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    UNMASKED = "unmasked"
    RECOVERED = "recovered"


@dataclass(frozen=True)
class Advert:
    """A client's public key and the digest of its coin. The signature is by the device's long-lived key over `statement(terms)`."""

    index: int
    device: str
    public: bytes
    coin_digest: bytes
    certificate: bytes
    signature: bytes

    def statement(self, terms: GroupTerms) -> bytes:
        return bind(PROTOCOL, "advert", terms.digest) + self._said

    def check(self, terms: GroupTerms, verifier: Verifier) -> None:
        """Raises `SignatureInvalid` unless the named device signed this key for this group; `ProtocolError`. Keys of small
        order pass: whoever agrees on something with them finds out.
        """
        if len(self.public) != KEY_BYTES or len(self.coin_digest) != DIGEST_BYTES:
            raise ProtocolError(f"the key of {self.device} is no X25519 key, or its coin's digest no digest")
        signer = verifier.verify(self.certificate, self.signature, self.statement(terms))
        if signer != self.device:
            raise ProtocolError(f"the key of {self.device} is signed by {signer}")

    @cached_property
    def leaf(self) -> bytes:
        """By which others know this advert without having it."""
        return digest("leaf", ending=self._said)

    @cached_property
    def _said(self) -> bytes:
        return bind(self.index, self.device, self.public, self.coin_digest)

    def to_fields(self) -> Fields:
        return Roster((self,)).to_fields()

    @classmethod
    def from_fields(cls, fields: Fields) -> "Advert":
        adverts = Roster.from_fields(fields).adverts
        Reader(fields, "an advert").columns(adverts, (None,))
        return adverts[0]


@dataclass(frozen=True)
class Roster:
    """Adverts, in ascending order of seat."""

    adverts: tuple[Advert, ...]

    def to_fields(self) -> Fields:
        return {
            "indices": [item.index for item in self.adverts],
            "devices": [item.device for item in self.adverts],
            "publics": [item.public for item in self.adverts],
            "coin_digests": [item.coin_digest for item in self.adverts],
            "certificates": [item.certificate for item in self.adverts],
            "signatures": [item.signature for item in self.adverts],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Roster":
        read = Reader(fields, "the keys of a group")
        rows = read.columns(
            read.integers("indices"),
            read.texts("devices"),
            read.blobs("publics"),
            read.blobs("coin_digests"),
            read.blobs("certificates"),
            read.blobs("signatures"),
        )
        return cls(tuple(Advert(*row) for row in rows))


@dataclass(frozen=True)
class Members:
    """Everybody whose key arrived: each seat's leaf, coin digest and device, by its tag. What a client has seen before it tells
    its coin.

    A client knows the devices of its neighbours. That nobody has two seats it knows of all: a false tag is found by any neighbour.
    """

    leaves: Mapping[int, bytes]
    coin_digests: Mapping[int, bytes]
    devices: Mapping[int, bytes]

    @cached_property
    def digest(self) -> bytes:
        seats = sorted(self.leaves)
        rows = (self.leaves[seat] + self.coin_digests[seat] + self.devices[seat] for seat in seats)
        return digest("members", row_of(seats), b"".join(rows))

    @classmethod
    def of(cls, adverts: Sequence[Advert]) -> "Members":
        return cls(
            {item.index: item.leaf for item in adverts},
            {item.index: item.coin_digest for item in adverts},
            {item.index: device_tag(item.device) for item in adverts},
        )

    def to_fields(self) -> Fields:
        return {
            "seats": list(self.leaves),
            "leaves": b"".join(self.leaves.values()),
            "member_coins": b"".join(self.coin_digests[seat] for seat in self.leaves),
            "member_devices": b"".join(self.devices[seat] for seat in self.leaves),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Members":
        read = Reader(fields, "the members of a group")
        seats = read.integers("seats")
        sizes = {"leaves": DIGEST_BYTES, "member_coins": DIGEST_BYTES, "member_devices": TAG_BYTES}
        columns = [rows(read.blob(name), size) for name, size in sizes.items()]
        return cls(*(read.table(seats, column) for column in columns))


@dataclass(frozen=True)
class Coin:
    """A client's part in the graph's seed. Public from here on; until now nobody could know it."""

    index: int
    coin: bytes

    def to_fields(self) -> Fields:
        return {"index": self.index, "coin": self.coin}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Coin":
        read = Reader(fields, "a coin")
        return cls(read.integer("index"), read.blob("coin"))


@dataclass(frozen=True)
class Neighbourhood:
    """What one client needs to deal shares: everybody's coins (none where the graph is complete) and its contacts' adverts."""

    coins: Mapping[int, bytes]
    roster: Roster

    def to_fields(self) -> Fields:
        coins: Fields = {"coin_seats": list(self.coins), "coins": b"".join(self.coins.values())}
        return {**coins, **self.roster.to_fields()}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Neighbourhood":
        read = Reader(fields, "the neighbours of this device")
        seats, coins = read.integers("coin_seats"), rows(read.blob("coins"), KEY_BYTES)
        return cls(read.table(seats, coins), Roster.from_fields(fields))


@dataclass(frozen=True)
class Deal:
    """All that one client deals: for each of its neighbours a sealed letter with a share of each round's seed and recovery key;
    and for each round what these must hash to, the pairs' mask secrets under the recovery key, and digests of them, neighbour by
    neighbour.
    """

    sender: int
    boxes: Mapping[int, bytes]
    seed_digests: tuple[bytes, ...]
    key_digests: tuple[bytes, ...]
    records: tuple[bytes, ...]
    pair_digests: tuple[bytes, ...]

    def to_fields(self) -> Fields:
        return {
            "sender": self.sender,
            "seed_digests": list(self.seed_digests),
            "key_digests": list(self.key_digests),
            "records": list(self.records),
            "pair_digests": list(self.pair_digests),
            **Inbox(self.boxes).to_fields(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Deal":
        read = Reader(fields, "a deal of shares")
        columns = [read.blobs(name) for name in ("seed_digests", "key_digests", "records", "pair_digests")]
        read.columns(*columns)
        return cls(read.integer("sender"), Inbox.from_fields(fields).boxes, *(tuple(column) for column in columns))


@dataclass(frozen=True)
class Inbox:
    """The letters to one client, by sender. The senders are the clients that may still be counted."""

    boxes: Mapping[int, bytes]

    def to_fields(self) -> Fields:
        return {"peers": list(self.boxes), "boxes": list(self.boxes.values())}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Inbox":
        read = Reader(fields, "the letters to this device")
        return cls(read.table(read.integers("peers"), read.blobs("boxes")))


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
class Confirmation:
    """One client's word that it was shown a set of counted clients; a witness' to each of the others in it."""

    sender: int
    tags: Mapping[int, bytes]

    def to_fields(self) -> Fields:
        return {"sender": self.sender, **Witness(self.tags).to_fields()}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Confirmation":
        return cls(Reader(fields, "a confirmation").integer("sender"), Witness.from_fields(fields).tags)


@dataclass(frozen=True)
class Witness:
    """The confirmations meant for one client, by sender."""

    tags: Mapping[int, bytes]

    def to_fields(self) -> Fields:
        return {"tag_seats": list(self.tags), "tags": b"".join(self.tags.values())}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Witness":
        read = Reader(fields, "confirmations")
        return cls(read.table(read.integers("tag_seats"), rows(read.blob("tags"), TAG_BYTES)))


@dataclass(frozen=True)
class Reveal:
    """One counted client's answer: its own seed, and the mask secrets that it shares with partners who were not counted."""

    sender: int
    seed: Secret
    pairs: Mapping[int, Secret]

    def to_fields(self) -> Fields:
        pairs = b"".join(secret.reveal() for secret in self.pairs.values())
        return {"sender": self.sender, "seed": self.seed.reveal(), "pairs_with": list(self.pairs), "pairs": pairs}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Reveal":
        read = Reader(fields, "revealed secrets")
        pairs = read.table(read.integers("pairs_with"), secrets(read.blob("pairs"), KEY_BYTES))
        return cls(read.integer("sender"), Secret(read.blob("seed")), pairs)


@dataclass(frozen=True)
class RecoveryRequest:
    """Of whom the server wants seed shares (counted, but gone) and of whom key shares (not counted). Nobody may be in both."""

    seeds_of: tuple[int, ...]
    keys_of: tuple[int, ...]

    def to_fields(self) -> Fields:
        return {"seeds_of": list(self.seeds_of), "keys_of": list(self.keys_of)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "RecoveryRequest":
        read = Reader(fields, "a request for shares")
        return cls(tuple(read.integers("seeds_of")), tuple(read.integers("keys_of")))


@dataclass(frozen=True)
class Shares:
    """One holder's share of each secret asked for, by dealer."""

    sender: int
    seeds: Mapping[int, Secret]
    keys: Mapping[int, Secret]

    def to_fields(self) -> Fields:
        return {
            "sender": self.sender,
            "seeds_of": list(self.seeds),
            "seed_shares": b"".join(share.reveal() for share in self.seeds.values()),
            "keys_of": list(self.keys),
            "key_shares": b"".join(share.reveal() for share in self.keys.values()),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Shares":
        read = Reader(fields, "revealed shares")
        seeds = read.table(read.integers("seeds_of"), secrets(read.blob("seed_shares"), SHARE_BYTES))
        keys = read.table(read.integers("keys_of"), secrets(read.blob("key_shares"), SHARE_BYTES))
        return cls(read.integer("sender"), seeds, keys)


def rows(data: bytes, size: int) -> list[bytes]:
    """`data` cut into rows of `size` bytes. Raises `Malformed` where some are left over."""
    if len(data) % size:
        raise Malformed(f"{len(data)} bytes are not rows of {size}")
    return [data[start : start + size] for start in range(0, len(data), size)]


def secrets(data: bytes, size: int) -> list[Secret]:
    """`rows` that do not show."""
    return [Secret(row) for row in rows(data, size)]


def device_tag(device: str) -> bytes:
    return digest("device", device)[:TAG_BYTES]


def coin_digest(terms: GroupTerms, index: int, coin: bytes) -> bytes:
    return coin_digests(terms, {index: coin})[0]


def coin_digests(terms: GroupTerms, coins: Mapping[int, bytes]) -> list[bytes]:
    """Of several coins, by seat; in their order."""
    return digests("coin", terms.digest, endings=[bind(seat, coin) for seat, coin in coins.items()])


def graph_seed(terms: GroupTerms, members: Members, coins: Mapping[int, bytes]) -> bytes:
    """Of everybody's coins: uniform, and nobody's choice, if one of them is."""
    return digest("graph", terms.digest, members.digest, *(coins[seat] for seat in sorted(coins)))


def group_binding(terms: GroupTerms, members: Members, seed: bytes) -> bytes:
    """Everything that a group agreed on: keys made for one view of it open nothing of another."""
    return digest("binding", terms.digest, members.digest, seed)


def secret_digest(kind: str, binding: bytes, dealer: int, number: int, secret: Secret) -> bytes:
    """Of a seed or recovery key of round `number`: hides it, for it is uniform."""
    return digest(kind, binding, dealer, number, secret.reveal())


def pair_digest(binding: bytes, number: int, secret: Secret) -> bytes:
    """Of a pair's mask secret; the same from either side."""
    return _pair_digests(binding, number, [secret.reveal()])


def pair_digests(binding: bytes, number: int, of: Secret) -> bytes:
    """Of the mask secrets of several pairs, end to end; the digests too."""
    return _pair_digests(binding, number, rows(of.reveal(), KEY_BYTES))


def _pair_digests(binding: bytes, number: int, of: Iterable[bytes]) -> bytes:
    found = digests("pair", binding, number, endings=bind_each(of))
    return b"".join([item[:TAG_BYTES] for item in found])


def confirmed(round_digest: bytes, counted: Iterable[int]) -> bytes:
    """What a confirmation says."""
    return bind(PROTOCOL, "counted", round_digest, digest("seats", row_of(counted)))
