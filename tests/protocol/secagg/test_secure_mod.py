"""The mod by itself: what it lets through, what it refuses, and what it leaves in the context."""

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.secure_mod import GROUP, ModPolicy, make_secure_mod
from shared.client_apps import NO_KEYS
from shared.errors import RoundAborted
from shared.flower import REFUSED, new_message
from shared.privacy.accountant import Budget
from shared.secagg.fields import HiddenBytes
from shared.secagg.graph import Rates
from shared.secagg.messages import RECORD
from shared.secagg.policy import PrivacyPolicy
from shared.secagg.terms import GroupTerms
from shared.signing.certificates import Authority as Certificates
from shared.signing.identity import DeviceIdentity, FleetVerifier
from tests.protocol.secagg.appgrid import (
    RUN_ID,
    AppGrid,
    Fault,
    ProcessPerMessage,
    Recorder,
    make_grid,
    silent,
    start_arrays,
    tampering,
    train,
)
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


def test_a_query_is_plain_work() -> None:
    """What it answers is as bare as any reply without masks."""
    refused = ask(make_grid(1)[0], 1, "query")
    assert (refused.error.code, refused.has_content()) == (REFUSED, False)
    assert ask(make_grid(1, policy=ModPolicy(allow_plain=True))[0], 1, "query").has_content()
    private = ModPolicy(allow_plain=True, privacy=PrivacyPolicy(Budget(1.0, 1e-6)))
    assert ask(make_grid(1, policy=private)[0], 1, "query").error.code == REFUSED


TERMS = GroupTerms("g", 5, 8, Rates()).to_fields()
BAD_RECORDS: dict[str, dict[str, Any]] = {
    "no phase": {"group_id": "g"},
    "an unknown phase": {"phase": "dance", "group_id": "g"},
    "no group": {"phase": "keys"},
    "keys without terms": {"phase": "keys", "group_id": "g"},
    "keys without a seat": {"phase": "keys", **TERMS},
    "a seat that the group does not have": {"phase": "keys", **TERMS, "index": 6},
    "a version it does not speak": {"phase": "keys", **TERMS, "index": 1, "version": 2},
    "a group too small to hide in": {"phase": "keys", **TERMS, "index": 1, "clients": 2},
    "a group of which too few may remain": {"phase": "keys", **TERMS, "index": 1, "dropout": 0.5},
    "a group laid out for more dropout than it allows": {"phase": "keys", **TERMS, "index": 1, "dropout": 0.6},
    "a group laid out for less safety than it wants": {"phase": "keys", **TERMS, "index": 1, "security_bits": 30},
    "rates that no group of five bears": {"phase": "keys", **TERMS, "index": 1, "corrupt": 0.9},
    "keys for more rounds than there may be": {"phase": "keys", **TERMS, "index": 1, "rounds": 65},
    "a coin for a group it never joined": {"phase": "coins", "group_id": "g"},
    "shares for a group it never joined": {"phase": "shares", "group_id": "g"},
    "training for a group it never joined": {"phase": "masked", "group_id": "g"},
    "confirming in a group it never joined": {"phase": "confirmed", "group_id": "g", "counted": b"\xf8"},
    "unmasking in a group it never joined": {"phase": "unmasked", "group_id": "g", "tag_seats": [1], "tags": bytes(16)},
    "shares of others in a group it never joined": {
        "phase": "recovered",
        "group_id": "g",
        "seeds_of": [1],
        "keys_of": [],
    },
}


# Of a group that it never joined it has no keys; a message of shares is read before it looks for them.
WANT_KEYS = {"coins", "masked", "confirmed", "unmasked", "recovered"}


@pytest.mark.parametrize("fields", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_message_with(fields: dict[str, Any]) -> None:
    """… is refused, trains nothing and leaves nothing."""
    grid, _ = make_grid(1, trainers={1: lambda message, context: pytest.fail("the app was reached")})
    assert ask(grid, 1, **fields).error.code == (NO_KEYS if fields.get("phase") in WANT_KEYS else REFUSED)
    assert list(grid.nodes[1].context.state) == []


def replaying(grid: AppGrid, replies: list[Message], **fields: Any) -> Fault:
    """Deliver the request, then again with `fields` changed; the second answer is kept, the first is returned."""

    def fault(message: Message) -> Message:
        first = grid.handle(message)
        state = grid.nodes[message.metadata.dst_node_id].context.state
        before = dict(state.items())
        message.content.config_records[RECORD].update(fields)
        replies.append(grid.handle(message))
        assert dict(state.items()) == before, "a refusal changes nothing"
        return first

    return fault


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "confirmed", "unmasked", "recovered"])
def test_a_phase_replayed_is_refused_and_the_round_goes_on(phase: str) -> None:
    inner, authority = make_grid()
    again: list[Message] = []
    inner.faults[2, phase] = replaying(inner, again)
    inner.faults[3, "unmasked"] = silent
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert [item.error.code for item in again] == [REFUSED]


def fewer_tags(record: dict[str, Any]) -> None:
    record["tag_seats"], record["tags"] = record["tag_seats"][:1], record["tags"][:16]


def cut(name: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        record[name] = record[name][:-1]

    return change


def put(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(fields)


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "a neighbour less": ("shares", cut("indices"), "different lengths"),
    "coins that nobody tossed": ("shares", put(coin_seats=[1], coins=bytes(32)), "coins that nobody needs"),
    "letters of half a device": ("masked", cut("boxes"), "different lengths"),
    "letters of too few": ("masked", put(peers=[], boxes=[]), "neighbours dealt shares"),
    "letters of a stranger": ("masked", put(peers=[99], boxes=[b""]), "not from this group's neighbours"),
    "a round of too few": ("masked", put(present=b"\xc0"), "only 2 clients take part"),
    "another vector's layout": ("masked", put(max_weight=99), "not those that the others were given"),
    "settings that are none": ("masked", put(float_range=-1.0), "positive and finite"),
    "terms of no round": ("masked", put(number="one"), "a valid 'number'"),
    "itself as one that dropped": ("confirmed", put(counted=b"\xb8"), "calls this client dropped"),
    "too few that are counted": ("confirmed", put(counted=b"\xe0"), "only 3 clients are counted"),
    "more counted than there are": ("confirmed", put(counted=b"\xff"), "not as long as the group"),
    "tags of too few": ("unmasked", fewer_tags, "2 witnesses confirm who is counted"),
    "tags that are false": ("unmasked", put(tags=bytes(64)), "1 witnesses confirm who is counted"),
    "tags of half": ("unmasked", cut("tags"), "not rows of 16"),
    "a wish for the key of one that is counted": ("recovered", put(seeds_of=[], keys_of=[3]), "another kind"),
    "a wish for the device's own shares": ("recovered", put(seeds_of=[2]), "does not hold"),
    "a wish for shares of a stranger": ("recovered", put(seeds_of=[9]), "another kind"),
}


@pytest.mark.parametrize(("phase", "lie", "reason"), LIES.values(), ids=LIES)
def test_a_server_that_sends(phase: str, lie: Callable[[dict[str, Any]], None], reason: str) -> None:
    """… is refused, nothing changes, and the message that was meant is still answered."""
    inner, authority = make_grid()
    refused: list[Message] = []
    inner.faults[2, phase] = tampering(inner, refused, lie)
    inner.faults[3, "unmasked"] = silent
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert [item.error.code for item in refused] == [REFUSED]
    assert reason in str(refused[0].error.reason)
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})


def test_a_device_confirms_one_set_and_never_another() -> None:
    inner, authority = make_grid()
    again: list[Message] = []
    inner.faults[2, "confirmed"] = replaying(inner, again, counted=b"\x78")
    (reply,) = SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert [item.error.code for item in again] == [REFUSED]
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


def test_a_round_survives_a_process_for_each_message() -> None:
    inner, authority = make_grid()
    grid = ProcessPerMessage(inner.nodes)
    (reply,) = SecureGrid(grid, CONFIG, authority).send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})


SECRETS = ("private", "coin", "letters", "now", "later", "to_them", "from_them")


def test_keys_at_rest_in_the_context_do_not_show() -> None:
    inner, authority = make_grid()
    shown: list[str] = []
    secrets: dict[str, list[bytes]] = {}

    def looking(message: Message) -> Message:
        reply = inner.handle(message)
        state = inner.nodes[2].context.state
        shown.append(f"{inner.nodes[2].context!r} {state!r} {state}")
        for record in state.config_records.values():
            for name in set(SECRETS) & set(record):
                secrets.setdefault(name, []).append(record[name])  # type: ignore[arg-type]
        return reply

    for phase in ("keys", "shares", "masked", "confirmed", "unmasked", "recovered"):
        inner.faults[2, phase] = looking
    inner.faults[3, "unmasked"] = silent
    SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert len(shown) == 6
    assert set(secrets) == set(SECRETS)
    for secret in (item for found in secrets.values() for item in found):
        assert type(secret) is HiddenBytes
        assert not secret or not any(repr(bytes(secret[:16]))[2:-1] in text for text in shown)


def test_groups_that_were_begun_and_left_are_forgotten_one_by_one() -> None:
    inner, authority = make_grid(policy=ModPolicy(kept_groups=3))
    for node in inner.nodes:
        inner.faults[node, "shares"] = silent
    for _ in range(5):
        with pytest.raises(RoundAborted, match="are needed"):
            SecureGrid(inner, CONFIG, authority).send_and_receive(messages())
    assert [len(node.context.state) for node in inner.nodes.values()] == [3] * 5


def test_other_state_of_the_app_is_left_alone() -> None:
    inner, authority = make_grid(3, policy=ModPolicy(kept_groups=1))
    for node in inner.nodes.values():
        node.context.state["mine"] = ConfigRecord({"kept": 1})
    for _ in range(3):
        SecureGrid(inner, CONFIG, authority).send_and_receive(messages(3))
    for node in inner.nodes.values():
        assert node.context.state["mine"] == {"kept": 1}
        assert len([name for name in node.context.state if name.startswith(GROUP)]) == 1


def test_the_app_is_not_shown_the_record_of_the_protocol() -> None:
    shown: list[set[str]] = []

    def looking(message: Message, context: Context) -> Message:
        shown.append(set(message.content))
        return train(message, context)

    inner, authority = make_grid(3, trainers=dict.fromkeys((1, 2, 3), looking))
    SecureGrid(inner, CONFIG, authority).send_and_receive(messages(3))
    assert shown == [{"arrays", "config"}] * 3


@pytest.mark.parametrize("phase", ["coins", "shares", "masked", "confirmed", "unmasked", "recovered"])
def test_damaged_state_in_the_context_is_refused(phase: str) -> None:
    inner, _ = make_grid(1)
    inner.nodes[1].context.state[f"{GROUP}g"] = ConfigRecord({"state": "advertised"})
    reads_the_message_first = phase == "shares"
    assert ask(inner, 1, phase=phase, group_id="g").error.code == (REFUSED if reads_the_message_first else NO_KEYS)


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
    return DeviceIdentity.create(issuer, device, now=NOW, valid_for_s=60.0)
