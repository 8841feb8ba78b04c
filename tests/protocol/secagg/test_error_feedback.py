"""What rounding takes from an update is added to the device's next one: when, when not, and what that is good for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message

from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.residuals import MOST_RUNS
from shared.errors import RoundAborted, Unsupported
from shared.flower import pack_bytes
from shared.secagg.messages import PACKED_TYPE, VECTOR_RECORD
from shared.secagg.terms import Settings
from tests.protocol.secagg.appgrid import AppGrid, Fault, losing_the_reply, make_grid, silent
from tests.protocol.secagg.exchanges import rounding_bounds, watch_settings
from tests.protocol.secagg.feedback import (
    CONFIG,
    NODES,
    SIZE,
    all_owed,
    ask,
    change_of,
    kept,
    owed,
    switch,
    three,
    towards,
)

# ---- what it is good for


def test_the_mean_over_rounds_comes_nearer_to_the_plain_mean_with_each() -> None:
    """With 4 bits a round is off by a tenth and more; what was left over is all that T rounds together are off by."""
    _, grid = three()
    used: list[Settings] = []
    found = []
    for _ in range(17):
        used.append(grid.settings("train"))
        found.append(ask(grid))
    for rounds in (1, 4, 16):
        later, settings = found[1 : rounds + 1], used[rounds]
        bound = rounding_bounds(settings, {"w": found[0]}, 3, set(NODES))["w"]
        off = np.linalg.norm(np.mean(later, axis=0) - change_of())
        assert off <= bound / rounds, rounds
    norm = np.linalg.norm(change_of())
    assert np.linalg.norm(found[1] - change_of()) > 0.05 * norm
    assert np.linalg.norm(np.mean(found[1:], axis=0) - change_of()) < 0.02 * norm


def test_what_is_owed_is_what_the_sum_lacks() -> None:
    """The mean times the weight, and what all devices owe, are together what they had to send, with what they owed before."""
    _, grid = three()
    ask(grid)
    for _ in range(3):
        before = sum(owed(grid, node) for node in NODES)
        got = ask(grid) * 60
        after = sum(owed(grid, node) for node in NODES)
        np.testing.assert_allclose(got + after, 60 * change_of() + before, atol=2e-4)


def test_without_feedback_nothing_is_owed_and_rounding_is_right_on_average_alone() -> None:
    inner, grid = three(replace(CONFIG, feedback=False))
    found = [ask(grid) for _ in range(17)][1:]
    assert all(list(inner.nodes[node].context.state) and kept(inner, node) == {} for node in NODES)
    off = np.linalg.norm(np.mean(found, axis=0) - change_of())
    assert off < np.linalg.norm(found[0] - change_of())


def test_a_change_far_larger_than_those_before_is_clipped_and_made_good_later() -> None:
    _, grid = three(replace(CONFIG, bits=8))
    ask(grid)
    found = [ask(grid, factor=10.0)]
    assert np.linalg.norm(found[0] - 10 * change_of()) > 3 * np.linalg.norm(change_of())
    found += [ask(grid) for _ in range(8)]
    rest = sum(owed(grid, node) for node in NODES) / 60
    np.testing.assert_allclose(np.sum(found, axis=0) + rest, 18 * change_of(), atol=1e-3)
    assert np.linalg.norm(rest) < 0.05 * np.linalg.norm(change_of())


def test_an_array_that_never_changed_spoils_one_exchange_when_it_does_and_all_is_made_good_in_the_next() -> None:
    """Rotation spreads what is clipped over all arrays; so the next exchange takes all the bits of a word, as a first one."""

    def thawing(message: Message, context: Context) -> Message:
        reply = towards(message, context)
        if message.content.config_records["config"]["factor"] == 1.0:  # frozen as yet
            reply.content["arrays"] = ArrayRecord({**reply.content.array_records["arrays"], "v": Array(frozen)})
        return reply

    frozen = np.zeros(200, np.float32)
    inner, authority = make_grid(3, trainers=dict.fromkeys(NODES, thawing))
    grid = SecureGrid(inner, replace(CONFIG, bits=8), authority)
    sizes = {"w": SIZE, "v": 200}
    ask(grid, sizes=sizes)
    used = watch_settings(inner)
    found = [ask(grid, factor=2.0, sizes=sizes) for _ in range(4)]
    plain = 2 * change_of()
    errors = [float(np.linalg.norm(one - plain) / np.linalg.norm(plain)) for one in found]
    assert errors[0] > 0.3
    np.testing.assert_allclose(found[0] + found[1], 2 * plain, atol=1e-5)
    assert max(errors[2:]) < 0.05
    assert [bool(settings.scales) for settings in used] == [True, False, True, True]


# ---- when


def damaged(inner: AppGrid) -> Fault:
    """Its vector arrives cut short, so the coordinator cannot take it; the group goes on."""

    def fault(message: Message) -> Message:
        reply = inner.handle(message)
        reply.content[VECTOR_RECORD] = ArrayRecord({VECTOR_RECORD: pack_bytes(bytes(4), PACKED_TYPE)})
        return reply

    return fault


NOT_COUNTED: dict[str, Callable[[AppGrid], Fault]] = {
    "it is gone": lambda inner: silent,
    "its reply is lost": losing_the_reply,
    "its vector is damaged": damaged,
}


@pytest.mark.parametrize("fault", NOT_COUNTED.values(), ids=NOT_COUNTED)
def test_an_update_that_is_not_counted_leaves_what_was_owed_before(fault: Callable[[AppGrid], Fault]) -> None:
    inner, authority = make_grid(4, trainers=dict.fromkeys((1, 2, 3, 4), towards))
    grid = SecureGrid(inner, CONFIG, authority)
    ask(grid)
    ask(grid)
    before, others = owed(grid, 2), owed(grid, 1)
    inner.faults[2, "masked"] = fault(inner)
    ask(grid)
    inner.faults.clear()
    assert (owed(grid, 2) == before).all()
    assert (owed(grid, 1) != others).any()
    ask(grid, kind="evaluate")
    assert (owed(grid, 2) == before).all(), "a measurement that is counted does not make up for it"
    ask(grid)
    assert (owed(grid, 2) != before).any()


def test_a_refused_update_leaves_what_was_owed_before() -> None:
    def poisoned(message: Message, context: Context) -> Message:
        reply = towards(message, context)
        if sick:
            reply.content["arrays"] = ArrayRecord({"w": Array(np.full(SIZE, np.nan, np.float32))})
        return reply

    sick = False
    inner, authority = make_grid(3, trainers={**dict.fromkeys(NODES, towards), 2: poisoned})
    grid = SecureGrid(inner, CONFIG, authority)
    ask(grid)
    ask(grid)
    before = owed(grid, 2)
    sick = True
    with pytest.raises(RoundAborted):
        ask(grid)
    assert (owed(grid, 2) == before).all()
    assert np.isfinite(owed(grid, 2)).all()


def test_measuring_owes_nothing_and_takes_nothing_away() -> None:
    _, grid = three()
    ask(grid)
    ask(grid)
    before = [owed(grid, node) for node in NODES]
    ask(grid, kind="evaluate")
    assert all((owed(grid, node) == old).all() for node, old in zip(NODES, before, strict=True))


def test_what_is_owed_to_arrays_that_pruning_made_smaller_is_dropped() -> None:
    _, grid = three()
    for _ in range(2):
        ask(grid, sizes={"w": SIZE, "v": 40})
    before = {node: all_owed(grid, node) for node in NODES}
    got = ask(grid, sizes={"w": 200, "v": 40}) * 60
    after = [all_owed(grid, node) for node in NODES]
    np.testing.assert_allclose(got + sum(item["w"] for item in after), 60 * change_of(size=200), atol=2e-4)
    assert all(item["w"].shape == (200,) and item["v"].shape == (40,) for item in after)
    assert any((before[node]["v"] != item["v"]).any() for node, item in zip(NODES, after, strict=True))


def test_one_jobs_rounding_is_not_added_to_another_jobs_model() -> None:
    """A device keeps one context for an app, whatever job asks for it; here two jobs take turns on the same devices."""
    inner, first = three()
    second = SecureGrid(inner, CONFIG, first.verifier)
    sums = {7: np.zeros(SIZE), 8: np.zeros(SIZE)}
    for _ in range(5):
        for run, grid, factor in ((7, first, 1.0), (8, second, -2.0)):
            switch(inner, run)
            sums[run] += 60 * ask(grid, factor=factor)
    for run, grid, factor in ((7, first, 1.0), (8, second, -2.0)):
        switch(inner, run)
        np.testing.assert_allclose(
            sums[run] + sum(owed(grid, node) for node in NODES), 5 * 60 * factor * change_of(), atol=1e-3
        )


def test_no_more_is_kept_than_of_so_many_jobs_and_of_each_two_rounds() -> None:
    inner, grid = three()
    for run in range(8, 13):
        switch(inner, run)
        grid = SecureGrid(inner, CONFIG, grid.verifier)
        for _ in range(3):
            ask(grid)
    runs = [name.partition(".")[0] for name in kept(inner, 1)]
    assert runs == [str(run) for run in range(13 - MOST_RUNS, 13) for _ in range(2)]


def test_the_devices_settings_are_the_exchanges() -> None:
    """Feedback is the coordinator's to ask for; a device that is told of none keeps none."""
    inner, grid = three(replace(CONFIG, feedback=False))
    used = watch_settings(inner)
    ask(grid)
    ask(grid)
    assert [item.feedback for item in used] == [False, False]
    assert used[1].scales.keys() == {"w"}
    assert (used[0].scales, used[0].unit_weight) == ({}, 0.0)


# ---- subsampling


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_what_a_round_does_not_send_comes_in_later_ones(share: float) -> None:
    """Over rounds that sums up to all changes but what is still owed: of one that stays the same, 1 / share - 1 times it."""
    inner, grid = three(replace(CONFIG, bits=8, subsample=share))
    used = watch_settings(inner)
    rounds = 40
    got = sum(ask(grid) for _ in range(rounds))
    assert {settings.subsample for settings in used} == {share}
    left = np.linalg.norm(rounds * change_of() - got) / np.linalg.norm(change_of())
    assert left < 1.5 * (1 / share)


def test_without_feedback_all_is_sent() -> None:
    with pytest.raises(Unsupported, match="subsample"):
        replace(CONFIG, subsample=0.5, feedback=False)
