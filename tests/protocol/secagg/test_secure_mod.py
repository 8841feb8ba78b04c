"""The mod by itself: what it lets through, what it refuses, and what it leaves in the context."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto

from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.secure_mod import ModPolicy, make_secure_mod
from shared.flower import REFUSED, new_message
from shared.secagg.fields import HiddenBytes
from shared.secagg.messages import RECORD
from shared.signing.certificates import Authority as Certificates
from shared.signing.certificates import generate_key, make_csr
from shared.signing.identity import DeviceIdentity, FleetVerifier
from tests.protocol.secagg.appgrid import RUN_ID, AppGrid, Fault, Recorder, make_grid, start_arrays, train
from tests.protocol.secagg.exchanges import CONFIG, assert_mean_of, messages
from tests.protocol.secagg.kit import Authority

NOW = 1_800_000_000.0


def ask(grid: AppGrid, node: int, kind: str = "train", **fields: Any) -> Message:
    content = RecordDict({"arrays": start_arrays(), "config": ConfigRecord({})})
    if fields:
        content[RECORD] = ConfigRecord(fields)
    return grid.handle(new_message(content, run_id=RUN_ID, node_id=node, message_type=kind))


@pytest.mark.parametrize("kind", ["train", "evaluate", "train.fine_tune"])
def test_plain_work_is_refused_unless_the_policy_allows_it(kind: str) -> None:
    grid, authority = make_grid(1)
    grid.nodes[1].app.train("fine_tune", mods=[])(train)
    reply = ask(grid, 1, kind)
    assert reply.error.code == REFUSED
    assert "secure aggregation only" in str(reply.error.reason)
    allowed, _ = make_grid(1, policy=ModPolicy(allow_plain=True), authority=authority)
    allowed.nodes[1].app.train("fine_tune", mods=[])(train)
    assert ask(allowed, 1, kind).has_content()


def test_a_query_always_passes() -> None:
    assert ask(make_grid(1)[0], 1, "query").has_content()


BAD_RECORDS: dict[str, dict[str, Any]] = {
    "no phase": {"round_id": "r"},
    "an unknown phase": {"phase": "dance", "round_id": "r"},
    "no round": {"phase": "keys"},
    "keys without terms": {"phase": "keys", "round_id": "r"},
    "shares for a round it never joined": {"phase": "shares", "round_id": "r"},
    "training for a round it never joined": {"phase": "masked", "round_id": "r"},
    "unmasking a round it never joined": {"phase": "unmasked", "round_id": "r", "seeds_of": [1], "keys_of": []},
    "a version it does not speak": {"phase": "keys", "round_id": "r", "version": 2},
}


@pytest.mark.parametrize("fields", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_message_with(fields: dict[str, Any]) -> None:
    """… is refused, trains nothing and leaves nothing."""
    grid, _ = make_grid(1, trainers={1: lambda message, context: pytest.fail("the app was reached")})
    assert ask(grid, 1, **fields).error.code == REFUSED
    assert list(grid.nodes[1].context.state) == []


def test_the_context_holds_no_round_key_after_a_round() -> None:
    inner, authority = make_grid()
    SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert all(list(node.context.state) == [] for node in inner.nodes.values())


def replaying(grid: AppGrid, replies: list[Message], copies: int = 1, **fields: Any) -> Fault:
    """Deliver the request, then again (with `fields` changed); all answers are kept, the first is returned."""

    def fault(message: Message) -> Message:
        first = grid.handle(message)
        for _ in range(copies):
            for name, value in fields.items():
                message.content.config_records[RECORD][name] = value
            replies.append(grid.handle(message))
        return first

    return fault


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "unmasked"])
def test_a_phase_replayed_is_refused_and_the_round_goes_on(phase: str) -> None:
    inner, authority = make_grid()
    again: list[Message] = []
    inner.faults[2, phase] = replaying(inner, again)
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert [item.error.code for item in again] == [REFUSED]


def test_two_share_kinds_for_one_peer_are_never_had_by_asking_twice() -> None:
    inner, authority = make_grid()
    again: list[Message] = []
    inner.faults[2, "unmasked"] = replaying(inner, again, seeds_of=[1, 2, 3, 4], keys_of=[5])
    SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert [item.error.code for item in again] == [REFUSED]


def test_an_unmask_request_for_both_kinds_is_refused_and_a_right_one_still_answered() -> None:
    inner, authority = make_grid()
    refused: list[Message] = []

    def greedy(message: Message) -> Message:
        honest = dict(message.content.config_records[RECORD])
        message.content.config_records[RECORD]["keys_of"] = [5]
        refused.append(inner.handle(message))
        message.content[RECORD] = ConfigRecord(honest)
        return inner.handle(message)

    inner.faults[2, "unmasked"] = greedy
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert "both share kinds" in str(refused[0].error.reason)
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})


def test_rounds_may_overlap_on_one_device() -> None:
    """While the first round waits for its masked phase, a second one runs whole through the same mods and contexts."""
    inner, authority = make_grid()
    inside: list[Message] = []

    def second_round(message: Message) -> Message:
        del inner.faults[1, "masked"]
        inside.extend(SecureGrid(inner, CONFIG, authority).send_and_receive(messages()))
        return inner.handle(message)

    inner.faults[1, "masked"] = second_round
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    for content in (inside[0].content, reply.content):
        assert_mean_of(content, {1, 2, 3, 4, 5})


class ProcessPerMessage(AppGrid):
    """As Flower's SuperNode does it: the context goes through protobuf before each message."""

    def handle(self, message: Message) -> Message:
        node = self.nodes[message.metadata.dst_node_id]
        node.context = context_from_proto(context_to_proto(node.context))
        return super().handle(message)


def test_a_round_survives_a_process_for_each_message() -> None:
    inner, authority = make_grid()
    grid = ProcessPerMessage(inner.nodes)
    (reply,) = SecureGrid(grid, CONFIG, authority).send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})


def test_keys_at_rest_in_the_context_do_not_show() -> None:
    inner, authority = make_grid()
    shown: list[str] = []
    secrets: list[bytes] = []

    def looking(message: Message) -> Message:
        reply = inner.handle(message)
        state = inner.nodes[2].context.state
        shown.append(f"{inner.nodes[2].context!r} {state!r} {state}")
        for record in state.config_records.values():
            for name in ("secrets", "key_shares", "seed_shares"):
                secrets.extend(record[name])  # type: ignore[arg-type]
        return reply

    for phase in ("keys", "shares", "masked", "unmasked"):
        inner.faults[2, phase] = looking
    SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert len(shown) == 4
    assert secrets
    assert {type(secret) for secret in secrets} == {HiddenBytes}
    for secret in map(bytes, secrets):
        assert not any(repr(secret)[2:-1] in text for text in shown)


def test_rounds_that_were_begun_and_left_are_forgotten_one_by_one() -> None:
    inner, authority = make_grid(policy=ModPolicy(kept_rounds=3))
    for node in inner.nodes:
        inner.faults[node, "shares"] = lambda message: None
    for _ in range(5):
        with pytest.raises(Exception, match="are needed"):
            SecureGrid(inner, CONFIG, authority, observer=Recorder()).send_and_receive(messages())
    assert [len(node.context.state) for node in inner.nodes.values()] == [3] * 5


def test_other_state_of_the_app_is_left_alone() -> None:
    inner, authority = make_grid(3, policy=ModPolicy(kept_rounds=1))
    for node in inner.nodes.values():
        node.context.state["mine"] = ConfigRecord({"kept": 1})
    for _ in range(3):
        SecureGrid(inner, CONFIG, authority).send_and_receive(messages(3))
    assert all(list(node.context.state) == ["mine"] for node in inner.nodes.values())


def test_damaged_state_in_the_context_is_refused() -> None:
    inner, _ = make_grid(1)
    inner.nodes[1].context.state[f"{RECORD}.r"] = ConfigRecord({"state": "advertised"})
    assert ask(inner, 1, phase="shares", round_id="r").error.code == REFUSED


def test_a_record_of_the_wrong_kind_is_refused() -> None:
    authority = Authority()
    mod = make_secure_mod(authority.enrol("dev-1"), authority)
    content = RecordDict({RECORD: start_arrays()})
    message = new_message(content, run_id=RUN_ID, node_id=1, message_type="train")
    reply = mod(message, Context(RUN_ID, 1, {}, RecordDict(), {}), train)
    assert reply.error.code == REFUSED


def test_the_fleets_own_certificates_sign_the_round_keys() -> None:
    """P-256 device certificates, and a verifier that knows the fleet's authority alone."""
    fleet, foreign = (Certificates.create(name, NOW) for name in ("fleet", "foreign"))
    verifier = FleetVerifier(fleet.certificate_der, lambda: NOW)
    inner, _ = make_grid(4)
    for node_id, node in inner.nodes.items():
        issuer = foreign if node_id == 4 else fleet
        app = ClientApp(mods=[make_secure_mod(fleet_identity(issuer, f"dev-{node_id}"), verifier)])
        app.train()(train)
        node.app = app
    seen = Recorder()
    (reply,) = SecureGrid(inner, CONFIG, verifier, observer=seen).send_and_receive(messages(4))
    assert_mean_of(reply.content, {1, 2, 3})
    assert seen.fates[4] == "rejected"


def fleet_identity(issuer: Certificates, device: str) -> DeviceIdentity:
    key = generate_key()
    certificate = issuer.issue(make_csr(key, device), device, "device", now=NOW, valid_for_s=60.0)
    return DeviceIdentity(device, key, certificate)
