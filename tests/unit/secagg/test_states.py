"""The three transition tables, whole: every listed event moves, every other one raises."""

from collections.abc import Mapping
from enum import Enum
from itertools import product
from typing import Any

import pytest

from shared.errors import ProtocolError
from shared.secagg.states import (
    CLIENT,
    ROUND,
    SETUP,
    ClientEvent,
    ClientState,
    RoundEvent,
    RoundState,
    SetupEvent,
    SetupState,
    advance,
)

Table = Mapping[Any, Mapping[Any, Any]]
TABLES: dict[str, tuple[Table, type[Enum], type[Enum]]] = {
    "client": (CLIENT, ClientState, ClientEvent),
    "setup": (SETUP, SetupState, SetupEvent),
    "round": (ROUND, RoundState, RoundEvent),
}
ROWS = [
    pytest.param(table, state, event, id=f"{name}: {state.value}, {event.value}")
    for name, (table, states, events) in TABLES.items()
    for state, event in product(states, events)
]


@pytest.mark.parametrize(("table", "state", "event"), ROWS)
def test_a_role_does_what_its_table_lists_and_nothing_else(table: Table, state: Enum, event: Enum) -> None:
    if event in table[state]:
        assert advance(table, state, event) is table[state][event]
    else:
        with pytest.raises(ProtocolError, match=state.value):
            advance(table, state, event)


@pytest.mark.parametrize(
    ("name", "start", "ends"),
    [
        ("client", ClientState.NEW, {ClientState.DONE}),
        ("setup", SetupState.KEYS, {SetupState.READY, SetupState.ABORTED}),
        ("round", RoundState.MASKED, {RoundState.DONE, RoundState.ABORTED}),
    ],
)
def test_every_state_is_reached_and_every_path_ends(name: str, start: Enum, ends: set[Enum]) -> None:
    table = TABLES[name][0]
    seen, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += table[state].values()
    assert seen == set(table)
    assert {state for state, row in table.items() if not row} == ends


def test_a_client_can_forget_everything_from_any_state() -> None:
    for state in ClientState:
        assert state is ClientState.DONE or advance(CLIENT, state, ClientEvent.ABANDON) is ClientState.DONE


def test_a_client_confirms_and_reveals_once_a_round() -> None:
    """No way leads back to a state before a confirmation, except masking for another round."""
    for event, once in ((ClientEvent.CONFIRM, ClientState.MASKED), (ClientEvent.REVEAL, ClientState.CONFIRMED)):
        assert [state for state, row in CLIENT.items() if event in row] == [once]
    ways = [(state, event) for state, row in CLIENT.items() for event, to in row.items() if to is ClientState.MASKED]
    assert {event for _, event in ways} == {ClientEvent.MASK}


def test_a_client_never_tosses_twice_nor_deals_twice() -> None:
    for event in (ClientEvent.TOSS, ClientEvent.SHARE, ClientEvent.RECEIVE, ClientEvent.ADVERTISE):
        for state, row in CLIENT.items():
            reached, todo = set(), [row[event]] if event in row else []
            while todo:
                after = todo.pop()
                if after not in reached:
                    reached.add(after)
                    todo += CLIENT[after].values()
            assert not any(event in CLIENT[after] for after in reached), state
