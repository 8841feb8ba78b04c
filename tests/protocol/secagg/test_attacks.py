"""The attacks by name, each from end to end: real mods, the real `SecureGrid`, every message through its encoding.

What else a server or a device may try at each step is in the modules beside this one, and damaged messages of every kind are in
`test_damaged_messages`.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import context_to_proto

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import AppRun, SecureGrid
from edge_agent.residuals import LEFT
from edge_agent.secure_mod import ModPolicy
from shared.errors import PeerError, ProtocolError, RoundAborted
from shared.flower import REFUSED, reply_with, with_content
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.kept import pieces
from shared.secagg.keys import KEY_BYTES
from shared.secagg.messages import RECORD
from shared.secagg.policy import Policy, of_a_device
from shared.secagg.quantize import Total, decode
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import GroupTerms, Settings
from tests.protocol.secagg.appgrid import (
    START,
    AppGrid,
    Fault,
    Handler,
    ProcessPerMessage,
    Recorder,
    changed,
    make_grid,
    metrics,
    silent,
    tampering,
)
from tests.protocol.secagg.exchanges import (
    GROUP,
    RECOVERY,
    assert_mean_of,
    assert_weight_and_loss_of,
    clients,
    exchange,
    messages,
    secure,
)
from tests.protocol.secagg.kit import Fleet, assert_alone, told, tossed

VICTIM = 2
EVERYBODY = {1, 2, 3, 4, 5}


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


# ---- replay


def recorded(inner: AppGrid, *, replies: bool) -> dict[str, dict[str, Any] | RecordDict]:
    """What the victim is asked in each phase from now on, or what it answers."""
    found: dict[str, Any] = {}

    def recording(message: Message) -> Message:
        record = dict(message.content.config_records[RECORD])
        reply = inner.handle(message)
        found[str(record["phase"])] = reply.content if replies else record
        return reply

    for phase in (*GROUP, *RECOVERY):
        inner.faults[VICTIM, phase] = recording
    return found


def after_one(*, same_group: bool, replies: bool) -> tuple[AppGrid, SecureGrid, Recorder, dict[str, Any]]:
    """An exchange was recorded; the next one, with vectors as long as its, is another round of its group or another group's."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    if not same_group:
        grid.carried.drawn = None
        inner.faults[4, "unmasked"] = silent
    old = recorded(inner, replies=replies)
    exchange(grid)
    if not same_group:
        grid.carried.drawn = None
    for phase in (*GROUP, *RECOVERY):
        inner.faults.pop((VICTIM, phase), None)
    return inner, grid, seen, old


# What the device says: a refusal that changes nothing, a complaint about letters that do not open, or nothing at all, since the
# request is word for word the one that was meant: it says nothing about rounds, what it is answered with does.
REQUESTS = {
    **{(phase, "another round"): "refused" for phase in ("masked", "unmasked")},
    ("confirmed", "another round"): "the same",
    **{(phase, "another group"): "refused" for phase in (*GROUP, *RECOVERY)},
    **{(phase, "another group, addressed to this one"): "refused" for phase in ("shares", "unmasked")},
    **{(phase, "another group, addressed to this one"): "the same" for phase in ("keys", "confirmed", "recovered")},
    ("masked", "another group, addressed to this one"): "a complaint",
}


@pytest.mark.parametrize(("case", "said"), REQUESTS.items(), ids=map(" of ".join, REQUESTS))
def test_replay_of_a_request(case: tuple[str, str], said: str) -> None:
    """A server asks again what it asked in another round of this group, or in another group: another job's is the same to a
    device.
    """
    phase, source = case
    inner, grid, seen, old = after_one(same_group=source == "another round", replies=False)
    again: list[Message] = []

    def replayed(record: dict[str, Any]) -> None:
        record.update({**old[phase], **({"group_id": record["group_id"]} if "addressed" in source else {})})

    def instead(message: Message) -> Message:
        record: dict[str, Any] = message.content.config_records[RECORD]  # type: ignore[assignment]
        meant = dict(record)
        replayed(record)
        assert (record == meant) == (said == "the same")
        return inner.handle(message)

    inner.faults[VICTIM, phase] = tampering(inner, again, replayed) if said == "refused" else instead
    content = exchange(grid)
    assert_weight_and_loss_of(content, EVERYBODY - ({VICTIM} if said == "a complaint" else set()))
    assert [reply.error.code for reply in again] == [REFUSED] * (said == "refused")
    assert ("could not use the shares" in seen.reason(VICTIM)) == (said == "a complaint")


REPLIES = {
    **{(phase, "another round"): "counted" for phase in ("confirmed", "unmasked")},
    **{(phase, "another group"): "rejected" for phase in GROUP},
    **{(phase, "another group"): "counted" for phase in ("confirmed", "unmasked")},
    **{("masked", source): "no sum" for source in ("another round", "another group")},
    ("recovered", "another group"): "counted",
}


@pytest.mark.parametrize(("case", "fate"), REPLIES.items(), ids=map(" of ".join, REPLIES))
def test_replay_of_a_reply(case: tuple[str, str], fate: str) -> None:
    """A device, or a server that speaks for it, answers what it answered in another round or group: it is left out by name, its
    part is had from the others, or there is no sum. Never a wrong one.
    """
    phase, source = case
    inner, grid, seen, old = after_one(same_group=source == "another round", replies=True)
    inner.faults[VICTIM, phase] = lambda message: (inner.handle(message), reply_with(message, old[phase]))[1]
    if fate == "no sum":
        with pytest.raises(RoundAborted, match="masks did not cancel"):
            exchange(grid)
        return
    assert_weight_and_loss_of(exchange(grid), EVERYBODY - ({VICTIM} if fate == "rejected" else set()))
    assert seen.fates[VICTIM] == fate


# ---- values

WEIGHTS: dict[str, tuple[float, str]] = {
    "one above the maximum": (101, "max_weight 100"),
    "a multiple of the modulus": (1 << 32, "max_weight 100"),
    "huge": (2**62, "max_weight 100"),
    "infinite": (math.inf, "max_weight 100"),
    "negative": (-1, "whole number"),
    "minus infinity": (-math.inf, "whole number"),
    "a fraction": (1.5, "whole number"),
    "NaN": (math.nan, "whole number"),
}


def assert_left_out(trainer: Handler, reason: str) -> None:
    """By name and reason, and the mean over the others is exact."""
    inner, authority = make_grid(trainers={VICTIM: trainer})
    grid, seen = secure(inner, authority)
    assert_mean_of(exchange(grid), EVERYBODY - {VICTIM})
    assert seen.fates == {**dict.fromkeys(EVERYBODY, "counted"), VICTIM: "rejected"}
    assert reason in seen.reason(VICTIM)
    assert VICTIM not in {node for node, phase, _ in inner.sent if phase == "masked"}, "nothing left the device"
    assert not any(name.startswith(LEFT) for name in inner.nodes[VICTIM].context.state)


@pytest.mark.parametrize(("weight", "reason"), WEIGHTS.values(), ids=WEIGHTS)
def test_overflowing_weights(weight: float, reason: str) -> None:
    assert_left_out(metrics(num_examples=weight, loss=1.0), reason)


VALUES: dict[str, dict[str, np.ndarray[Any, Any]]] = {
    "NaN": {"w": np.full((3, 4), np.nan, np.float32)},
    "one NaN": {"w": np.where(np.arange(12).reshape(3, 4) == 11, np.nan, 0).astype(np.float32)},
    "infinity": {"b": np.array(np.inf)},
    "minus infinity": {"b": np.array(-np.inf)},
    "a number that overflows": {"b": np.array(1e308)},
}


@pytest.mark.parametrize("arrays", VALUES.values(), ids=VALUES)
def test_nan_and_infinity(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    assert set(arrays) <= set(START)
    assert_left_out(lambda m, c: changed(m, c, **arrays), "holds a value that is not finite")


def test_nan_in_the_model_that_is_sent_out() -> None:
    """Nothing finite can be said of a change against it: every device refuses."""
    grid, seen = secure(*make_grid())
    batch = messages()
    for message in batch:
        record = message.content.array_records["arrays"]
        record["b"] = type(record["b"])(np.array(np.nan))
    with pytest.raises(RoundAborted):
        grid.send_and_receive(batch)
    assert seen.fates == dict.fromkeys(EVERYBODY, "rejected")


# ---- settings


OTHER_SETTINGS: dict[str, Any] = {
    "weight_key": "private",
    "feedback": 0,
    "max_weight": 99,
    "subsample": 0.5,
    "unit_weight": 3.0,
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_settings_that_differ_from_device_to_device_mask_nothing(name: str) -> None:
    """Had all others another metric for their weight, one that is 0, the sum would be one device's."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    for node in EVERYBODY - {VICTIM}:
        inner.faults[node, "masked"] = told_otherwise(inner, name)
    with pytest.raises(RoundAborted):
        exchange(grid)
    for node in EVERYBODY - {VICTIM}:
        outcome = seen.summaries[-1].outcomes[node]
        assert (outcome.code, "settings" in outcome.reason or "subsample" in outcome.reason) == (REFUSED, True)


def told_otherwise(inner: AppGrid, name: str) -> Fault:
    def fault(message: Message) -> Message:
        record = ConfigRecord({**message.content.config_records[RECORD], name: OTHER_SETTINGS[name]})
        return inner.handle(with_content(message, RecordDict({**message.content, RECORD: record})))

    return fault


def test_a_run_of_other_settings_masks_nothing() -> None:
    """Flower's own engines hand an app the run's settings beside each message."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    for node in EVERYBODY:
        inner.nodes[node].context.run_config = {"lr": 0.1 if node == VICTIM else 0.0}
    grid.app = AppRun(run_config={"lr": 0.0})
    exchange(grid)
    assert (seen.summaries[-1].outcomes[VICTIM].code, seen.fates[1]) == (REFUSED, "counted")


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


def test_a_device_that_lies_about_sizes_spoils_a_round_or_little() -> None:
    """Said to be larger than a device can be, they end the round; the largest that it can say moves a scale by one step."""
    schema = (
        Settings().after(Total(5, 500, {}, {}, sizes={"w": 1.0})).schema(5, {"w": np.zeros(64, np.float32)}, bytes(32))
    )
    total = schema.zeros()
    total[0] = 5  # the count's lowest digit
    total[schema.digits] = 5
    total[4 * schema.digits - 1] = (1 << schema.modulus_bits) - 1  # the highest digit of w's size
    with pytest.raises(RoundAborted, match="sizes"):
        decode(schema, total, 5)


def test_two_jobs_on_the_same_devices_do_not_disturb_each_other() -> None:
    """They have their own keys, models and leftovers, though the app and its context are the same."""
    inner, authority = make_grid()
    config = SecureConfig(max_weight=100, clip_range=4.0, delta_broadcast=True)
    jobs = {run: secure(inner, authority, config) for run in (1, 2)}
    for _ in range(3):
        for run, (grid, _) in jobs.items():
            for node in inner.nodes.values():
                node.context.run_id = run
            exchange(grid)
    for _, seen in jobs.values():
        assert seen.passed[1:] == [["masked", "confirmed", "unmasked"]] * 2
        assert set(seen.fates.values()) == {"counted"}


def test_what_one_run_made_another_cannot_use_up() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    for node in inner.nodes.values():
        node.context.run_id = 8
    with pytest.raises(RoundAborted):
        exchange(grid)
    assert all("no keys for this group" in seen.reason(node) for node in EVERYBODY)
