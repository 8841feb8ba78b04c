"""A group's keys over its rounds: what is left of them after each, and a server that would use them twice."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from coordinator.rounds.exchange import DEFAULT_GROUP_ROUNDS, SecureConfig
from edge_agent.residuals import LEFT
from edge_agent.secure_mod import ModPolicy
from shared.client_apps import NO_KEYS
from shared.flower import REFUSED, with_content
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import AppGrid, Fault, make_grid, silent, train
from tests.protocol.secagg.exchanges import (
    CONFIG,
    ROUND,
    assert_weight_and_loss_of,
    clients,
    exchange,
    secure,
)

EVERYBODY = {1, 2, 3, 4, 5}

# ---- what is left of the keys


def test_after_each_round_its_keys_are_gone_and_no_key_is_used_twice() -> None:
    inner, authority = make_grid()
    config = SecureConfig(max_weight=100, train_metrics=CONFIG.train_metrics, group_rounds=3)
    grid, _ = secure(inner, authority, config)
    for number in (1, 2, 3):
        exchange(grid)
        for node in inner.nodes:
            (client,) = clients(inner, node)
            assert client.draft is None
            assert set(client.keys) == set(range(number, 4)), "of rounds gone by there is nothing"
            assert client.keys[number].seed.reveal() == client.keys[number].pairs.reveal() == b""
            assert all(client.keys[later].seed.reveal() for later in range(number + 1, 4))


@pytest.mark.parametrize("rounds", [1, 2], ids=["the group's last", "not its last"])
def test_of_a_round_that_needed_shares_nothing_is_left(rounds: int) -> None:
    inner, authority = make_grid()
    grid, _ = secure(inner, authority, SecureConfig(max_weight=100, group_rounds=rounds))
    inner.faults[2, "unmasked"] = silent
    exchange(grid)
    for node in (1, 3, 4, 5):
        assert [set(client.keys) for client in clients(inner, node)] == [{2}][: rounds - 1]
        assert [name for name in inner.nodes[node].context.state if name.startswith(f"{LEFT}{inner.run}.")]
        assert len(inner.nodes[node].context.state) == rounds


def test_a_group_that_is_forgotten_leaves_nothing() -> None:
    inner, authority = make_grid(policy=ModPolicy(kept_groups=1))
    for _ in range(3):
        grid, _ = secure(inner, authority)
        inner.faults[2, "confirmed"] = silent
        exchange(grid)
    assert [len(clients(inner, node)) for node in inner.nodes] == [1] * 5
    assert len(inner.nodes[2].context.state) == 1 + 1, "and what rounding took from the last update, which is the run's"


# ---- a server that reuses what it should not


def again(inner: AppGrid, replies: list[Message], **fields: Any) -> Fault:
    """The request, with these fields changed, and then as it was meant."""

    def fault(message: Message) -> Message:
        changed = RecordDict(dict(message.content.items()))
        record = dict(message.content.config_records[RECORD])
        changed[RECORD] = ConfigRecord({**record, **fields})
        before = dict(inner.nodes[2].context.state.items())
        replies.append(inner.handle(with_content(message, changed)))
        assert dict(inner.nodes[2].context.state.items()) == before, "a refusal changes nothing"
        return inner.handle(message)

    return fault


REUSES: dict[str, tuple[dict[str, Any], str]] = {
    "a round gone by": ({"number": 1}, "no keys for this round, or has used them"),
    "a round that no key was made for": ({"number": DEFAULT_GROUP_ROUNDS + 1}, "no keys for this round"),
    "round zero": ({"number": 0}, "no keys for this round"),
    "a round without this device": ({"present": b"\xb8"}, "no part in"),
    "a round of three of five": ({"present": b"\xe0"}, "only 3 clients take part; this device wants 4"),
    "a round of more than the group": ({"present": b"\xfc"}, "not as long as the group"),
    "another vector": ({"schema_digest": "0" * 64}, "not those that the others were given"),
    "fewer bits": ({"bits": 4}, "not those that the others were given"),
    "bits that do not exist": ({"bits": 5}, "elements have 4, 6, 8, 12, 16 bits"),
    "a scale of its own": ({"scale_values": [1.0, 1.0]}, "not those that the others were given"),
    "a scale of nothing": ({"scale_values": [0.0, 0.0]}, "positive and finite"),
    "another rotation": ({"round_id": "mine"}, "not those that the others were given"),
    "other inputs": ({"inputs_digest": "0" * 64}, "another model or other settings"),
}


@pytest.mark.parametrize(("fields", "reason"), REUSES.values(), ids=REUSES)
def test_a_later_round_is_refused_with(fields: dict[str, Any], reason: str) -> None:
    """… before its app sees it, and the round that was meant still works."""
    reached: list[int] = []

    def counting(message: Message, context: Context) -> Message:
        reached.append(context.node_id)
        return train(message, context)

    inner, authority = make_grid(trainers={2: counting})
    grid, seen = secure(inner, authority)
    exchange(grid)
    refused: list[Message] = []
    inner.faults[2, "masked"] = again(inner, refused, **fields)
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    (reply,) = refused
    assert reply.error.code == (NO_KEYS if fields.get("number", 0) > 2 else REFUSED)
    assert reason in str(reply.error.reason)
    assert seen.passed[-1] == ROUND
    assert reached == [2, 2]


def test_two_vectors_under_the_masks_of_one_round_are_never_had() -> None:
    """Their difference would be that of two updates in clear."""
    inner, authority = make_grid()
    grid, _ = secure(inner, authority)
    exchange(grid)
    second: list[Message] = []

    def twice(message: Message) -> Message:
        first = inner.handle(message)
        second.append(inner.handle(message))
        return first

    inner.faults[2, "masked"] = twice
    assert_weight_and_loss_of(exchange(grid), EVERYBODY)
    assert [reply.error.code for reply in second] == [REFUSED]


def test_vectors_of_two_rounds_have_nothing_in_common() -> None:
    inner, authority = make_grid()
    grid, _ = secure(inner, authority)
    for _ in range(3):
        exchange(grid, arrays=ArrayRecord({"w": Array(np.zeros(4096, np.float32))}))
    vectors = [blob for node, phase, blob in inner.sent if (node, phase) == (1, "masked")][1:]
    one, other = (np.frombuffer(blob[-4096:], np.uint8) for blob in vectors)
    assert np.mean(one == other) < 0.02
