"""What a client keeps between messages, and its flat form. All of it is secret or worth keeping to oneself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import Malformed
from shared.secagg.fields import Fields, HiddenBytes, Reader
from shared.secagg.keys import KEY_BYTES, KeyPair, Secret
from shared.secagg.messages import Advert, Members, secrets
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import ClientState
from shared.secagg.terms import from_bitmap, to_bitmap

NOTHING = Secret(b"")
SEED, KEY = 0, 1  # the two shares of a dealer and round, in this order


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

    `members` are all who were present, this client among them. `to_them` and `from_them` are the keys of confirmations: to all
    if it is a witness, from those who are.
    """

    binding: bytes
    members: frozenset[int]
    names: Mapping[int, str]
    to_them: Mapping[int, Secret] = field(repr=False)
    from_them: Mapping[int, Secret] = field(repr=False)

    def to_fields(self, clients: int) -> Fields:
        return {
            "binding": self.binding,
            "members": to_bitmap(self.members, clients),
            "holders": list(self.names),
            "names": list(self.names.values()),
            "told": list(self.to_them),
            "to_them": _join(self.to_them),
            "witnesses": list(self.from_them),
            "from_them": _join(self.from_them),
        }

    @classmethod
    def from_fields(cls, fields: Fields, clients: int) -> "Neighbours | None":
        """None where there are none. Raises `Malformed`."""
        if "binding" not in fields:
            return None
        read = Reader(fields, "the stored neighbours of a group")
        members = from_bitmap(read.blob("members"), clients)
        names = read.table(read.integers("holders"), read.texts("names"))
        to_them, from_them = _cut(read, "told", "to_them"), _cut(read, "witnesses", "from_them")
        return cls(read.blob("binding"), members, names, to_them, from_them)


@dataclass(frozen=True)
class RoundKeys:
    """One round's secrets, end to end: the own seed; the mask secrets shared with the neighbours, in their order; the shares of
    the dealers' secrets, in theirs: each dealer's seed share, then its key share. Less and less of it as time goes by.
    """

    seed: Secret
    pairs: Secret
    shares: Secret = NOTHING

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(item.reveal()) for item in (self.seed, self.pairs, self.shares))

    def received(self, holders: Iterable[int], shares: Mapping[int, Secret]) -> "RoundKeys":
        """With the shares of those who dealt some, and masks with none but them: nobody else can take part."""
        pairs = zip(holders, pieces(self.pairs, KEY_BYTES), strict=True)
        return RoundKeys(self.seed, joined(secret for seat, secret in pairs if seat in shares), joined(shares.values()))

    def confirmed(self, dealers: Sequence[int], standing: "Standing") -> "RoundKeys":
        """With what the one set of counted clients may ever ask for: masks with those who are gone, and one kind of share of
        each, the seed's of the counted. Whoever takes the device from now on finds no other.
        """
        pairs = zip(dealers, pieces(self.pairs, KEY_BYTES), strict=True)
        both = dict(zip(dealers, pieces(self.shares, 2 * SHARE_BYTES), strict=True))
        kinds = {seat: SEED if seat in standing.counted else KEY for seat in dealers if seat in standing.present}
        return RoundKeys(
            self.seed,
            joined(secret for seat, secret in pairs if kinds.get(seat) == KEY),
            joined(pieces(both[seat], SHARE_BYTES)[kind] for seat, kind in kinds.items()),
        )


@dataclass(frozen=True)
class Standing:
    """Where a client stands in a round: the last that it masked for."""

    number: int = 0
    digest: bytes = b""
    present: frozenset[int] = frozenset()
    counted: frozenset[int] = frozenset()

    @property
    def gone(self) -> frozenset[int]:
        return self.present - self.counted

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


def _hidden(found: Iterable[Secret]) -> list[bytes]:
    return [HiddenBytes(item.reveal()) for item in found]


def keys_from_fields(fields: Fields) -> dict[int, RoundKeys]:
    """The inverse of `keys_to_fields`. Raises `Malformed`."""
    read = Reader(fields, "the stored keys of a group")
    found = (read.blobs(name) for name in ("seeds", "pairs", "shares"))
    keys = [RoundKeys(*map(Secret, row)) for row in read.columns(*found)]
    return read.table(read.integers("key_numbers"), keys)


def check_kept(
    rounds: int,
    state: ClientState,
    *,
    draft: Draft | None,
    near: Neighbours | None,
    dealers: Sequence[int],
    keys: Mapping[int, RoundKeys],
    standing: Standing,
) -> None:
    """Raises `Malformed` unless this is what a client of a group of so many rounds holds in this state: what is stored may be
    damaged.
    """
    making = state in (ClientState.ADVERTISED, ClientState.TOSSED, ClientState.SHARED)
    made = state not in (ClientState.NEW, ClientState.ADVERTISED, ClientState.TOSSED, ClientState.DONE)
    whole = (draft is not None) == making and (near is not None) == made and (made or not keys)
    if draft is not None:
        secret = 0 if made else KEY_BYTES
        whole &= len(draft.coin) == len(draft.pair.private.reveal()) == secret
        whole &= set(draft.letters) == set(near.names if near else ())
    if near is not None:
        whole &= len(set(dealers)) == len(dealers) and set(dealers) <= set(near.names)
        whole &= standing.counted <= standing.present
        holding = state in (ClientState.MASKED, ClientState.CONFIRMED, ClientState.REVEALED)
        whole &= standing.number in keys or not holding
        whole &= all(1 <= number <= rounds for number in keys)
        for number, item in keys.items():
            here = state if making or number == standing.number else ClientState.READY
            whole &= item.sizes == _sizes(here, near, dealers, standing)
    if not whole:
        raise Malformed("the stored state of a group does not fit together")


def _sizes(state: ClientState, near: Neighbours, dealers: Sequence[int], standing: Standing) -> tuple[int, int, int]:
    """Of a round's seed, pairs and shares, in bytes."""
    if state is ClientState.SHARED:
        return KEY_BYTES, KEY_BYTES * len(near.names), 0
    shares = SHARE_BYTES * len(standing.present.intersection(dealers))
    if state is ClientState.CONFIRMED:
        return KEY_BYTES, KEY_BYTES * len(standing.gone.intersection(dealers)), shares
    if state is ClientState.REVEALED:
        return 0, 0, shares
    return KEY_BYTES, KEY_BYTES * len(dealers), 2 * SHARE_BYTES * len(dealers)


def pieces(secret: Secret, size: int) -> list[Secret]:
    return secrets(secret.reveal(), size)


def joined(parts: Iterable[Secret]) -> Secret:
    return Secret(b"".join(part.reveal() for part in parts))


def _join(found: Mapping[int, Secret]) -> HiddenBytes:
    return HiddenBytes(joined(found.values()).reveal())


def _cut(read: Reader, seats: str, name: str) -> dict[int, Secret]:
    return read.table(read.integers(seats), secrets(read.blob(name), KEY_BYTES))
