"""One group, many rounds: keys and shares are made once, and made again when a device has lost its own."""

from typing import Any

import pytest
from flwr.app import Context, Message

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import Carried, SecureGrid
from edge_agent.secure_mod import ModPolicy
from edge_agent.trainer.ports import APP_CRASHED
from shared.client_apps import NO_KEYS, UNFIT
from shared.errors import RoundAborted
from shared.flower import APP_NOT_LOADED, APP_RAISED, REFUSED, reply_error
from shared.secagg.messages import RECORD
from shared.secagg.policy import Policy
from shared.session import NODE_UNAVAILABLE
from tests.protocol.secagg.appgrid import AppGrid, Fault, Recorder, losing_the_reply, make_grid, raising, silent, train
from tests.protocol.secagg.exchanges import (
    CONFIG,
    GROUP,
    RECOVERY,
    ROUND,
    assert_mean_of,
    assert_rounded_mean_of,
    assert_weight_and_loss_of,
    clients,
    exchange,
    secure,
)

LOST = "masked: this device has no keys for this group: it never joined, has finished, or was restarted"
EVERYBODY = {1, 2, 3, 4, 5}


# ---- reuse


def test_the_second_exchange_makes_no_keys_and_deals_no_shares() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    assert_mean_of(exchange(grid), EVERYBODY)
    settings = grid.carried.settings["train"]
    assert_rounded_mean_of(exchange(grid), EVERYBODY, settings)
    assert seen.passed == [[*GROUP, *ROUND], ROUND]
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")


def test_letters_are_handed_out_once() -> None:
    inner, authority = make_grid()
    letters: list[bool] = []

    def looking(message: Message) -> Message:
        letters.append("boxes" in message.content.config_records[RECORD])
        return inner.handle(message)

    inner.faults[2, "masked"] = looking
    grid, _ = secure(inner, authority)
    for _ in range(3):
        exchange(grid)
    assert letters == [True, False, False]


def test_training_and_measuring_take_rounds_of_one_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    measured = exchange(grid, kind="evaluate")
    settings = grid.carried.settings["train"]
    assert_rounded_mean_of(exchange(grid), EVERYBODY, settings)
    assert measured["metrics"]["num-examples"] == 75
    assert seen.passed == [[*GROUP, *ROUND], ROUND, ROUND]


def test_a_group_whose_rounds_are_used_up_is_followed_by_another() -> None:
    inner, authority = make_grid()
    config = SecureConfig(max_weight=100, train_metrics=CONFIG.train_metrics, group_rounds=2)
    grid, seen = secure(inner, authority, config)
    for _ in range(5):
        assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, [*GROUP, *ROUND], ROUND, [*GROUP, *ROUND]]


def test_a_grid_goes_on_with_what_another_one_left() -> None:
    inner, authority = make_grid()
    carried, seen = Carried(), Recorder()
    for _ in range(2):
        exchange(SecureGrid(inner, CONFIG, authority, observer=seen, carried=carried))
    exchange(SecureGrid(inner, CONFIG, authority, observer=seen))
    assert seen.passed == [[*GROUP, *ROUND], ROUND, [*GROUP, *ROUND]]


def test_most_of_a_group_can_take_a_round_without_the_others() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    settings = grid.carried.settings["train"]
    some = {1, 2, 4, 5}
    assert_rounded_mean_of(exchange(grid, nodes=some), some, settings)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, ROUND]
    assert set(seen.summaries[1].outcomes) == some


def test_too_few_of_a_group_make_one_of_their_own() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    assert_weight_and_loss_of(exchange(grid, nodes={1, 2, 3}), {1, 2, 3})
    assert seen.passed == [[*GROUP, *ROUND], [*GROUP, *ROUND]]


def test_a_device_that_is_new_makes_a_new_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid, 4)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert_weight_and_loss_of(exchange(grid, 4), {1, 2, 3, 4})
    assert seen.passed == [[*GROUP, *ROUND], [*GROUP, *ROUND], ROUND]


def test_fifty_devices_draw_a_graph_first() -> None:
    """So many that not all of them mask with all: the graph comes of everybody's coins."""
    inner, authority = make_grid(50, policy=ModPolicy(client=Policy(min_clients=30)))
    grid, seen = secure(inner, authority, SecureConfig(max_weight=1000, group_rounds=2))
    inner.faults[2, "coins"] = inner.faults[3, "masked"] = inner.faults[4, "unmasked"] = silent
    content = exchange(grid, 50)
    assert content["metrics"]["num-examples"] == 10 * (sum(range(51)) - 2 - 3)
    assert seen.passed == [["keys", "coins", "shares", *RECOVERY]]
    assert (seen.fates[2], seen.fates[3], seen.fates[4]) == (
        "dropped-before-masking",
        "dropped-and-recovered",
        "counted",
    )


# ---- devices that go away, in a group's first round and in a later one


@pytest.fixture(params=[0, 1], ids=["in the first round", "in a later round"])
def used(request: pytest.FixtureRequest) -> tuple[AppGrid, SecureGrid, Recorder]:
    """A grid of five, after so many exchanges."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    for _ in range(request.param):
        exchange(grid)
    return inner, grid, seen


def round_of(grid: SecureGrid, nodes: set[int]) -> None:
    """One exchange that must count exactly these nodes, in the bound that rounding has."""
    settings = grid.settings("train")
    content = exchange(grid)
    if settings.scales:
        assert_rounded_mean_of(content, nodes, settings)
    else:
        assert_mean_of(content, nodes)


@pytest.mark.parametrize("lost", [False, True], ids=["it is gone", "only its reply is lost"])
def test_a_device_that_drops_at_masking_is_recovered_and_back_in_the_next_exchange(
    used: tuple[AppGrid, SecureGrid, Recorder], lost: bool
) -> None:
    """Nobody knows whether it still has its keys, so the next exchange makes a new group."""
    inner, grid, seen = used
    inner.faults[2, "masked"] = losing_the_reply(inner) if lost else silent
    round_of(grid, {1, 3, 4, 5})
    assert seen.fates == {2: "dropped-and-recovered", **dict.fromkeys((1, 3, 4, 5), "counted")}
    assert seen.reason(2) == "no answer in the phase masked"
    assert "recovered" not in seen.passed[-1], "its masks are told by those who share them"
    inner.faults.clear()
    inner.restart(2)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed[-1] == [*GROUP, *ROUND]


@pytest.mark.parametrize("phase", ["confirmed", "unmasked"])
@pytest.mark.parametrize("lost", [False, True], ids=["it is gone", "only its reply is lost"])
def test_a_device_that_drops_after_masking_is_counted_and_its_mask_recovered_from_shares(
    used: tuple[AppGrid, SecureGrid, Recorder], phase: str, lost: bool
) -> None:
    inner, grid, seen = used
    inner.faults[2, phase] = losing_the_reply(inner) if lost else silent
    round_of(grid, EVERYBODY)
    assert seen.passed[-1][-4:] == RECOVERY
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")
    assert seen.reason(2) == f"no answer in the phase {phase}"
    inner.faults.clear()
    inner.restart(2)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed[-1] == [*GROUP, *ROUND]


ENDINGS: dict[str, tuple[int, bool]] = {
    "it was unavailable": (NODE_UNAVAILABLE, True),
    "its trainer died": (APP_CRASHED, True),
    "it has no keys": (NO_KEYS, True),
    "it refuses": (REFUSED, False),
    "its app raised": (APP_RAISED, False),
    "the task does not fit it": (UNFIT, False),
    "it does not have the app": (APP_NOT_LOADED, False),
}


@pytest.mark.parametrize(("code", "ends"), ENDINGS.values(), ids=ENDINGS)
def test_a_group_goes_on_after_an_error_only_if_the_device_has_its_keys_for_sure(code: int, ends: bool) -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    inner.faults[2, "masked"] = lambda message: reply_error(message, code, "no")
    assert_weight_and_loss_of(exchange(grid), {1, 3, 4, 5})
    inner.faults.clear()
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, [*GROUP, *ROUND] if ends else ROUND]


@pytest.mark.parametrize("again", [0, 1], ids=["in the first round", "in a later round"])
def test_devices_that_drop_before_and_after_masking_are_both_recovered(again: int) -> None:
    """A device that is gone cannot tell the masks it shares with one that never sent: they come from that one's shares."""
    inner, authority = make_grid(8)
    grid, seen = secure(inner, authority)
    for _ in range(again):
        exchange(grid, 8)
    inner.faults[2, "masked"] = silent
    inner.faults[5, "confirmed"] = silent
    counted = {1, 3, 4, 5, 6, 7, 8}
    content = exchange(grid, 8)
    if again:
        assert_weight_and_loss_of(content, counted)
    else:
        assert_mean_of(content, counted)
    assert seen.passed[-1][-4:] == RECOVERY
    assert (seen.fates[2], seen.fates[5]) == ("dropped-and-recovered", "counted")


def test_a_device_that_drops_while_shares_are_recovered_is_not_missed() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    inner.faults[2, "confirmed"] = inner.faults[3, "recovered"] = silent
    assert_mean_of(exchange(grid), EVERYBODY)
    assert seen.reason(3) == "no answer in the phase recovered"


def test_shares_of_too_few_end_the_exchange_and_the_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    inner.faults[2, "confirmed"] = inner.faults[3, "recovered"] = inner.faults[4, "recovered"] = silent
    with pytest.raises(RoundAborted, match="2 devices revealed shares of dev-2, too few"):
        exchange(grid)
    assert seen.fates == dict.fromkeys(range(1, 6), "abandoned")
    inner.faults.clear()
    assert_mean_of(exchange(grid), EVERYBODY)
    assert seen.passed[-1] == [*GROUP, *ROUND]


# ---- devices that lose their keys


def test_a_device_that_was_restarted_is_rejected_and_the_next_exchange_makes_a_new_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    exchange(grid)
    inner.restart(3)
    settings = grid.carried.settings["train"]
    assert_rounded_mean_of(exchange(grid), {1, 2, 4, 5}, settings)
    assert (seen.fates[3], seen.reason(3)) == ("rejected", LOST)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, ROUND, [*GROUP, *ROUND]]
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")


def restarting(inner: AppGrid, node: int) -> Fault:
    def fault(message: Message) -> Message:
        inner.restart(node)
        return inner.handle(message)

    return fault


def test_a_device_that_is_restarted_after_masking_is_counted_and_a_new_group_follows() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    inner.faults[3, "confirmed"] = restarting(inner, 3)
    assert_mean_of(exchange(grid), EVERYBODY)
    assert seen.fates[3] == "counted"
    assert "no keys for this group" in seen.reason(3)
    inner.faults.clear()
    exchange(grid)
    assert seen.passed == [[*GROUP, *RECOVERY], [*GROUP, *ROUND]]


def test_devices_that_have_all_been_restarted_cost_one_attempt() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    for node in inner.nodes:
        inner.restart(node)
    with pytest.raises(RoundAborted, match="only 0 devices sent vectors"):
        exchange(grid)
    assert seen.fates == dict.fromkeys(range(1, 6), "rejected")
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)


def test_a_device_that_was_not_there_when_shares_were_dealt_makes_a_new_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    inner.faults[2, "shares"] = silent
    assert_mean_of(exchange(grid), {1, 3, 4, 5})
    assert seen.fates[2] == "dropped-before-masking"
    inner.faults.clear()
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND]] * 2


def test_a_device_that_could_not_use_its_shares_makes_a_new_group() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)

    def garbled(message: Message) -> Message:
        record: dict[str, Any] = message.content.config_records[RECORD]  # type: ignore[assignment]
        record["boxes"] = [bytes(len(record["boxes"][0])), *record["boxes"][1:]]
        return inner.handle(message)

    inner.faults[2, "masked"] = garbled
    assert_mean_of(exchange(grid), {1, 3, 4, 5})
    assert clients(inner, 2) == [], "it forgot what it cannot use"
    inner.faults.clear()
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed[-1] == [*GROUP, *ROUND]


def test_a_device_whose_app_failed_stays_in_the_group_and_is_given_its_letters_again() -> None:
    failed: list[Message] = []

    def at_first(message: Message, context: Context) -> Message:
        if not failed:
            failed.append(message)
            raising(message, context)
        return train(message, context)

    inner, authority = make_grid(trainers={2: at_first})
    grid, seen = secure(inner, authority)
    assert_weight_and_loss_of(exchange(grid), {1, 3, 4, 5})
    for _ in range(2):
        assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, ROUND]
