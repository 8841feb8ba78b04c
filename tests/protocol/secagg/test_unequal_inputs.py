"""A coordinator that gives devices different things to train on, to tell one device's change from the others' (Pasquini et al.)."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.secure_mod import make_secure_mod
from shared.errors import RoundAborted, SignatureInvalid, Unsupported
from shared.secagg.client import Client
from shared.secagg.messages import RECORD, Roster
from tests.protocol.secagg.appgrid import AppGrid, evaluate, make_grid, train
from tests.protocol.secagg.exchanges import assert_mean_of, messages, secure
from tests.protocol.secagg.kit import Round

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


def test_a_device_that_signed_for_another_model_does_not_get_into_the_group() -> None:
    inner, authority = make_grid()

    def other_terms(message: Message) -> Message:
        message.content.config_records[RECORD]["inputs_digest"] = "0" * 64
        return inner.handle(message)

    inner.faults[2, "keys"] = other_terms
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert seen.fates[2] == "rejected"
    assert "signature" in seen.reason(2)
    assert_mean_of(reply.content, {1, 3, 4, 5})


def test_devices_refuse_a_group_some_of_whom_signed_for_another_model() -> None:
    """Whatever a server lets pass: each device checks everybody's signature against what it agreed to itself."""
    group = Round(4, 3)
    other = replace(group.terms, inputs_digest="2" * 64)
    clients, adverts = {}, []
    for index, identity in group.identities.items():
        terms = group.terms if index == VICTIM else other
        clients[index], advert = Client(terms, index, group.policy).advertise(identity, os.urandom)
        adverts.append(advert)
    for client in clients.values():
        with pytest.raises(SignatureInvalid):
            client.share(Roster(tuple(adverts)), group.verifier, os.urandom)


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
