"""What each role may do when. An event that a table does not list raises, and changes nothing."""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from shared import tables
from shared.errors import ProtocolError


class ClientState(Enum):
    NEW = "new"
    ADVERTISED = "advertised"
    SHARED = "shared"
    READY = "ready"  # holds its peers' shares, may mask
    MASKED = "masked"
    DONE = "done"  # holds no secret


class ClientEvent(Enum):
    ADVERTISE = "advertise keys"
    SHARE = "deal shares"
    RECEIVE = "receive shares"
    MASK = "mask a vector"
    REVEAL = "reveal shares"
    ABANDON = "abandon the round"


class ServerState(Enum):
    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    UNMASKED = "unmasked"
    DONE = "done"
    ABORTED = "aborted"


class ServerEvent(Enum):
    ADVERT = "take an advert"
    CLOSE_KEYS = "close the key phase"
    DEAL = "take a deal of shares"
    CLOSE_SHARES = "close the share phase"
    VECTOR = "take a masked vector"
    COMPLAINT = "take a complaint"
    CLOSE_MASKED = "close the masked phase"
    REVEAL = "take revealed shares"
    FINISH = "finish"
    ABORT = "abort"


CLIENT: Mapping[ClientState, Mapping[ClientEvent, ClientState]] = {
    ClientState.NEW: {
        ClientEvent.ADVERTISE: ClientState.ADVERTISED,
        ClientEvent.ABANDON: ClientState.DONE,
    },
    ClientState.ADVERTISED: {
        ClientEvent.SHARE: ClientState.SHARED,
        ClientEvent.ABANDON: ClientState.DONE,
    },
    ClientState.SHARED: {
        ClientEvent.RECEIVE: ClientState.READY,
        ClientEvent.ABANDON: ClientState.DONE,
    },
    ClientState.READY: {
        ClientEvent.MASK: ClientState.MASKED,
        ClientEvent.ABANDON: ClientState.DONE,
    },
    ClientState.MASKED: {
        ClientEvent.REVEAL: ClientState.DONE,
        ClientEvent.ABANDON: ClientState.DONE,
    },
    ClientState.DONE: {},
}

SERVER: Mapping[ServerState, Mapping[ServerEvent, ServerState]] = {
    ServerState.KEYS: {
        ServerEvent.ADVERT: ServerState.KEYS,
        ServerEvent.CLOSE_KEYS: ServerState.SHARES,
        ServerEvent.ABORT: ServerState.ABORTED,
    },
    ServerState.SHARES: {
        ServerEvent.DEAL: ServerState.SHARES,
        ServerEvent.CLOSE_SHARES: ServerState.MASKED,
        ServerEvent.ABORT: ServerState.ABORTED,
    },
    ServerState.MASKED: {
        ServerEvent.VECTOR: ServerState.MASKED,
        ServerEvent.COMPLAINT: ServerState.MASKED,
        ServerEvent.CLOSE_MASKED: ServerState.UNMASKED,
        ServerEvent.ABORT: ServerState.ABORTED,
    },
    ServerState.UNMASKED: {
        ServerEvent.REVEAL: ServerState.UNMASKED,
        ServerEvent.FINISH: ServerState.DONE,
        ServerEvent.ABORT: ServerState.ABORTED,
    },
    ServerState.DONE: {},
    ServerState.ABORTED: {},
}

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


def advance(table: Mapping[S, Mapping[E, S]], state: S, event: E) -> S:
    """The state after `event`. Raises `ProtocolError` if the table has no such row."""
    return tables.advance(
        table, state, event, ProtocolError, "secure aggregation in state '{state}' refuses to {event}"
    )
