"""What a client keeps between messages, and its flat form. All of it is secret or worth keeping to oneself.

Most messages need little of it, so it stays as it is stored, in bitmaps and in bytes end to end, until it is asked for; and what a
step leaves alone is given back as the very object that was read, so that it need not be stored again.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from shared.errors import Malformed
from shared.secagg.fields import Fields, HiddenBytes, Reader
from shared.secagg.keys import KEY_BYTES, KeyPair, Secret
from shared.secagg.messages import Advert, Members, secrets
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import ClientState
from shared.secagg.terms import check_bitmap, seats_in, to_bitmap

NOTHING = Secret(HiddenBytes())
SEED, KEY = 0, 1  # the two shares of a dealer and round, in this order
Sizes = tuple[int, int, int]  # of a round's seed, pairs and shares, in bytes
_MAKING = (ClientState.ADVERTISED, ClientState.TOSSED, ClientState.SHARED)
_HOLDING = (ClientState.MASKED, ClientState.CONFIRMED, ClientState.REVEALED)  # keys of the round that they stand in
_MADE = (ClientState.SHARED, ClientState.READY, *_HOLDING)


@dataclass(frozen=True)
class Seats(Collection[int]):
    """Some of a group's seats, as a bitmap of 1 to `clients`; in ascending order. An empty one may be of no group yet."""

    bitmap: bytes = b""
    clients: int = 0

    def __post_init__(self) -> None:
        check_bitmap(self.bitmap, self.clients)

    @classmethod
    def of(cls, seats: Iterable[int], clients: int) -> "Seats":
        return cls(to_bitmap(seats, clients), clients)

    @classmethod
    def read(cls, bitmap: bytes, clients: int) -> "Seats":
        """Raises `Malformed`."""
        return cls(bitmap, clients if bitmap else 0)

    @cached_property
    def which(self) -> frozenset[int]:
        return frozenset(self)

    @property
    def bits(self) -> int:
        return int.from_bytes(self.bitmap, "big")

    def among(self, others: "Seats") -> bool:
        """Whether they are all."""
        return not self.bits & ~others.bits

    def __contains__(self, seat: object) -> bool:
        return seat in self.which

    def __iter__(self) -> Iterator[int]:
        return iter(seats_in(self.bitmap, self.clients))

    def __len__(self) -> int:
        return self.bits.bit_count()


@dataclass(frozen=True)
class Draft:
    """While a group is being made: `names` are the neighbours', and `letters` the keys to open theirs with, end to end."""

    pair: KeyPair
    coin: bytes = field(repr=False)
    advert: Advert
    members: Members | None = None
    names: Sequence[str] = ()
    letters: Secret = NOTHING

    def to_fields(self) -> Fields:
        members = self.members.to_fields() if self.members else {}
        return {
            **self.advert.to_fields(),
            **members,
            "private": _hidden(self.pair.private),
            "coin": _hidden(Secret(self.coin)),
            "names": list(self.names),
            "letters": _hidden(self.letters),
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
        names = tuple(read.texts("names"))
        return cls(pair, read.blob("coin"), advert, members, names, Secret(read.blob("letters")))


@dataclass(frozen=True)
class Keyring(Mapping[int, Secret]):
    """Keys by seat."""

    seats: Seats
    end_to_end: Secret = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.end_to_end.reveal()) != len(self.seats) * KEY_BYTES:
            raise Malformed("the stored keys are not one a seat")

    @classmethod
    def of(cls, keys: Mapping[int, Secret], clients: int) -> "Keyring":
        """Of keys in ascending order of seat."""
        return cls(Seats.of(keys, clients), joined(keys.values()))

    @cached_property
    def _keys(self) -> Mapping[int, Secret]:
        return dict(zip(self.seats, pieces(self.end_to_end, KEY_BYTES), strict=True))

    def __getitem__(self, seat: int) -> Secret:
        return self._keys[seat]

    def __contains__(self, seat: object) -> bool:
        return seat in self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self.seats)


@dataclass(frozen=True)
class Neighbours:
    """Of one client in a group: `holders` are those present who share a mask with it and hold its shares.

    `members` are all who were present, this client among them. `to_them` and `from_them` are the keys of confirmations: to all if
    it is a witness, from those who are.
    """

    binding: bytes
    members: Seats
    holders: Seats
    to_them: Keyring
    from_them: Keyring

    def to_fields(self) -> Fields:
        return {
            "binding": self.binding,
            "members": self.members.bitmap,
            "holders": self.holders.bitmap,
            "told": self.to_them.seats.bitmap,
            "to_them": _hidden(self.to_them.end_to_end),
            "witnesses": self.from_them.seats.bitmap,
            "from_them": _hidden(self.from_them.end_to_end),
        }

    @classmethod
    def from_fields(cls, fields: Fields, clients: int) -> "Neighbours | None":
        """None where there are none. Raises `Malformed`."""
        if "binding" not in fields:
            return None
        read = Reader(fields, "the stored neighbours of a group")
        members, holders, told, witnesses = (
            Seats.read(read.blob(name), clients) for name in ("members", "holders", "told", "witnesses")
        )
        to_them, from_them = Secret(read.blob("to_them")), Secret(read.blob("from_them"))
        return cls(read.blob("binding"), members, holders, Keyring(told, to_them), Keyring(witnesses, from_them))


@dataclass(frozen=True)
class Standing:
    """Where a client stands in a round: the last that it masked for."""

    number: int = 0
    digest: bytes = b""
    present: Seats = Seats()
    counted: Seats = Seats()

    @property
    def gone(self) -> frozenset[int]:
        return self.present.which - self.counted.which

    def to_fields(self) -> Fields:
        return {
            "number": self.number,
            "round_digest": self.digest,
            "present": self.present.bitmap,
            "counted": self.counted.bitmap,
        }

    @classmethod
    def from_fields(cls, fields: Fields, clients: int) -> "Standing":
        """Raises `Malformed`."""
        read = Reader(fields, "the stored standing in a round")
        present, counted = (Seats.read(read.blob(name), clients) for name in ("present", "counted"))
        return cls(read.integer("number"), read.blob("round_digest"), present, counted)


@dataclass(frozen=True)
class RoundKeys:
    """One round's secrets, end to end: the own seed; the mask secrets shared with the neighbours, in their order; the shares of
    the dealers' secrets, in theirs: each dealer's seed share, then its key share. Less and less of it as time goes by.
    """

    seed: Secret
    pairs: Secret
    shares: Secret = NOTHING

    @classmethod
    def cut(cls, row: bytes, sizes: Sizes) -> "RoundKeys":
        seed, pairs, _ = sizes
        return cls(Secret(row[:seed]), Secret(row[seed : seed + pairs]), Secret(row[seed + pairs :]))

    def confirmed(self, dealers: Iterable[int], standing: Standing) -> "RoundKeys":
        """With what the one set of counted clients may ever ask for: masks with those who are gone, and one kind of share of
        each, the seed's of the counted. Whoever takes the device from now on finds no other.
        """
        pairs, shares = pieces(self.pairs, KEY_BYTES), pieces(self.shares, SHARE_BYTES)
        gone, left = [], []
        for place, seat in enumerate(dealers):
            if seat in standing.counted:
                left.append(shares[2 * place + SEED])
            elif seat in standing.present:
                left.append(shares[2 * place + KEY])
                gone.append(pairs[place])
        return RoundKeys(self.seed, joined(gone), joined(left))


@dataclass(frozen=True)
class Keys(Mapping[int, RoundKeys]):
    """By round: `now` of the round `number`, in which the client stands, if it may still be asked for some; `later` of all that
    come after, end to end, each of the same `sizes`.
    """

    number: int = 0
    now: RoundKeys | None = None
    later: Secret = NOTHING
    sizes: Sizes = (0, 0, 0)

    @classmethod
    def of(cls, seeds: Sequence[Secret], pairs: Sequence[Secret]) -> "Keys":
        """Of a group whose shares are dealt, from round 1 on."""
        sizes = (KEY_BYTES, len(pairs[0].reveal()), 0)
        return cls(later=joined(part for row in zip(seeds, pairs, strict=True) for part in row), sizes=sizes)

    def __getitem__(self, number: int) -> RoundKeys:
        if number == self.number and self.now is not None:
            return self.now
        if number not in range(self.number + 1, self.number + 1 + self._left):
            raise KeyError(number)
        return RoundKeys.cut(self._rows(number, number + 1), self.sizes)

    def __iter__(self) -> Iterator[int]:
        first = self.number + (self.now is None)
        return iter(range(first, self.number + 1 + self._left))

    def __len__(self) -> int:
        return (self.now is not None) + self._left

    @property
    def _left(self) -> int:
        return len(self.later.reveal()) // sum(self.sizes) if any(self.sizes) else 0

    def _rows(self, start: int, stop: int | None = None) -> bytes:
        """Of later rounds, by number."""
        step, first = sum(self.sizes), self.number + 1
        return self.later.reveal()[(start - first) * step : None if stop is None else (stop - first) * step]

    def received(self, holders: Seats, dealers: Seats, letters: Sequence[Secret]) -> "Keys":
        """With the shares of those who dealt some, whose opened letters are in their order, and masks with none but them: nobody
        else can take part.
        """
        rounds, wanted = self._left, [seat in dealers for seat in holders]
        rows = np.frombuffer(self.later.reveal(), np.uint8).reshape(rounds, -1)
        pairs = rows[:, KEY_BYTES:].reshape(rounds, -1, KEY_BYTES)[:, wanted].reshape(rounds, -1)
        shares = np.frombuffer(joined(letters).reveal(), np.uint8).reshape(len(letters), rounds, -1)
        columns = [rows[:, :KEY_BYTES], pairs, shares.transpose(1, 0, 2).reshape(rounds, -1)]
        sizes = (KEY_BYTES, pairs.shape[1], columns[2].shape[1])
        return replace(self, later=Secret(np.concatenate(columns, axis=1).tobytes()), sizes=sizes)

    def begun(self, number: int) -> "Keys":
        """The client stands in round `number` from now on, and forgets what came before. Raises `KeyError`."""
        return Keys(number, self[number], Secret(self._rows(number + 1)), self.sizes)

    def to_fields(self) -> Fields:
        now = self.now and joined((self.now.seed, self.now.pairs, self.now.shares))
        return {"now": _hidden(now or NOTHING), "later": _hidden(self.later)}

    @classmethod
    def from_fields(cls, fields: Fields, number: int, now: Sizes | None, later: tuple[int, Sizes]) -> "Keys":
        """Of these sizes; `later` has so many rounds. Raises `Malformed`."""
        read, (left, sizes) = Reader(fields, "the stored keys of a group"), later
        row, rest = read.blob("now"), read.blob("later")
        if (len(row), len(rest)) != (sum(now or ()), left * sum(sizes)):
            raise Malformed("the stored keys of a group are not as many as it has rounds and neighbours")
        return cls(number, now and RoundKeys.cut(row, now), Secret(rest), sizes)


def check_kept(
    rounds: int,
    state: ClientState,
    *,
    draft: Draft | None,
    near: Neighbours | None,
    dealers: Seats,
    standing: Standing,
) -> None:
    """Raises `Malformed` unless this is what a client of a group of so many rounds holds in this state, beside its keys: what is
    stored may be damaged.
    """
    making, made = state in _MAKING, state in _MADE
    whole = (draft is not None) == making and (near is not None) == made
    whole &= (state in _HOLDING) <= standing.number <= (0 if making else rounds)
    holders = near.holders if near else Seats()
    if draft is not None:
        secret = 0 if made else KEY_BYTES
        whole &= len(draft.coin) == len(draft.pair.private.reveal()) == secret
        whole &= len(draft.names) * KEY_BYTES == len(draft.letters.reveal()) == len(holders) * KEY_BYTES
    if near is not None:
        whole &= dealers.among(holders) and standing.counted.among(standing.present)
    if not whole:
        raise Malformed("the stored state of a group does not fit together")


def kept_sizes(
    rounds: int, state: ClientState, near: Neighbours | None, dealers: Seats, standing: Standing
) -> tuple[Sizes | None, tuple[int, Sizes]]:
    """Of the keys that a client of a group of so many rounds holds in this state: of the round that it stands in, if it holds any
    of that one, and of how many later ones, each.
    """
    if near is None:
        return None, (0, (0, 0, 0))
    if state is ClientState.SHARED:
        return None, (rounds, (KEY_BYTES, KEY_BYTES * len(near.holders), 0))
    whole = KEY_BYTES, KEY_BYTES * len(dealers), 2 * SHARE_BYTES * len(dealers)
    later = max(0, rounds - standing.number), whole
    present = standing.present.bits & dealers.bits
    shares = SHARE_BYTES * present.bit_count()
    if state is ClientState.CONFIRMED:
        return (KEY_BYTES, KEY_BYTES * (present & ~standing.counted.bits).bit_count(), shares), later
    if state is ClientState.REVEALED:
        return (0, 0, shares), later
    return whole if state is ClientState.MASKED else None, later


def _hidden(secret: Secret) -> bytes:
    value = secret.reveal()
    return value if isinstance(value, HiddenBytes) else HiddenBytes(value)


def pieces(secret: Secret, size: int) -> list[Secret]:
    return secrets(secret.reveal(), size)


def joined(parts: Iterable[Secret]) -> Secret:
    return Secret(b"".join([part.reveal() for part in parts]))
