"""What each role may do when. An event that a table does not list raises, and changes nothing."""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from shared import tables
from shared.errors import ProtocolError


class ClientState(Enum):
    NEW = "new"
    ADVERTISED = "advertised"
    TOSSED = "tossed"  # told its coin
    SHARED = "shared"
    READY = "ready"  # holds its peers' shares, may mask
    MASKED = "masked"
    CONFIRMED = "confirmed"  # knows one set of counted clients, and will never know another
    REVEALED = "revealed"
    DONE = "done"  # holds no secret


class ClientEvent(Enum):
    ADVERTISE = "advertise a key"
    TOSS = "tell a coin"
    SHARE = "deal shares"
    RECEIVE = "receive shares"
    MASK = "mask a vector"
    CONFIRM = "confirm who is counted"
    REVEAL = "reveal secrets"
    RECOVER = "reveal shares"
    ABANDON = "abandon the group"


class SetupState(Enum):
    KEYS = "keys"
    COINS = "coins"
    SHARES = "shares"
    READY = "ready"
    ABORTED = "aborted"


class SetupEvent(Enum):
    ADVERT = "take an advert"
    CLOSE_KEYS = "close the key phase"
    SKIP_COINS = "go on without coins"
    COIN = "take a coin"
    CLOSE_COINS = "close the coin phase"
    DEAL = "take a deal of shares"
    CLOSE_SHARES = "close the share phase"
    ABORT = "abort"


class RoundState(Enum):
    MASKED = "masked"
    CONFIRMED = "confirmed"
    UNMASKED = "unmasked"
    RECOVERED = "recovered"
    DONE = "done"
    ABORTED = "aborted"


class RoundEvent(Enum):
    VECTOR = "take a masked vector"
    COMPLAINT = "take a complaint"
    CLOSE_MASKED = "close the masked phase"
    CONFIRMATION = "take a confirmation"
    CLOSE_CONFIRMED = "close the confirmation phase"
    REVEAL = "take revealed secrets"
    CLOSE_UNMASKED = "close the unmasking phase"
    SHARES = "take revealed shares"
    FINISH = "finish"
    ABORT = "abort"


_FORGET = {ClientEvent.ABANDON: ClientState.DONE}
_NEXT_ROUND = {ClientEvent.MASK: ClientState.MASKED}  # whatever became of the last one

CLIENT: Mapping[ClientState, Mapping[ClientEvent, ClientState]] = {
    ClientState.NEW: {ClientEvent.ADVERTISE: ClientState.ADVERTISED, **_FORGET},
    ClientState.ADVERTISED: {ClientEvent.TOSS: ClientState.TOSSED, ClientEvent.SHARE: ClientState.SHARED, **_FORGET},
    ClientState.TOSSED: {ClientEvent.SHARE: ClientState.SHARED, **_FORGET},
    ClientState.SHARED: {ClientEvent.RECEIVE: ClientState.READY, **_FORGET},
    ClientState.READY: {**_NEXT_ROUND, **_FORGET},
    ClientState.MASKED: {ClientEvent.CONFIRM: ClientState.CONFIRMED, **_NEXT_ROUND, **_FORGET},
    ClientState.CONFIRMED: {ClientEvent.REVEAL: ClientState.REVEALED, **_NEXT_ROUND, **_FORGET},
    ClientState.REVEALED: {ClientEvent.RECOVER: ClientState.READY, **_NEXT_ROUND, **_FORGET},
    ClientState.DONE: {},
}

SETUP: Mapping[SetupState, Mapping[SetupEvent, SetupState]] = {
    SetupState.KEYS: {
        SetupEvent.ADVERT: SetupState.KEYS,
        SetupEvent.CLOSE_KEYS: SetupState.COINS,
        SetupEvent.SKIP_COINS: SetupState.SHARES,
        SetupEvent.ABORT: SetupState.ABORTED,
    },
    SetupState.COINS: {
        SetupEvent.COIN: SetupState.COINS,
        SetupEvent.CLOSE_COINS: SetupState.SHARES,
        SetupEvent.ABORT: SetupState.ABORTED,
    },
    SetupState.SHARES: {
        SetupEvent.DEAL: SetupState.SHARES,
        SetupEvent.CLOSE_SHARES: SetupState.READY,
        SetupEvent.ABORT: SetupState.ABORTED,
    },
    SetupState.READY: {},
    SetupState.ABORTED: {},
}

ROUND: Mapping[RoundState, Mapping[RoundEvent, RoundState]] = {
    RoundState.MASKED: {
        RoundEvent.VECTOR: RoundState.MASKED,
        RoundEvent.COMPLAINT: RoundState.MASKED,
        RoundEvent.CLOSE_MASKED: RoundState.CONFIRMED,
        RoundEvent.ABORT: RoundState.ABORTED,
    },
    RoundState.CONFIRMED: {
        RoundEvent.CONFIRMATION: RoundState.CONFIRMED,
        RoundEvent.CLOSE_CONFIRMED: RoundState.UNMASKED,
        RoundEvent.ABORT: RoundState.ABORTED,
    },
    RoundState.UNMASKED: {
        RoundEvent.REVEAL: RoundState.UNMASKED,
        RoundEvent.CLOSE_UNMASKED: RoundState.RECOVERED,
        RoundEvent.ABORT: RoundState.ABORTED,
    },
    RoundState.RECOVERED: {
        RoundEvent.SHARES: RoundState.RECOVERED,
        RoundEvent.FINISH: RoundState.DONE,
        RoundEvent.ABORT: RoundState.ABORTED,
    },
    RoundState.DONE: {},
    RoundState.ABORTED: {},
}

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


def advance(table: Mapping[S, Mapping[E, S]], state: S, event: E) -> S:
    """The state after `event`. Raises `ProtocolError` if the table has no such row."""
    return tables.advance(
        table, state, event, ProtocolError, "secure aggregation in state '{state}' refuses to {event}"
    )
