"""A coordinator that gives devices different things to train on, to tell one device's change from the others' (Pasquini et al.)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.secure_mod import make_secure_mod
from shared.errors import RoundAborted, Unsupported
from shared.flower import inputs_digest
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import AppGrid, Fault, evaluate, make_grid, train
from tests.protocol.secagg.exchanges import assert_mean_of, messages, secure

VICTIM = 1


def zeros(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    content["arrays"] = ArrayRecord({name: Array(np.zeros_like(item.numpy())) for name, item in record.items()})


def one_bit(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    weights = record["w"].numpy().copy()
    weights.view(np.uint32)[0, 0] ^= 1
    content["arrays"] = ArrayRecord({**record, "w": Array(weights)})


def no_learning(content: RecordDict) -> None:
    content["config"] = ConfigRecord({**content.config_records["config"], "lr": 0.0})


def another_model(content: RecordDict) -> None:
    content["model"] = ConfigRecord({"json": "{}"})


def less(content: RecordDict) -> None:
    del content["config"]


LIES: dict[str, Callable[[RecordDict], None]] = {
    "a model of zeros": zeros,
    "a model that differs in one bit": one_bit,
    "a learning rate of zero": no_learning,
    "another model's description": another_model,
    "no settings": less,
}


def giving(grid: AppGrid, lie: Callable[[RecordDict], None], nodes: set[int]) -> None:
    """In the masked phase these nodes get something else."""

    def fault(message: Message) -> Message:
        lie(message.content)
        return grid.handle(message)

    for node in nodes:
        grid.faults[node, "masked"] = fault


def agreeing(grid: AppGrid, lie: Callable[[RecordDict], None]) -> Fault:
    """Something else, and the digest that goes with it."""

    def fault(message: Message) -> Message:
        lie(message.content)
        inputs = RecordDict({name: record for name, record in message.content.items() if name != RECORD})
        digest = inputs_digest(inputs, message_type=message.metadata.message_type, client_app="")
        message.content.config_records[RECORD]["inputs_digest"] = digest
        return grid.handle(message)

    return fault


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_all_but_one_device_are_given(lie: Callable[[RecordDict], None]) -> None:
    """… and there is no sum from which the one device's change could be read: the others mask nothing."""
    reached: list[int] = []

    def watched(message: Message, context: Any) -> Message:
        reached.append(int(message.metadata.dst_node_id))
        return train(message, context)

    inner, authority = make_grid(trainers=dict.fromkeys(range(1, 6), watched))
    giving(inner, lie, {2, 3, 4, 5})
    grid, seen = secure(inner, authority)

    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())

    assert reached == [VICTIM]
    assert seen.fates == {1: "abandoned", **dict.fromkeys((2, 3, 4, 5), "rejected")}
    assert "another model or other settings than the round agreed on" in seen.reason(2)
    assert [node for node, phase, _ in inner.sent if phase == "masked"] == [VICTIM]


def test_the_one_device_that_is_given_another_model_refuses_and_the_sum_is_over_the_others() -> None:
    inner, authority = make_grid()
    giving(inner, zeros, {VICTIM})
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert seen.fates[VICTIM] == "rejected"
    assert_mean_of(reply.content, {2, 3, 4, 5})


def test_measuring_too_is_refused_with_another_model() -> None:
    inner, authority = make_grid()
    giving(inner, zeros, {2, 3, 4, 5})
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages(kind="evaluate"))
    assert seen.fates[2] == "rejected"


@pytest.mark.parametrize("earlier", [0, 1], ids=["in the first round", "in a later round"])
def test_a_device_that_masks_for_another_model_is_not_believed_and_believes_nobody(earlier: int) -> None:
    """The server tells it that this is what all were given, so it trains; its masks then are no one else's."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    for _ in range(earlier):
        grid.send_and_receive(messages())

    inner.faults[VICTIM, "masked"] = agreeing(inner, zeros)
    with pytest.raises(RoundAborted, match="masks did not cancel"):
        grid.send_and_receive(messages())
    assert "masked" in {phase for node, phase, _ in inner.sent if node == VICTIM}, "it did mask"
    assert "unmasked" not in {phase for node, phase, _ in inner.sent[-20:] if node == VICTIM}
    assert seen.reason(VICTIM) == "unmasked: 1 witnesses confirm who is counted; this device wants 3"
    assert seen.fates == dict.fromkeys(range(1, 6), "abandoned")


def test_half_the_devices_with_another_model_do_not_unmask_each_other() -> None:
    inner, authority = make_grid(6)
    grid, seen = secure(inner, authority)

    for node in (4, 5, 6):
        inner.faults[node, "masked"] = agreeing(inner, no_learning)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages(6))
    assert {phase for _, phase, _ in inner.sent} == {"keys", "shares", "masked", "confirmed"}
    for node in inner.nodes:
        assert seen.reason(node) == "unmasked: 3 witnesses confirm who is counted; this device wants 4"


def test_an_app_that_learns_nothing_in_place_of_the_rounds_app_is_refused() -> None:
    """The other devices' changes would be zero, and the sum the one device's own."""
    inner, authority = make_grid()
    for node in (2, 3, 4, 5):
        app = ClientApp(mods=[make_secure_mod(authority.enrol(f"dev-{node}"), authority, client_app="echo")])
        app.train()(train)
        app.evaluate()(evaluate)
        inner.nodes[node].app = app
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())
    assert seen.fates == {1: "abandoned", **dict.fromkeys((2, 3, 4, 5), "rejected")}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_strategy_that_gives_devices_different_settings_is_refused_before_anything_is_sent(kind: str) -> None:
    inner, authority = make_grid()
    batch = messages(kind=kind)
    batch[3].content["config"] = ConfigRecord({"lr": 0.0})
    grid, _ = secure(inner, authority)
    with pytest.raises(Unsupported, match="same arrays and settings"):
        grid.send_and_receive(batch)
    assert inner.sent == []
