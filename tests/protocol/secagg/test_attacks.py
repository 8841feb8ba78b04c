"""The attacks by name, each from end to end: real mods, the real `SecureGrid`, every message through its encoding.

Replay, values and settings have modules of their own, as has what else a server or a device may try at each step; damaged messages
of every kind are in `test_damaged_messages`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import context_to_proto

from edge_agent.secure_mod import ModPolicy
from shared.errors import PeerError, ProtocolError, RoundAborted
from shared.flower import REFUSED, with_content
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.kept import pieces
from shared.secagg.keys import KEY_BYTES
from shared.secagg.messages import RECORD
from shared.secagg.policy import Policy, of_a_device
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import GroupTerms
from tests.protocol.secagg.appgrid import (
    AppGrid,
    Fault,
    ProcessPerMessage,
    make_grid,
    silent,
    tampering,
)
from tests.protocol.secagg.exchanges import (
    EVERYBODY,
    VICTIM,
    assert_mean_of,
    clients,
    exchange,
    secure,
)
from tests.protocol.secagg.kit import Fleet, assert_alone, told, tossed

# ---- keys


def own_key(record: dict[str, Any]) -> None:
    record["publics"] = [os.urandom(KEY_BYTES), *record["publics"][1:]]


def test_key_substitution() -> None:
    """The server puts a key of its own in the place of a neighbour's: the device refuses, and deals nothing to it."""
    inner, authority = make_grid()
    refused: list[Message] = []
    inner.faults[VICTIM, "shares"] = tampering(inner, refused, own_key)
    assert_mean_of(exchange(secure(inner, authority)[0]), EVERYBODY)
    assert [reply.error.code for reply in refused] == [REFUSED]
    assert "the signature is false" in str(refused[0].error.reason)


def test_shrunken_threshold_below_the_devices_own_policy() -> None:
    """Rates without corruption make for fewer neighbours and a lower threshold."""
    policy = ModPolicy(client=Policy(rates=Rates(0.5, 0.1)))
    grid, seen = secure(*make_grid(policy=policy))
    with pytest.raises(RoundAborted):
        exchange(grid)
    assert seen.fates == dict.fromkeys(EVERYBODY, "rejected")
    assert "0.05 corrupt" in seen.reason(1)
    assert "at least 0.1" in seen.reason(1)


@pytest.mark.parametrize(
    "change",
    [{"group_id": "other"}, {"clients": 6}, {"rounds": 1}, {"rates": Rates(0.1, 0.0)}, {"rates": Rates(0.2, 0.1)}],
    ids=str,
)
def test_shrunken_threshold_told_to_one_device_leaves_it_with_keys_that_do_not_verify(
    five: Fleet, change: dict[str, Any]
) -> None:
    """It gets no shares from the others and gives none: they signed other terms, which say how many shares open a secret."""
    near = five.coins(five.keys())[1]
    lied = Client(replace(five.terms, **change), 1, Policy()).advertise(five.identities[1], os.urandom)[0]
    with pytest.raises(PeerError):
        lied.share(near, five.verifier, os.urandom)


def test_equivocating_graph_seed(sparse: Fleet) -> None:
    """All but device 1 hear one coin less, so that it believes in another graph. The seed is part of every key: it is alone."""
    members = sparse.keys()
    assert members is not None
    coins = tossed(sparse, dict.fromkeys(sparse.clients, members))
    fewer = {seat: coin for seat, coin in coins.items() if seat != 30}
    assert_alone(
        sparse, {1: told(sparse, 1, members, coins), **{i: told(sparse, i, members, fewer) for i in range(2, 30)}}
    )


# ---- who is counted, and both secrets of one device


@pytest.mark.parametrize("fooled", [(1, 2), (1, 2, 3)], ids=["two of five", "three of five"])
def test_split_view_of_survivors(fooled: tuple[int, ...]) -> None:
    """A server that tells some that device 5 dropped, and the others that it did not, wants both kinds of its secrets: of two
    stories one at most is believed.
    """
    inner, authority = make_grid()
    for node in fooled:
        inner.faults[node, "confirmed"] = telling(inner, b"\xf0")
    grid, seen = secure(inner, authority)
    if len(fooled) == 2:
        assert_mean_of(exchange(grid), EVERYBODY)
    else:
        with pytest.raises(RoundAborted):
            exchange(grid)
    believing = {3, 4, 5} if len(fooled) == 2 else {1, 2, 3}
    assert {node for node, phase, _ in inner.sent if phase in ("unmasked", "recovered")} == believing
    for node in set(inner.nodes) - believing:
        assert "2 witnesses confirm who is counted; this device wants 3" in seen.reason(node)


def telling(grid: AppGrid, counted: bytes) -> Fault:
    def fault(message: Message) -> Message:
        message.content.config_records[RECORD]["counted"] = counted
        reply = grid.handle(message)
        record: dict[str, Any] = reply.content.config_records[RECORD]  # type: ignore[assignment]
        record["tag_seats"], record["tags"] = [*record["tag_seats"], 5], record["tags"] + bytes(16)
        return reply

    return fault


GONE, SILENT = 8, 3  # of eight: dropped before it masked, and fell silent after
Asked = Sequence[dict[str, list[int]]]
HONEST = {"seeds_of": [SILENT], "keys_of": []}
BOTH: dict[str, tuple[Asked, int]] = {  # and how many of these are answered
    "at once": ([{"seeds_of": [SILENT], "keys_of": [SILENT]}], 0),
    "the seed first": ([HONEST, {"seeds_of": [], "keys_of": [SILENT]}], 1),
    "the key first": ([{"seeds_of": [], "keys_of": [SILENT]}], 0),
    "once more": ([HONEST, HONEST], 1),
    "of one that dropped out": ([{"seeds_of": [GONE], "keys_of": [GONE]}], 0),
    "of one that dropped out, its seed": ([{"seeds_of": [GONE], "keys_of": []}], 0),
}


@pytest.mark.parametrize("kind", [AppGrid, ProcessPerMessage], ids=["in one process", "restarted each time"])
@pytest.mark.parametrize(("asked", "answered"), BOTH.values(), ids=BOTH)
def test_both_share_request(kind: type[AppGrid], asked: Asked, answered: int) -> None:
    """For both kinds of one peer's shares, in one request or in several, before and after the state was stored and read again."""
    nodes, authority = make_grid(8)
    inner = kind(nodes.nodes)
    replies: list[Message] = []

    def asking(message: Message) -> Message:
        for request in asked:
            content = RecordDict({RECORD: ConfigRecord({**message.content.config_records[RECORD], **request})})
            replies.append(inner.handle(with_content(message, content)))
        return next((reply for reply in replies if reply.has_content()), inner.handle(message))

    inner.faults[GONE, "masked"] = inner.faults[SILENT, "unmasked"] = silent
    inner.faults[VICTIM, "recovered"] = asking
    assert_mean_of(exchange(secure(inner, authority)[0], 8), set(range(1, 8)))
    assert [reply.has_content() for reply in replies] == [place < answered for place in range(len(asked))]
    for reply in replies[answered:]:
        assert reply.error.code == REFUSED


@pytest.mark.parametrize("kind", [AppGrid, ProcessPerMessage], ids=["in one process", "restarted each time"])
def test_both_share_request_finds_nothing_to_ask_for(kind: type[AppGrid]) -> None:
    """Of no device both its seed and a mask that it shares with one who is counted were ever sent; and once it is said who is
    counted, its neighbours do not even hold the other kind of share any more.
    """
    nodes, authority = make_grid(8)
    inner = kind(nodes.nodes)
    before: dict[int, Client] = {}
    kept: dict[int, bytes] = {}

    def confirming(message: Message) -> Message:
        node = message.metadata.dst_node_id
        (before[node],) = clients(inner, node)
        reply = inner.handle(message)
        kept[node] = context_to_proto(inner.nodes[node].context).SerializeToString()
        return reply

    inner.faults[GONE, "masked"] = inner.faults[SILENT, "unmasked"] = silent
    for node in range(1, 8):
        inner.faults[node, "confirmed"] = confirming
    assert_mean_of(exchange(secure(inner, authority)[0], 8), set(range(1, 8)))
    sent = b"".join(blob for _, phase, blob in inner.sent if phase != "masked")
    for node, client in before.items():
        for partner, pair in zip(client.dealers, pieces(client.keys[1].pairs, KEY_BYTES), strict=True):
            assert (pair.reveal() in sent) == (partner == GONE and node != SILENT)
            assert (pair.reveal() in kept[node]) == (partner == GONE)
        for dealer, both in zip(client.dealers, pieces(client.keys[1].shares, 2 * SHARE_BYTES), strict=True):
            seed, key = (share.reveal() for share in pieces(both, SHARE_BYTES))
            assert (seed in kept[node], key in kept[node]) == (dealer != GONE, dealer == GONE)
            asked = node != SILENT
            assert (seed in sent, key in sent) == (asked and dealer == SILENT, asked and dealer == GONE)


@pytest.mark.parametrize(
    ("rates", "reason"),
    [(Rates(corrupt=0.0), "at least 0.05"), (Rates(abort_bits=256), "at most 40")],
    ids=["nobody corrupt", "never to be aborted"],
)
def test_a_layout_in_which_few_could_unmask_a_device_is_refused_by_an_agents_policy(rates: Rates, reason: str) -> None:
    """Without corrupt devices to reckon with, two shares may be enough."""
    policy = of_a_device()
    with pytest.raises(ProtocolError, match=reason):
        policy.check(GroupTerms("g", 200, 8, rates))
    policy.check(GroupTerms("g", 200, 8, Rates()))
