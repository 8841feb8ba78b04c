"""An exchange in several secret groups: each summed apart, all at once, and what one of them may do to the others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig, Timeouts
from coordinator.rounds.secure_grid import SecureGrid, Sources
from shared.clock import ManualClock
from shared.errors import RoundAborted, Unsupported
from shared.flower import pack_bytes, reply_with
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD
from tests.protocol.secagg.appgrid import AppGrid, Fault, Recorder, make_grid, silent
from tests.protocol.secagg.exchanges import (
    CONFIG,
    GROUP,
    RECOVERY,
    ROUND,
    assert_mean_of,
    assert_rounded_mean_of,
    assert_weight_and_loss_of,
    means_of,
    messages,
    number,
    numpy_arrays,
)

THREE = replace(
    CONFIG, max_weight=300, groups=3, least_groups=2, min_group=5, evaluate_metrics={"accuracy": (0.0, 2.0)}
)
ALL = set(range(1, 16))


def grouped(size: int = 15, config: SecureConfig = THREE) -> tuple[AppGrid, SecureGrid, Recorder]:
    """Dealt out in order of node: of 15, the first group is 1, 4, 7, 10, 13."""
    inner, authority = make_grid(size)
    seen = Recorder()
    return inner, SecureGrid(inner, config, authority, observer=seen, sources=Sources(shuffle=list)), seen


def exchange(grid: SecureGrid, size: int = 15, **options: Any) -> list[RecordDict]:
    return [reply.content for reply in grid.send_and_receive(messages(size, **options))]


def parts(seen: Recorder) -> list[set[int]]:
    """Who was in which group, in order of group."""
    groups = seen.summaries[-1].groups
    return [{node for node, found in groups.items() if found == place} for place in sorted(set(groups.values()))]


def weighted_mean(contents: list[RecordDict]) -> Mapping[str, np.ndarray[Any, Any]]:
    weights = [number(content, "num-examples") for content in contents]
    return {
        name: np.asarray(np.average([numpy_arrays(c)[name].astype("f8") for c in contents], axis=0, weights=weights))
        for name in numpy_arrays(contents[0])
    }


# ---- one exchange


def test_each_group_comes_back_as_the_mean_of_its_own_devices() -> None:
    _, grid, seen = grouped()
    first = exchange(grid)
    settings = grid.carried.settings["train"]
    second = exchange(grid)
    assert parts(seen) == [set(range(place, 16, 3)) for place in (1, 2, 3)]
    for content, later, nodes in zip(first, second, parts(seen), strict=True):
        assert_mean_of(content, nodes)
        assert_rounded_mean_of(later, nodes, settings)
    assert seen.fates == dict.fromkeys(sorted(ALL), "counted")
    assert [item.total_weight for item in seen.summaries] == [10 * sum(ALL)] * 2


def test_weighed_together_the_groups_are_the_mean_of_all_devices() -> None:
    _, grid, _ = grouped()
    expected, loss = means_of(ALL)
    contents = exchange(grid)
    for name, value in weighted_mean(contents).items():
        assert np.allclose(value, expected[name], rtol=0, atol=0.5 if name == "steps" else 4e-7)
    weights = [number(content, "num-examples") for content in contents]
    losses = [number(content, "loss") for content in contents]
    assert np.average(losses, weights=weights) == pytest.approx(loss, abs=1e-6)


def test_all_groups_go_through_each_phase_in_one_batch_of_messages() -> None:
    """Training takes as long as it takes one group, and each phase has the time that it has in one."""
    inner, grid, seen = grouped(config=replace(THREE, timeouts=Timeouts(before_s=5, masked_s=90, after_s=10)))
    exchange(grid)
    exchange(grid)
    assert inner.budgets == [5, 5, 90, 10, 10, 90, 10, 10]
    assert seen.passed == [[*GROUP, *ROUND], ROUND]
    assert len(seen.summaries) == 2
    assert len({summary.round_id for summary in seen.summaries}) == 2


def test_measuring_gives_a_mean_for_each_group_too() -> None:
    _, grid, _ = grouped()
    contents = exchange(grid, kind="evaluate")
    assert [list(content) for content in contents] == [["metrics"]] * 3
    assert [number(content, "num-examples") for content in contents] == [5 * sum(range(p, 16, 3)) for p in (1, 2, 3)]


def test_groups_are_drawn_by_chance() -> None:
    inner, authority = make_grid(10)
    found = set()
    for _ in range(6):
        seen = Recorder()
        grid = SecureGrid(inner, replace(THREE, least_groups=1), authority, observer=seen)
        list(grid.send_and_receive(messages(10)))
        found.add(frozenset(map(frozenset, parts(seen))))
    assert len(found) > 1, "there are 126 ways; six times the same is no chance"


def test_a_device_is_told_of_its_own_group_alone() -> None:
    inner, grid, seen = grouped()
    asked: dict[int, bytes] = {}

    def listening(message: Message) -> Message:
        asked[message.metadata.dst_node_id] = (
            asked.get(message.metadata.dst_node_id, b"") + repr(dict(message.content.config_records[RECORD])).encode()
        )
        return inner.handle(message)

    for node in ALL:
        for phase in (*GROUP, *ROUND):
            inner.faults[node, phase] = listening
    exchange(grid)
    for part in parts(seen):
        for node in part:
            names = {other for other in ALL if f"'dev-{other}'".encode() in asked[node]}
            assert names <= part
            assert names >= part - {node}, "it needs the names of those whose keys it verifies"


# ---- how many groups there are


@pytest.mark.parametrize(("size", "groups"), [(17, 3), (15, 3), (14, 2), (10, 2)])
def test_fewer_devices_make_fewer_groups_and_none_too_small(size: int, groups: int) -> None:
    _, grid, seen = grouped(size)
    assert len(exchange(grid, size)) == groups == len(parts(seen))
    assert min(map(len, parts(seen))) >= THREE.min_group


def test_too_few_devices_for_the_groups_that_a_rule_needs_end_the_exchange_before_any_hears_of_it() -> None:
    inner, grid, seen = grouped(9)
    with pytest.raises(RoundAborted, match="1 groups of at least 5, 2 are needed"):
        exchange(grid, 9)
    assert inner.budgets == []
    assert seen.fates == dict.fromkeys(range(1, 10), "abandoned")
    assert len(exchange(grid, 9, kind="evaluate")) == 1, "measuring needs no more than one"


def test_a_single_group_is_not_below_the_minimum_either() -> None:
    inner, grid, _ = grouped(4, replace(THREE, least_groups=1))
    with pytest.raises(RoundAborted, match="4 devices were selected, a group has 5 at least"):
        exchange(grid, 4)
    assert inner.budgets == []


def test_what_cannot_be_summed_is_refused_before_any_device_hears_of_it() -> None:
    inner, grid, _ = grouped()
    with pytest.raises(Unsupported):
        exchange(grid, arrays=ArrayRecord({"w": Array(np.zeros(2, bool))}))
    assert inner.budgets == []


# ---- groups that fail


def test_a_group_that_falls_below_its_quorum_is_left_out_and_the_others_count() -> None:
    inner, grid, seen = grouped()
    inner.faults[1, "masked"] = inner.faults[4, "masked"] = silent
    contents = exchange(grid)
    lost = {1, 4, 7, 10, 13}
    assert [number(content, "num-examples") for content in contents] == [10 * sum(range(p, 16, 3)) for p in (2, 3)]
    for content, nodes in zip(contents, parts(seen)[1:], strict=True):
        assert_mean_of(content, nodes)
    assert {node for node, fate in seen.fates.items() if fate == "counted"} == ALL - lost
    assert seen.fates[1] == seen.fates[4] == "dropped-before-masking"
    assert [seen.fates[node] for node in (7, 10, 13)] == ["abandoned"] * 3
    assert seen.reason(7).startswith("its group came to no sum: only 3 devices sent vectors")
    assert seen.summaries[-1].total_weight == 10 * sum(ALL - lost)
    assert seen.summaries[-1].aborted == ""


def test_the_next_exchange_mixes_the_devices_of_a_group_that_failed_with_others() -> None:
    """With the one that made it fail they would fail again."""
    inner, grid, seen = grouped()
    inner.faults[1, "masked"] = inner.faults[4, "masked"] = silent
    exchange(grid)
    before = parts(seen)
    inner.faults.clear()
    grid.sources = Sources(shuffle=lambda nodes: sorted(nodes, key=lambda node: (node * 7) % 16))
    assert len(exchange(grid)) == 3
    assert parts(seen) != before
    assert seen.passed[-1] == [*GROUP, *ROUND]


def test_with_too_few_groups_left_the_exchange_ends_and_nobody_is_counted() -> None:
    inner, grid, seen = grouped()
    for node in (1, 4, 2, 5):
        inner.faults[node, "confirmed"] = silent
    inner.faults[1, "confirmed"] = inner.faults[4, "confirmed"] = silent
    with pytest.raises(RoundAborted, match="1 of 3 groups are left, 2 are needed: only 3 devices confirmed"):
        exchange(grid)
    assert set(seen.fates.values()) == {"abandoned"}
    assert "counted" not in seen.fates.values()
    assert "1 of 3 groups are left" in seen.summaries[-1].aborted
    assert grid.carried.drawn is None
    inner.faults.clear()
    assert len(exchange(grid)) == 3


def test_a_group_that_came_to_its_sum_is_not_counted_when_the_others_fail_after_it() -> None:
    inner, grid, seen = grouped(config=replace(THREE, least_groups=3))
    inner.faults[2, "confirmed"] = inner.faults[5, "recovered"] = inner.faults[8, "recovered"] = silent
    with pytest.raises(RoundAborted, match="2 of 3 groups are left, 3 are needed: 2 devices revealed shares"):
        exchange(grid)
    assert seen.passed[-1] == [*GROUP, *RECOVERY]
    assert set(seen.fates.values()) == {"abandoned"}


@pytest.mark.parametrize("phase", ["keys", "shares"])
def test_a_group_that_cannot_be_made_is_left_out_too(phase: str) -> None:
    inner, grid, seen = grouped()
    inner.faults[3, phase] = inner.faults[6, phase] = silent
    contents = exchange(grid)
    for content, nodes in zip(contents, parts(seen)[:2], strict=True):
        assert_mean_of(content, nodes)
    assert "only 3 devices" in seen.reason(9)


def test_recovery_in_one_group_asks_nothing_of_the_others() -> None:
    inner, grid, seen = grouped()
    inner.faults[5, "unmasked"] = silent
    for content, nodes in zip(exchange(grid), parts(seen), strict=True):
        assert_mean_of(content, nodes)
    assert {node for node, phase, _ in inner.sent if phase == "recovered"} == parts(seen)[1] - {5}


def test_an_exchange_that_runs_out_of_time_ends_for_all_groups() -> None:
    clock = ManualClock()
    inner, authority = make_grid(15)

    def slow(message: Message) -> Message:
        clock.advance(101)
        return inner.handle(message)

    inner.faults[1, "masked"] = slow
    seen = Recorder()
    grid = SecureGrid(inner, THREE, authority, observer=seen, sources=Sources(clock=clock))
    with pytest.raises(RoundAborted, match="ran out of time before the phase confirmed"):
        grid.send_and_receive(messages(15), timeout=100)
    assert seen.fates == dict.fromkeys(sorted(ALL), "abandoned")


# ---- keys for many rounds, in the same groups


def test_groups_stay_for_as_many_exchanges_as_keys_are_made_for() -> None:
    inner, authority = make_grid(10)
    seen = Recorder()
    grid = SecureGrid(inner, replace(THREE, group_rounds=3), authority, observer=seen)
    drawn = []
    for _ in range(6):
        list(grid.send_and_receive(messages(10)))
        drawn.append(parts(seen))
    assert seen.passed == [[*GROUP, *ROUND], ROUND, ROUND] * 2
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[3] == drawn[4] == drawn[5]


def test_only_the_group_whose_device_lost_its_keys_makes_new_ones_and_nobody_changes_groups() -> None:
    inner, grid, seen = grouped(config=replace(THREE, group_rounds=4))
    exchange(grid)
    before = parts(seen)
    inner.restart(5)
    for content, nodes in zip(exchange(grid), before, strict=True):
        assert_weight_and_loss_of(content, nodes - {5})
    inner.sent.clear()
    for content, nodes in zip(exchange(grid), before, strict=True):
        assert_weight_and_loss_of(content, nodes)
    assert parts(seen) == before
    assert seen.passed[-1] == [*GROUP, *ROUND]
    assert {node for node, phase, _ in inner.sent if phase == "keys"} == before[1]
    exchange(grid)
    assert (seen.passed[-1], parts(seen)) == (ROUND, before)
    exchange(grid)
    assert seen.passed[-1] == [*GROUP, *ROUND], "the draw is over for all of them"


def test_a_device_that_is_not_invited_leaves_its_group_to_the_others() -> None:
    _, grid, seen = grouped(18)
    exchange(grid, 18)
    exchange(grid, nodes=set(range(1, 19)) - {4})
    assert parts(seen) == [{1, 7, 10, 13, 16}, {2, 5, 8, 11, 14, 17}, {3, 6, 9, 12, 15, 18}]
    assert seen.passed[-1] == ROUND


def test_a_group_that_too_many_have_left_is_drawn_anew_with_all_the_others() -> None:
    _, grid, seen = grouped(18)
    exchange(grid, 18)
    exchange(grid, nodes=set(range(1, 19)) - {4, 7})
    assert sorted(map(len, parts(seen))) == [5, 5, 6]
    assert seen.passed[-1] == [*GROUP, *ROUND]


def test_a_device_that_is_new_makes_new_groups() -> None:
    _, grid, seen = grouped(16)
    exchange(grid)
    exchange(grid, 16)
    assert seen.passed == [[*GROUP, *ROUND]] * 2
    assert parts(seen)[0] == {1, 4, 7, 10, 13, 16}


def test_measuring_and_training_share_groups_and_keys() -> None:
    _, grid, seen = grouped()
    exchange(grid)
    exchange(grid, kind="evaluate")
    assert seen.passed == [[*GROUP, *ROUND], ROUND]
    assert seen.summaries[0].groups == seen.summaries[1].groups


# ---- devices that lie


def something_else(inner: AppGrid) -> Fault:
    """In the first word, which says how many are in the sum."""

    def fault(message: Message) -> Message:
        reply = inner.handle(message)
        data = bytearray(reply.content.array_records[VECTOR_RECORD][VECTOR_RECORD].data)
        data[:4] = bytes(byte ^ 0xFF for byte in data[:4])
        vector = ArrayRecord({VECTOR_RECORD: pack_bytes(bytes(data), PACKED_TYPE)})
        return reply_with(message, RecordDict({RECORD: reply.content.config_records[RECORD], VECTOR_RECORD: vector}))

    return fault


def test_a_device_that_masks_something_else_costs_its_group_the_round_and_the_others_nothing() -> None:
    inner, grid, seen = grouped()
    inner.faults[7, "masked"] = something_else(inner)
    contents = exchange(grid)
    for content, nodes in zip(contents, parts(seen)[1:], strict=True):
        assert_mean_of(content, nodes)
    assert {node for node, fate in seen.fates.items() if fate == "abandoned"} == {1, 4, 7, 10, 13}
    assert "did not cancel" in seen.reason(1)


def test_a_false_dealer_is_named_and_costs_its_own_group_at_most() -> None:
    """Two cannot use what node 1 dealt, so four are not left."""
    inner, grid, seen = grouped()

    def garbled(message: Message) -> Message:
        record: dict[str, Any] = message.content.config_records[RECORD]  # type: ignore[assignment]
        record["boxes"] = [bytes(len(record["boxes"][0])), *record["boxes"][1:]]
        return inner.handle(message)

    inner.faults[4, "masked"] = inner.faults[7, "masked"] = garbled
    contents = exchange(grid)
    assert len(contents) == 2
    assert seen.summaries[-1].false_dealers == (1,)
    assert seen.fates[1] == "rejected"
    assert [seen.fates[node] for node in (2, 3, 5, 6)] == ["counted"] * 4
