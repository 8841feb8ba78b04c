"""What a client keeps between messages, and its flat form. All of it is secret or worth keeping to oneself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shared.secagg.fields import Fields, HiddenBytes, Reader
from shared.secagg.keys import KEY_BYTES, KeyPair, Secret
from shared.secagg.messages import Advert, Members, rows
from shared.secagg.terms import from_bitmap, to_bitmap

NOTHING = Secret(b"")


@dataclass(frozen=True)
class Draft:
    """While a group is being made: `letters` are the keys to open letters with, by sender."""

    pair: KeyPair
    coin: bytes = field(repr=False)
    advert: Advert
    members: Members | None = None
    letters: Mapping[int, Secret] = field(default_factory=dict)

    def to_fields(self) -> Fields:
        members = self.members.to_fields() if self.members else {}
        return {
            **self.advert.to_fields(),
            **members,
            "private": HiddenBytes(self.pair.private.reveal()),
            "coin": HiddenBytes(self.coin),
            "letter_seats": list(self.letters),
            "letters": _join(self.letters),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Draft | None":
        """None where there is none. Raises `Malformed`."""
        if "private" not in fields:
            return None
        read = Reader(fields, "the stored draft of a group")
        advert = Advert.from_fields(fields)
        members = Members.from_fields(fields) if "leaves" in fields else None
        pair = KeyPair(Secret(read.blob("private")), advert.public)
        return cls(pair, read.blob("coin"), advert, members, _cut(read, "letter_seats", "letters"))


@dataclass(frozen=True)
class Neighbours:
    """Of one client in a group: those present who share a mask with it and hold its shares, by name, in ascending order.

    `to_them` and `from_them` are the keys of confirmations: to all if it is a witness, from those who are.
    """

    binding: bytes
    names: Mapping[int, str]
    to_them: Mapping[int, Secret] = field(repr=False)
    from_them: Mapping[int, Secret] = field(repr=False)

    def to_fields(self) -> Fields:
        return {
            "binding": self.binding,
            "holders": list(self.names),
            "names": list(self.names.values()),
            "told": list(self.to_them),
            "to_them": _join(self.to_them),
            "witnesses": list(self.from_them),
            "from_them": _join(self.from_them),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Neighbours | None":
        """None where there are none. Raises `Malformed`."""
        if "binding" not in fields:
            return None
        read = Reader(fields, "the stored neighbours of a group")
        names = dict(read.columns(read.integers("holders"), read.texts("names")))
        to_them, from_them = _cut(read, "told", "to_them"), _cut(read, "witnesses", "from_them")
        return cls(read.blob("binding"), names, to_them, from_them)


@dataclass(frozen=True)
class RoundKeys:
    """One round's secrets: the own seed, the mask secrets shared with the neighbours, in their order, and the shares of the
    dealers' secrets, in theirs: each dealer's seed share, then its key share.
    """

    seed: Secret
    pairs: Secret
    shares: Secret = NOTHING


@dataclass(frozen=True)
class Standing:
    """Where a client stands in a round: the last that it masked for."""

    number: int = 0
    digest: bytes = b""
    present: frozenset[int] = frozenset()
    counted: frozenset[int] = frozenset()

    def to_fields(self, clients: int) -> Fields:
        return {
            "number": self.number,
            "round_digest": self.digest,
            "present": to_bitmap(self.present, clients),
            "counted": to_bitmap(self.counted, clients),
        }

    @classmethod
    def from_fields(cls, fields: Fields, clients: int) -> "Standing":
        """Raises `Malformed`."""
        read = Reader(fields, "the stored standing in a round")
        sets = (from_bitmap(read.blob(name), clients) for name in ("present", "counted"))
        return cls(read.integer("number"), read.blob("round_digest"), *sets)


def keys_to_fields(keys: Mapping[int, RoundKeys]) -> Fields:
    return {
        "key_numbers": list(keys),
        "seeds": _hidden(item.seed for item in keys.values()),
        "pairs": _hidden(item.pairs for item in keys.values()),
        "shares": _hidden(item.shares for item in keys.values()),
    }


def _hidden(secrets: Iterable[Secret]) -> list[bytes]:
    return [HiddenBytes(item.reveal()) for item in secrets]


def keys_from_fields(fields: Fields) -> dict[int, RoundKeys]:
    """The inverse of `keys_to_fields`. Raises `Malformed`."""
    read = Reader(fields, "the stored keys of a group")
    secrets = (read.blobs(name) for name in ("seeds", "pairs", "shares"))
    return {
        number: RoundKeys(*map(Secret, row)) for number, *row in read.columns(read.integers("key_numbers"), *secrets)
    }


def _join(secrets: Mapping[int, Secret]) -> HiddenBytes:
    return HiddenBytes(b"".join(item.reveal() for item in secrets.values()))


def _cut(read: Reader, seats: str, name: str) -> dict[int, Secret]:
    found = rows(read.blob(name), KEY_BYTES)
    return {seat: Secret(raw) for seat, raw in read.columns(read.integers(seats), found)}
