"""Both transition tables, whole: every listed event moves, every other one raises."""

from enum import Enum
from itertools import product

import pytest

from shared.errors import ProtocolError
from shared.secagg.graph import build_graph
from shared.secagg.states import CLIENT, SERVER, ClientEvent, ClientState, ServerEvent, ServerState, advance


@pytest.mark.parametrize(("state", "event"), list(product(ClientState, ClientEvent)))
def test_a_client_does_what_its_table_lists_and_nothing_else(state: ClientState, event: ClientEvent) -> None:
    if event in CLIENT[state]:
        assert advance(CLIENT, state, event) is CLIENT[state][event]
    else:
        with pytest.raises(ProtocolError, match=state.value):
            advance(CLIENT, state, event)


@pytest.mark.parametrize(("state", "event"), list(product(ServerState, ServerEvent)))
def test_a_server_does_what_its_table_lists_and_nothing_else(state: ServerState, event: ServerEvent) -> None:
    if event in SERVER[state]:
        assert advance(SERVER, state, event) is SERVER[state][event]
    else:
        with pytest.raises(ProtocolError, match=state.value):
            advance(SERVER, state, event)


@pytest.mark.parametrize(
    ("table", "start", "ends"),
    [
        (CLIENT, ClientState.NEW, {ClientState.DONE}),
        (SERVER, ServerState.KEYS, {ServerState.DONE, ServerState.ABORTED}),
    ],
    ids=["client", "server"],
)
def test_every_state_is_reached_and_every_path_ends(
    table: dict[Enum, dict[Enum, Enum]], start: Enum, ends: set[Enum]
) -> None:
    seen, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += table[state].values()
    assert seen == set(table)
    assert {state for state, row in table.items() if not row} == ends


def test_the_complete_graph_joins_all_who_are_present() -> None:
    graph = build_graph("complete", 5)
    assert graph.neighbours(3, {1, 2, 3, 4, 5}) == (1, 2, 4, 5)
    assert graph.neighbours(3, {3, 5}) == (5,)


def test_an_unknown_graph_is_refused() -> None:
    with pytest.raises(ProtocolError, match="complete"):
        build_graph("ring", 5)
