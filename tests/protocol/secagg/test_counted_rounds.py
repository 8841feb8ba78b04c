"""A device owes what the last round that counted it left over: what it goes by when rounds are given up, messages lost, servers
restarted or lying.

"Owed" is what it holds under the id of the round that the server believes to be that one.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from shared.errors import RoundAborted
from shared.flower import REFUSED, with_content
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import RUN_ID, AppGrid, Fault, make_grid, silent
from tests.protocol.secagg.exchanges import number, numpy_arrays, secure
from tests.protocol.secagg.feedback import (
    CONFIG,
    NODES,
    PATTERN,
    SIZE,
    ask,
    change_of,
    kept,
    owed,
    replies,
    three,
    towards,
)

GIVEN_UP: dict[str, dict[tuple[int, str], Fault]] = {
    "too few vectors": {(2, "masked"): silent},
    "too few who were told that they are counted": {(node, "confirmed"): silent for node in (1, 2)},
    "too few seeds, after all were told that they are counted": {(node, "unmasked"): silent for node in (1, 2)},
}


@pytest.mark.parametrize("faults", GIVEN_UP.values(), ids=GIVEN_UP)
def test_a_round_that_is_given_up_leaves_what_was_owed_before(faults: dict[tuple[int, str], Fault]) -> None:
    inner, grid = three()
    ask(grid)
    ask(grid)
    before = [owed(grid, node) for node in NODES]
    inner.faults.update(faults)
    for _ in range(2):
        with pytest.raises(RoundAborted):
            ask(grid)
    inner.faults.clear()
    assert all((owed(grid, node) == old).all() for node, old in zip(NODES, before, strict=True))
    got = ask(grid) * 60 + sum(owed(grid, node) for node in NODES)
    np.testing.assert_allclose(got, 60 * change_of() + sum(before), atol=2e-4)


def test_a_sum_that_is_had_and_not_used_leaves_what_was_owed_before() -> None:
    """Whoever drops it puts back what the exchange before had left."""
    _, grid = three()
    ask(grid)
    counted, before = grid.carried.counted, [owed(grid, node) for node in NODES]
    ask(grid)
    grid.carried.counted = counted
    got = ask(grid) * 60 + sum(owed(grid, node) for node in NODES)
    np.testing.assert_allclose(got, 60 * change_of() + sum(before), atol=2e-4)


@pytest.mark.parametrize("phase", ["confirmed", "unmasked"])
def test_a_device_that_is_counted_and_hears_no_more_owes_what_its_update_lacked(phase: str) -> None:
    inner, authority = make_grid(4, trainers=dict.fromkeys((1, 2, 3, 4), towards))
    grid = SecureGrid(inner, CONFIG, authority)
    four, total = (1, 2, 3, 4), 100 * np.average(PATTERN[1:5], axis=0, weights=(1, 2, 3, 4))
    ask(grid)
    before = sum(owed(grid, node) for node in four)
    inner.faults[2, phase] = silent
    got = ask(grid) * 100
    inner.faults.clear()
    got += ask(grid) * 100
    np.testing.assert_allclose(got + sum(owed(grid, node) for node in four), 2 * total + before, atol=5e-4)


def test_devices_of_a_server_that_lost_its_memory_owe_nothing() -> None:
    """Whether their last update counted it cannot say. What is dropped then was taken by rounding: nothing, on average."""
    inner, grid = three()
    ask(grid)
    ask(grid)
    assert all(owed(grid, node).any() for node in NODES)
    again = SecureGrid(inner, CONFIG, grid.verifier)
    assert not any(owed(again, node).any() for node in NODES)
    got = ask(again) * 60 + sum(owed(again, node) for node in NODES)
    np.testing.assert_allclose(got, 60 * change_of(), atol=2e-4)
    ask(again)
    assert [len(kept(inner, node)) for node in NODES] == [2, 2, 2], "of rounds before there is nothing"


def test_a_device_that_was_restarted_owes_nothing() -> None:
    inner, authority = make_grid(4, trainers=dict.fromkeys((1, 2, 3, 4), towards))
    grid = SecureGrid(inner, CONFIG, authority)
    ask(grid)
    inner.restart(2)
    ask(grid)  # without it: it has no keys
    total = 100 * np.average(PATTERN[1:5], axis=0, weights=(1, 2, 3, 4))
    before = sum(owed(grid, node) for node in (1, 3, 4))
    got = ask(grid) * 100 + sum(owed(grid, node) for node in (1, 2, 3, 4))
    np.testing.assert_allclose(got, total + before, atol=5e-4)


def test_a_round_without_feedback_uses_nothing_and_keeps_nothing() -> None:
    """… of an earlier one either: what is then owed has been overtaken."""
    inner, grid = three()
    ask(grid)
    ask(grid)
    plain = SecureGrid(inner, replace(CONFIG, feedback=False), grid.verifier)
    plain.carried.counted = grid.carried.counted
    np.testing.assert_allclose(ask(plain), change_of(), atol=1e-5)
    assert all(kept(inner, node) == {} for node in NODES)


# ---- lies


def saying(inner: AppGrid, counted_round: Any) -> Fault:
    def fault(message: Message) -> Message:
        record = ConfigRecord({**message.content.config_records[RECORD], "counted_round": counted_round})
        return inner.handle(with_content(message, RecordDict({**message.content, RECORD: record})))

    return fault


@pytest.mark.parametrize("lie", ["that it counted", "that none did", "of another", "of this one"])
def test_a_server_that_lies_about_the_round_that_counted_costs_accuracy_and_nothing_else(lie: str) -> None:
    """The device sends what it believes that it owes, inside the sum: that is off by so much, and is a sum as ever."""
    inner, grid = three()
    ask(grid)
    before = {node: owed(grid, node) for node in NODES}
    inner.faults[1, "masked"] = silent
    with pytest.raises(RoundAborted):
        ask(grid)
    inner.faults.clear()
    given_up = next(name.partition(".")[2] for name in kept(inner, 2) if grid.carried.counted[2] not in name)
    false = kept(inner, 2)[f"{RUN_ID}.{given_up}"]["w"]
    told = {"that it counted": given_up, "that none did": "", "of another": "f" * 32, "of this one": "r"}[lie]
    grid.sources = replace(grid.sources, ids=iter(("r", "g")).__next__)
    inner.faults[2, "masked"] = saying(inner, told)
    got = ask(grid) * 60 + sum(owed(grid, node) for node in NODES)
    believed = false if lie == "that it counted" else np.zeros(SIZE)
    np.testing.assert_allclose(got, 60 * change_of() + before[1] + believed + before[3], atol=2e-4)


def test_a_round_without_a_name_leaves_nothing_that_is_owed() -> None:
    """ "" is none, also where a server calls a round so."""
    inner, grid = three()
    grid.sources = replace(grid.sources, ids=iter(("first", "group", "", "r")).__next__)
    ask(grid)
    ask(grid)
    assert kept(inner, 1).keys() == {f"{RUN_ID}.first", f"{RUN_ID}."}
    got = ask(grid) * 60 + sum(owed(grid, node) for node in NODES)
    np.testing.assert_allclose(got, 60 * change_of(), atol=2e-4)
    assert kept(inner, 1).keys() == {f"{RUN_ID}.r"}


@pytest.mark.parametrize("told", [7, b"round", ["round"], "x" * 201], ids=["a number", "bytes", "a list", "too long"])
def test_a_message_that_names_no_round_is_refused_before_the_app_works(told: Any) -> None:
    trained: list[int] = []

    def counting(message: Message, context: Context) -> Message:
        trained.append(context.node_id)
        return towards(message, context)

    inner, authority = make_grid(4, trainers=dict.fromkeys((1, 2, 3, 4), counting))
    grid, seen = secure(inner, authority, CONFIG)
    ask(grid)
    state = dict(inner.nodes[2].context.state.items())
    inner.faults[2, "masked"] = saying(inner, told)
    ask(grid)
    outcome = seen.summaries[-1].outcomes[2]
    assert (outcome.code, "counted_round" in outcome.reason) == (REFUSED, True)
    assert trained.count(2) == 1
    assert dict(inner.nodes[2].context.state.items()) == state


# ---- whatever befalls it

TEN = tuple(range(1, 11))
KINDS: dict[str, SecureConfig] = {
    "4 bits": CONFIG,
    "a share of the elements": replace(CONFIG, bits=8, subsample=0.5),
    "secret groups": replace(CONFIG, groups=2, min_group=5),
    "secret groups, all of them needed": replace(CONFIG, groups=2, min_group=5, least_groups=2),
    "changes of the model": replace(CONFIG, bits=8, delta_broadcast=True),
}
MISHAPS: tuple[dict[tuple[int, str], Fault], ...] = (
    {},
    {(2, "masked"): silent},
    {(3, "confirmed"): silent},
    {(4, "unmasked"): silent},
    {(node, "masked"): silent for node in (1, 2, 3, 5, 6, 7)},
    {(node, "unmasked"): silent for node in TEN[:-1]},
    {(5, "masked"): silent, (1, "confirmed"): silent},
)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_nothing_is_lost_and_nothing_sent_twice_whatever_befalls_rounds(config: SecureConfig) -> None:
    """All that was summed, and what is owed in the end, are together the changes of those who were counted."""
    inner, authority = make_grid(10, trainers=dict.fromkeys(TEN, towards))
    grid, seen = secure(inner, authority, config)
    model, summed, expected = np.zeros(SIZE, np.float32), np.zeros(SIZE), np.zeros(SIZE)
    kinds = np.random.default_rng(1).permutation(np.arange(28) % len(MISHAPS))
    ended: list[bool] = []
    for kind in kinds:
        inner.faults = dict(MISHAPS[kind])
        with suppress(RoundAborted):
            means = [
                (numpy_arrays(c)["w"], number(c, "num-examples")) for c in replies(grid, "train", 1.0, {"w": model})
            ]
            summed += sum(weight * (new.astype("f8") - model) for new, weight in means)
            counted = [node for node, fate in seen.fates.items() if fate == "counted"]
            expected += sum(10 * node * PATTERN[node].astype("f8") for node in counted)
            model = np.asarray(np.average([new for new, _ in means], axis=0, weights=[w for _, w in means]), "f4")
        ended.append(bool(seen.summaries[-1].aborted))
    assert 4 <= sum(ended) <= 20
    left = sum(owed(grid, node) for node in TEN)
    assert np.linalg.norm(left) > 0
    np.testing.assert_allclose(summed + left, expected, atol=0.05)
