"""Devices that fail or lie in an exchange: each is named with its reason, and the mean over the others is exact."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from coordinator.rounds.exchange import DEFAULT_GROUP_ROUNDS
from edge_agent.residuals import LEFT
from edge_agent.secure_mod import ModPolicy
from shared.errors import RoundAborted
from shared.flower import REFUSED, pack_bytes, reply_error, reply_with
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD
from shared.secagg.policy import Policy
from shared.secagg.shamir import SHARE_BYTES
from tests.protocol.secagg.appgrid import (
    START,
    AppGrid,
    Handler,
    changed,
    losing_the_reply,
    make_grid,
    metrics,
    raising,
    rewriting,
    silent,
)
from tests.protocol.secagg.exchanges import (
    CONFIG,
    assert_mean_of,
    messages,
    numpy_arrays,
    secure,
)

# ---- devices that fail


def refusing(message: Message, context: Context) -> Message:
    return reply_error(message, 0, "no data today")


BAD_TRAINERS: dict[str, tuple[Handler, str, str]] = {
    "raises": (raising, "dropped-and-recovered", "RuntimeError"),
    "answers with an error": (refusing, "dropped-and-recovered", "no data today"),
    "sends a change of integers out of range": (
        lambda m, c: changed(m, c, steps=np.array([10, 1 << 40])),
        "rejected",
        "'steps' holds a change outside its range",
    ),
    "sends another dtype": (
        lambda m, c: changed(m, c, steps=np.array([10.0, 20.0])),
        "rejected",
        "'steps' is float64, not int64",
    ),
    "sends another shape": (lambda m, c: changed(m, c, w=np.zeros(12, np.float32)), "rejected", "'w' has shape"),
    "sends one array more": (lambda m, c: changed(m, c, v=np.zeros(1)), "rejected", "exactly the arrays"),
    "has no weight": (metrics(loss=1.0), "rejected", "num-examples"),
    "lacks a declared metric": (metrics(num_examples=1), "rejected", "'loss'"),
    "has a metric out of its range": (metrics(num_examples=1, loss=10.5), "rejected", "range 0 to 10"),
    "has a metric that is NaN": (metrics(num_examples=1, loss=math.nan), "rejected", "'loss'"),
}


@pytest.mark.parametrize(("trainer", "fate", "reason"), BAD_TRAINERS.values(), ids=BAD_TRAINERS)
def test_a_device_whose_app(trainer: Handler, fate: str, reason: str) -> None:
    """… is left out by name and reason, and the mean over the others is exact."""
    inner, authority = make_grid(trainers={2: trainer})
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 3, 4, 5})
    assert seen.fates == {1: "counted", 2: fate, 3: "counted", 4: "counted", 5: "counted"}
    assert reason in seen.reason(2)
    assert seen.summaries[-1].total_weight == 130
    assert seen.summaries[-1].outcomes[2].code == (
        REFUSED if fate == "rejected" else seen.summaries[-1].outcomes[2].code
    )
    assert not any(name.startswith(LEFT) for name in inner.nodes[2].context.state)


def test_in_the_first_exchange_a_change_of_floats_out_of_range_is_clipped() -> None:
    """At what a device of `max_weight` examples may change: this one has 20 of 100."""
    most = np.float32(CONFIG.clip_range * 100 / 20)
    found = []
    for change in (most, 10 * most):
        trainer = partial(changed, w=START["w"] + change)
        grid, seen = secure(*make_grid(trainers={2: trainer}))
        (reply,) = grid.send_and_receive(messages())
        assert seen.fates == dict.fromkeys(range(1, 6), "counted")
        found.append(numpy_arrays(reply.content)["w"])
    assert np.allclose(found[0], found[1], atol=1e-6)


GONE: dict[str, str] = {
    "keys": "dropped-before-masking",
    "shares": "dropped-before-masking",
    "masked": "dropped-and-recovered",
    "confirmed": "counted",
    "unmasked": "counted",
}


@pytest.mark.parametrize("lost", [False, True], ids=["the device is gone", "only its reply is lost"])
@pytest.mark.parametrize(("phase", "fate"), GONE.items())
def test_a_device_that_drops_in_a_phase_ends_in_one_column(phase: str, fate: str, lost: bool) -> None:
    inner, authority = make_grid()
    inner.faults[2, phase] = losing_the_reply(inner) if lost else silent
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5} if fate == "counted" else {1, 3, 4, 5})
    assert seen.fates[2] == fate
    assert f"no answer in the phase {phase}" in seen.reason(2)
    assert seen.summaries[-1].total_weight == reply.content["metrics"]["num-examples"]


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "confirmed"])
def test_two_of_five_that_drop_are_one_too_many_and_nothing_is_counted(phase: str) -> None:
    inner, authority = make_grid()
    inner.faults[2, phase] = inner.faults[4, phase] = silent
    grid, seen = secure(inner, authority)
    with pytest.raises(
        RoundAborted, match=r"only 3 devices (sent|dealt|confirmed) .*run the round again with fresh keys"
    ):
        grid.send_and_receive(messages())
    summary = seen.summaries[-1]
    assert "only 3 devices" in summary.aborted
    assert summary.total_weight == 0
    blamed = {"abandoned"} if phase == "confirmed" else {"dropped-before-masking"}
    assert {seen.fates[node] for node in (1, 3, 5)} == {"abandoned"}
    assert {seen.fates[node] for node in (2, 4)} == blamed


def test_when_all_that_is_left_to_do_is_unmasking_as_many_may_drop_as_the_shares_allow() -> None:
    """Three of five open what two can no longer tell; two of five do not."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    inner.faults[2, "unmasked"] = inner.faults[4, "unmasked"] = silent
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    inner.faults[5, "unmasked"] = silent
    with pytest.raises(RoundAborted, match="2 devices are left that hold shares of dev-2, too few"):
        grid.send_and_receive(messages())
    assert seen.fates == dict.fromkeys(range(1, 6), "abandoned")
    assert seen.reason(2) == "no answer in the phase unmasked"


def test_after_an_aborted_round_the_next_one_works_with_fresh_keys() -> None:
    inner, authority = make_grid()
    inner.faults[2, "masked"] = inner.faults[4, "masked"] = silent
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())
    inner.faults.clear()
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert len({item.round_id for item in seen.summaries}) == 2


def test_a_group_below_the_minimum_is_not_even_asked() -> None:
    inner, authority = make_grid(2)
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted, match="2 devices were selected, 3 are needed"):
        grid.send_and_receive(messages(2))
    assert inner.budgets == []
    assert seen.fates == {1: "abandoned", 2: "abandoned"}


def test_devices_with_a_higher_minimum_of_their_own_refuse() -> None:
    grid, seen = secure(*make_grid(policy=ModPolicy(client=Policy(min_clients=6))))
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())
    assert seen.fates == dict.fromkeys(range(1, 6), "rejected")
    assert "below this device's minimum of 6" in seen.reason(1)


# ---- devices that lie


def set_field(name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.config_records[RECORD][name] = value

    return change


def remove(name: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        del content[name]

    return change


def replace_vector(array: Array) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[VECTOR_RECORD] = ArrayRecord({VECTOR_RECORD: array})

    return change


LIES: dict[str, tuple[str, Callable[[RecordDict], None], str, str]] = {
    "keys for another seat": ("keys", set_field("indices", [3]), "rejected", "seat"),
    "keys with a false signature": ("keys", set_field("signatures", [b"x"]), "rejected", "signature"),
    "keys without a name": ("keys", set_field("devices", []), "rejected", "different lengths"),
    "a key of small order": ("keys", set_field("publics", [bytes(32)]), "rejected", "signature"),
    "no answer record": ("keys", remove(RECORD), "rejected", "secure mod"),
    "shares for too few": ("shares", set_field("peers", [1]), "rejected", "different lengths"),
    "shares in another's name": ("shares", set_field("sender", 3), "rejected", "seat"),
    "commitments for fewer rounds": ("shares", set_field("seed_digests", [bytes(32)]), "rejected", "different lengths"),
    "records of another size": (
        "shares",
        set_field("records", [b""] * DEFAULT_GROUP_ROUNDS),
        "rejected",
        "another size or number",
    ),
    "a vector too short": (
        "masked",
        replace_vector(pack_bytes(bytes(12), PACKED_TYPE)),
        "rejected",
        "masked: ",
    ),
    "a plain array for a vector": ("masked", replace_vector(Array(np.zeros(3))), "rejected", "not a packed vector"),
    "no vector": ("masked", remove(VECTOR_RECORD), "rejected", "no masked vector"),
    "no tag for a neighbour": ("confirmed", set_field("tag_seats", [1]), "counted", "confirmed: "),
    "a confirmation for a stranger": ("confirmed", set_field("tag_seats", [1, 3, 4, 9]), "counted", "confirm"),
    "another's confirmation": ("confirmed", set_field("sender", 3), "counted", "seat"),
    "another seed than it dealt": ("unmasked", set_field("seed", bytes(32)), "counted", "another seed"),
    "masks of a device that is there": ("unmasked", set_field("pairs_with", [1]), "counted", "unmasked: "),
    "another's secrets": ("unmasked", set_field("sender", 3), "counted", "seat"),
}


@pytest.mark.parametrize(("phase", "lie", "fate", "reason"), LIES.values(), ids=LIES)
def test_a_device_that_sends(phase: str, lie: Callable[[RecordDict], None], fate: str, reason: str) -> None:
    """… is named with the reason, and the mean is exact over those counted."""
    inner, authority = make_grid()
    inner.faults[2, phase] = rewriting(inner, lie)
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5} if fate == "counted" else {1, 3, 4, 5})
    assert seen.fates[2] == fate
    assert reason in seen.reason(2)


def test_false_tags_do_not_keep_the_others_from_unmasking() -> None:
    inner, authority = make_grid()
    inner.faults[2, "confirmed"] = rewriting(inner, set_field("tags", bytes(64)))
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")


@pytest.mark.parametrize("liars", [{3}, {3, 4}], ids=["one", "two"])
def test_false_shares_of_a_device_that_is_gone_are_told_from_true_ones(liars: set[int]) -> None:
    """Four holders and a threshold of three: one false share is found, two are too many, and nobody is blamed for them."""
    inner, authority = make_grid()
    inner.faults[2, "unmasked"] = silent
    for node in liars:
        inner.faults[node, "recovered"] = rewriting(inner, set_field("seed_shares", bytes(SHARE_BYTES)))
    grid, _ = secure(inner, authority)
    if len(liars) == 1:
        (reply,) = grid.send_and_receive(messages())
        assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    else:
        with pytest.raises(RoundAborted, match=r"shares of dev-2 that do not fit together|dev-2 dealt"):
            grid.send_and_receive(messages())


def test_a_device_that_masks_something_else_makes_the_sum_unreadable_and_the_round_aborts() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    schema = grid.settings("train").schema(5, START, bytes(32))
    words = pack_bytes(schema.layout.pack(schema.layout.join(np.full(schema.length, 5))), PACKED_TYPE)
    inner.faults[2, "masked"] = rewriting(inner, replace_vector(words))
    with pytest.raises(RoundAborted, match="masked something else"):
        grid.send_and_receive(messages())
    assert seen.summaries[-1].total_weight == 0


def test_a_second_answer_and_a_strangers_answer_are_not_taken() -> None:
    inner, authority = make_grid()

    class Doubling(AppGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            for reply in super().send_and_receive(messages, timeout=timeout):
                yield reply
                yield reply
                stranger = reply_with(reply, RecordDict())
                stranger.metadata.__dict__["_src_node_id"] = 99
                yield stranger

    grid, seen = secure(Doubling(inner.nodes), authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")


def test_a_long_reason_from_a_device_is_cut() -> None:
    inner, authority = make_grid()
    inner.faults[2, "keys"] = lambda message: reply_error(message, 0, "x" * 100_000)
    grid, seen = secure(inner, authority)
    grid.send_and_receive(messages())
    assert len(seen.reason(2)) == 500
