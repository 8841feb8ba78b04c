"""What a client keeps between messages, and its flat form. All of it is secret or worth keeping to oneself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from shared.errors import Malformed
from shared.secagg.fields import Fields, HiddenBytes, Reader
from shared.secagg.keys import KEY_BYTES, KeyPair, Secret
from shared.secagg.messages import Advert, Members, secrets
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import ClientState
from shared.secagg.terms import from_bitmap, seats_in, to_bitmap

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
            "private": _hidden(self.pair.private),
            "coin": HiddenBytes(self.coin),
            "letter_seats": list(self.letters),
            "letters": _hidden(joined(self.letters.values())),
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
        letters = read.table(read.integers("letter_seats"), pieces(Secret(read.blob("letters")), KEY_BYTES))
        return cls(pair, read.blob("coin"), advert, members, letters)


@dataclass(frozen=True)
class Keyring(Mapping[int, Secret]):
    """Keys by seat. Most messages need none of them, so they stay end to end until one is asked for."""

    seats: tuple[int, ...]
    end_to_end: Secret = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.end_to_end.reveal()) != len(self.seats) * KEY_BYTES:
            raise Malformed("the stored keys are not one a seat")

    @classmethod
    def of(cls, keys: Mapping[int, Secret]) -> "Keyring":
        return cls(tuple(keys), joined(keys.values()))

    @cached_property
    def _places(self) -> Mapping[int, int]:
        return {seat: place * KEY_BYTES for place, seat in enumerate(self.seats)}

    def __getitem__(self, seat: int) -> Secret:
        place = self._places[seat]
        return Secret(self.end_to_end.reveal()[place : place + KEY_BYTES])

    def __iter__(self) -> Iterator[int]:
        return iter(self.seats)

    def __len__(self) -> int:
        return len(self.seats)


@dataclass(frozen=True)
class Neighbours:
    """Of one client in a group: those present who share a mask with it and hold its shares, by name, in ascending order.

    `members` are all who were present, this client among them. `to_them` and `from_them` are the keys of confirmations, in
    ascending order too: to all if it is a witness, from those who are.
    """

    binding: bytes
    members: frozenset[int]
    names: Mapping[int, str]
    to_them: Keyring
    from_them: Keyring

    def to_fields(self, clients: int) -> Fields:
        return {
            "binding": self.binding,
            "members": to_bitmap(self.members, clients),
            "holders": to_bitmap(self.names, clients),
            "names": list(self.names.values()),
            "told": to_bitmap(self.to_them, clients),
            "to_them": _hidden(self.to_them.end_to_end),
            "witnesses": to_bitmap(self.from_them, clients),
            "from_them": _hidden(self.from_them.end_to_end),
        }

    @classmethod
    def from_fields(cls, fields: Fields, clients: int) -> "Neighbours | None":
        """None where there are none. Raises `Malformed`."""
        if "binding" not in fields:
            return None
        read = Reader(fields, "the stored neighbours of a group")
        members, holders, told, witnesses = (
            seats_in(read.blob(name), clients) for name in ("members", "holders", "told", "witnesses")
        )
        names = read.table(holders, read.texts("names"))
        to_them, from_them = Secret(read.blob("to_them")), Secret(read.blob("from_them"))
        to_all, from_some = Keyring(tuple(told), to_them), Keyring(tuple(witnesses), from_them)
        return cls(read.blob("binding"), frozenset(members), names, to_all, from_some)


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
        "seeds": [_hidden(item.seed) for item in keys.values()],
        "pairs": [_hidden(item.pairs) for item in keys.values()],
        "shares": [_hidden(item.shares) for item in keys.values()],
    }


def _hidden(secret: Secret) -> bytes:
    return HiddenBytes(secret.reveal())


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
