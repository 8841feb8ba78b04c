"""How a table of transitions is read: `{State: {Event: State}}`. What it does not list raises, and changes nothing."""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from shared.errors import ShoalError

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


def advance(table: Mapping[S, Mapping[E, S]], state: S, event: E, error: type[ShoalError], message: str) -> S:
    """The state after `event`. Raises `error` where there is none; its message may name `{state}` and `{event}`."""
    try:
        return table[state][event]
    except KeyError:
        raise error(message.format(state=state.value, event=event.value)) from None
