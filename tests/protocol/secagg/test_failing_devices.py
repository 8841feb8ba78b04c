"""Devices that fail or lie in an exchange: each is named with its reason, and the mean over the others is exact."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from edge_agent.secure_mod import ModPolicy
from shared.errors import RoundAborted
from shared.flower import pack_words, reply_error, reply_with
from shared.secagg.client import Policy
from shared.secagg.messages import RECORD, VECTOR_RECORD, WORDS_TYPE
from tests.protocol.secagg.appgrid import (
    START,
    AppGrid,
    Fault,
    Handler,
    losing_the_reply,
    make_grid,
    silent,
    train,
)
from tests.protocol.secagg.exchanges import (
    assert_mean_of,
    messages,
    secure,
)

# ---- devices that fail


def nan(message: Message, context: Context) -> Message:
    return changed(message, context, w=np.full((3, 4), np.nan, np.float32))


def changed(message: Message, context: Context, **arrays: np.ndarray[Any, Any]) -> Message:
    reply = train(message, context)
    reply.content["arrays"] = ArrayRecord({**reply.content["arrays"], **{n: Array(v) for n, v in arrays.items()}})
    return reply


def metrics(**values: float) -> Handler:
    def trainer(message: Message, context: Context) -> Message:
        reply = train(message, context)
        reply.content["metrics"] = MetricRecord({name.replace("_", "-"): value for name, value in values.items()})
        return reply

    return trainer


def raising(message: Message, context: Context) -> Message:
    raise RuntimeError("out of memory")


def refusing(message: Message, context: Context) -> Message:
    return reply_error(message, 0, "no data today")


BAD_TRAINERS: dict[str, tuple[Handler, str, str]] = {
    "raises": (raising, "dropped-and-recovered", "RuntimeError"),
    "answers with an error": (refusing, "dropped-and-recovered", "no data today"),
    "sends NaN": (nan, "rejected", "'w' holds a value that is not finite"),
    "sends a change out of range": (
        lambda m, c: changed(m, c, w=np.full((3, 4), 9, np.float32)),
        "rejected",
        "'w' holds a change outside its range",
    ),
    "sends another shape": (lambda m, c: changed(m, c, w=np.zeros(12, np.float32)), "rejected", "'w' has shape"),
    "sends one array more": (lambda m, c: changed(m, c, v=np.zeros(1)), "rejected", "exactly the arrays"),
    "has more examples than max_weight": (metrics(num_examples=101, loss=1.0), "rejected", "max_weight 100"),
    "has no weight": (metrics(loss=1.0), "rejected", "num-examples"),
    "has a fraction of an example": (metrics(num_examples=1.5, loss=1.0), "rejected", "whole number"),
    "lacks a declared metric": (metrics(num_examples=1), "rejected", "'loss'"),
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
    assert not any(name.startswith(RECORD) for name in inner.nodes[2].context.state), "its keys are gone"


GONE: dict[str, str] = {
    "keys": "dropped-before-masking",
    "shares": "dropped-before-masking",
    "masked": "dropped-and-recovered",
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


@pytest.mark.parametrize("phase", GONE)
def test_two_of_five_that_drop_are_one_too_many_and_nothing_is_counted(phase: str) -> None:
    inner, authority = make_grid()
    inner.faults[2, phase] = inner.faults[4, phase] = silent
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted, match="4 are needed"):
        grid.send_and_receive(messages())
    summary = seen.summaries[-1]
    assert "4 are needed" in summary.aborted
    assert summary.total_weight == 0
    blamed = {"abandoned"} if phase == "unmasked" else {"dropped-before-masking"}
    assert {seen.fates[node] for node in (1, 3, 5)} == {"abandoned"}
    assert {seen.fates[node] for node in (2, 4)} == blamed


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


def rewriting(grid: AppGrid, change: Callable[[RecordDict], None]) -> Fault:
    def fault(message: Message) -> Message:
        reply = grid.handle(message)
        change(reply.content)
        return reply

    return fault


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
    "no answer record": ("keys", remove(RECORD), "rejected", "secure mod"),
    "shares for too few": ("shares", set_field("peers", [1]), "rejected", "different lengths"),
    "shares in another's name": ("shares", set_field("sender", 3), "rejected", "seat"),
    "a vector too short": (
        "masked",
        replace_vector(pack_words(np.zeros(3, np.uint32), WORDS_TYPE)),
        "rejected",
        "dev-2 sent a vector of another type or length",
    ),
    "a plain array for a vector": ("masked", replace_vector(Array(np.zeros(3))), "rejected", "packed words"),
    "no vector": ("masked", remove(VECTOR_RECORD), "rejected", "no masked vector"),
    "changed shares at the end": ("unmasked", set_field("seed_shares", [bytes(33)] * 5), "counted", "dev-2 revealed"),
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


def test_a_device_that_masks_something_else_makes_the_sum_unreadable_and_the_round_aborts() -> None:
    inner, authority = make_grid()
    words = np.full(2 + 1 + sum(value.size for value in START.values()), 5, np.uint32)
    inner.faults[2, "masked"] = rewriting(inner, replace_vector(pack_words(words, WORDS_TYPE)))
    grid, seen = secure(inner, authority)
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
