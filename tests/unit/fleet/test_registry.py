"""Who joins, who may speak, and what is written down about it."""

import math
from dataclasses import replace

import pytest

from coordinator.fleet.device import Device
from coordinator.fleet.ports import Decide
from coordinator.fleet.states import DeviceState
from shared.errors import Conflict, Forbidden, InputError, Malformed, NotFound, SignatureInvalid, Unauthenticated
from shared.ids import digest_of
from shared.session import Hello, Serving
from shared.signing.certificates import Authority, Subject, generate_key, make_csr, verify_certificate
from shared.signing.tokens import JoinToken
from tests.unit.fleet.kit import DAY_S, Fleet, request


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def subject_of(fleet: Fleet, certificate: bytes) -> Subject:
    return fleet.registry.authenticate(certificate)


def test_a_token_lets_one_device_join_and_gives_it_its_labels(fleet: Fleet) -> None:
    device = fleet.join("dev1")

    assert device.state is DeviceState.ACTIVE
    assert device.labels == {"rack": "3", "site": "lab"}
    assert subject_of(fleet, device.certificate_der).id == device.id
    assert [entry.action for entry in fleet.registry.audit(10)] == ["token.create", "device.enrol"]


def test_a_lost_answer_loses_nothing_the_same_token_and_key_give_the_same_device(fleet: Fleet) -> None:
    wanted = request(fleet.token())

    first, second = fleet.registry.enrol(wanted), fleet.registry.enrol(wanted)

    assert (first.id, first.certificate_der) == (second.id, second.certificate_der)
    assert len(fleet.registry.devices()) == 1


def test_a_lost_answer_is_repeated_even_after_the_token_expired(fleet: Fleet) -> None:
    wanted = request(fleet.token(valid_for_s=10))
    device = fleet.registry.enrol(wanted)
    fleet.clock.advance(11)

    assert fleet.registry.enrol(wanted).id == device.id


def test_a_stolen_token_does_not_let_a_second_device_join(fleet: Fleet) -> None:
    token = fleet.token()
    fleet.registry.enrol(request(token))

    with pytest.raises(Forbidden, match="another device"):
        fleet.registry.enrol(request(token, "dev2"))
    assert [device.name for device in fleet.registry.devices()] == ["dev1"]


def test_an_expired_token_is_refused_and_stays_unspent(fleet: Fleet) -> None:
    token = fleet.token(valid_for_s=10)
    fleet.clock.advance(11)

    with pytest.raises(Unauthenticated, match="expired"):
        fleet.registry.enrol(request(token))
    record = fleet.store.token(JoinToken.parse(token).id)
    assert record is not None
    assert record.spent_by == ""


def test_a_revoked_token_is_refused_and_the_revocation_is_written_down_once(fleet: Fleet) -> None:
    token = fleet.token()
    token_id = JoinToken.parse(token).id
    for _ in range(2):
        assert fleet.registry.revoke_token(token_id, "admin ann").revoked_at == fleet.clock.now()

    with pytest.raises(Forbidden, match="this join token was revoked; ask for a new one"):
        fleet.registry.enrol(request(token))
    (_, entry) = fleet.registry.audit(10)
    assert (entry.actor, entry.action, entry.subject) == ("admin ann", "token.revoke", token_id)


def test_a_token_that_was_used_is_not_revoked_but_its_device_is_named(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    (token,) = fleet.registry.tokens()

    with pytest.raises(Conflict, match=f"device revoke {device.id}"):
        fleet.registry.revoke_token(token.id, "admin")
    with pytest.raises(NotFound, match="token list"):
        fleet.registry.revoke_token("nope", "admin")
    assert fleet.registry.tokens() == [token]


def test_the_state_of_a_token_is_what_became_of_it(fleet: Fleet) -> None:
    def states() -> list[str]:
        return sorted(str(fleet.registry.state_of(token)) for token in fleet.registry.tokens())

    used, revoked, later = fleet.token(valid_for_s=10), fleet.token(valid_for_s=10), fleet.token(valid_for_s=10)
    fleet.registry.enrol(request(used))
    fleet.registry.revoke_token(JoinToken.parse(revoked).id, "admin")
    assert states() == ["revoked", "unused", "used"]

    fleet.clock.advance(11)
    assert states() == ["expired", "revoked", "used"]
    with pytest.raises(Unauthenticated, match="expired"):
        fleet.registry.enrol(request(later))


def test_a_guessed_secret_is_refused(fleet: Fleet) -> None:
    real = JoinToken.parse(fleet.token())
    forged = replace(real, secret=b"\0" * 16)

    with pytest.raises(Unauthenticated, match="not known"):
        fleet.registry.enrol(request(forged.text))


@pytest.mark.parametrize(
    ("wanted", "error"),
    {
        "a broken token": (request("shoal1.abc"), Malformed),
        "a name that is no name": (request("shoal1.abc", "../etc"), Malformed),
        "a request that is none": (request("shoal1.abc", csr=b"junk"), Malformed),
    }.values(),
)
def test_malformed_requests_change_nothing(fleet: Fleet, wanted: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        fleet.registry.enrol(wanted)  # type: ignore[arg-type]
    assert fleet.registry.devices() == []


def test_a_name_is_taken_once_and_the_token_survives_the_mistake(fleet: Fleet) -> None:
    fleet.join("dev1")
    token = fleet.token()

    with pytest.raises(Conflict, match="dev1"):
        fleet.registry.enrol(request(token, "dev1"))
    assert fleet.registry.enrol(request(token, "dev2")).name == "dev2"


def test_a_device_that_waits_for_approval_has_no_certificate_and_may_not_speak(fleet: Fleet) -> None:
    wanted = request(fleet.token(require_approval=True))
    device = fleet.registry.enrol(wanted)
    assert (device.state, device.certificate_der) == (DeviceState.PENDING, b"")

    fleet.registry.approve("dev1", "admin")

    approved = fleet.registry.enrol(wanted)
    assert approved.state is DeviceState.ACTIVE
    assert fleet.registry.admit(subject_of(fleet, approved.certificate_der)).id == device.id


def test_revocation_takes_effect_on_the_next_message(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    speaker = subject_of(fleet, device.certificate_der)
    assert fleet.registry.admit(speaker).id == device.id

    fleet.registry.revoke("dev1", "admin", "stolen")

    with pytest.raises(Forbidden, match="revoked"):
        fleet.registry.admit(speaker)
    with pytest.raises(Conflict):
        fleet.registry.release("dev1", "admin")


def test_quarantine_is_undone_and_repeating_it_writes_nothing_twice(fleet: Fleet) -> None:
    fleet.join("dev1")
    for _ in range(2):
        assert fleet.registry.quarantine("dev1", "admin", "odd").state is DeviceState.QUARANTINED
    assert fleet.registry.release("dev1", "admin").state is DeviceState.ACTIVE

    actions = [entry.action for entry in fleet.registry.audit(10)]
    assert actions == ["token.create", "device.enrol", "device.quarantine", "device.release"]


def test_an_expired_certificate_and_one_of_another_fleet_are_refused(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    stranger = Authority.create("other", fleet.clock.now()).issue(
        make_csr(generate_key(), "x"), device.id, "device", now=fleet.clock.now(), valid_for_s=DAY_S
    )
    with pytest.raises(SignatureInvalid, match="not issued by this fleet"):
        fleet.registry.authenticate(stranger)

    fleet.clock.advance(91 * DAY_S)
    with pytest.raises(SignatureInvalid, match="expired"):
        fleet.registry.authenticate(device.certificate_der)


def test_renewal_replaces_the_key_and_the_old_certificate_stops_counting(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    old = subject_of(fleet, device.certificate_der)

    renewed = fleet.registry.renew(device.id, make_csr(generate_key(), "dev1"))

    assert fleet.registry.admit(subject_of(fleet, renewed.certificate_der)).id == device.id
    with pytest.raises(Unauthenticated, match="renewed its key"):
        fleet.registry.admit(old)


def test_an_unknown_device_with_a_good_certificate_is_refused(fleet: Fleet) -> None:
    now = fleet.clock.now()
    ghost = fleet.authority.issue(make_csr(generate_key(), "x"), "dev-ghost", "device", now=now, valid_for_s=DAY_S)

    with pytest.raises(Unauthenticated, match="no such device"):
        fleet.registry.admit(verify_certificate(fleet.authority.certificate_der, ghost, now))


def test_impossible_token_requests_are_refused(fleet: Fleet) -> None:
    for count, valid in ((0, 10.0), (1, 0.0), (20_000, 10.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(InputError):
            fleet.registry.create_tokens(count=count, valid_for_s=valid, labels={}, require_approval=False, actor="a")


def test_an_unknown_name_says_how_to_look(fleet: Fleet) -> None:
    with pytest.raises(NotFound, match="device list"):
        fleet.registry.device("nobody")


def test_no_secret_shows(fleet: Fleet) -> None:
    token = JoinToken.parse(fleet.token())

    assert token.secret.hex() not in repr(token)
    assert token.text not in repr(request(token.text))
    assert repr(token.secret) not in repr(token)
    assert token.secret_sha256 not in repr(fleet.registry.tokens())


def test_a_lost_answer_to_a_renewal_locks_nobody_out(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    old = subject_of(fleet, device.certificate_der)
    fleet.registry.renew(device.id, make_csr(generate_key(), "dev1"))

    assert fleet.registry.admit(old).id == device.id
    again = fleet.registry.renew(device.id, make_csr(generate_key(), "dev1"))
    assert fleet.registry.admit(subject_of(fleet, again.certificate_der)).id == device.id


def test_a_renewal_that_was_replaced_before_its_first_use_is_refused(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    lost = fleet.registry.renew(device.id, make_csr(generate_key(), "dev1"))
    fleet.registry.renew(device.id, make_csr(generate_key(), "dev1"))

    with pytest.raises(Unauthenticated, match="renewed its key"):
        fleet.registry.admit(subject_of(fleet, lost.certificate_der))


def test_a_revoked_device_cannot_come_back_by_repeating_its_enrolment(fleet: Fleet) -> None:
    wanted = request(fleet.token())
    fleet.registry.enrol(wanted)
    fleet.registry.revoke("dev1", "admin", "stolen")

    with pytest.raises(Forbidden, match="revoked"):
        fleet.registry.enrol(wanted)


def test_a_machine_set_up_afresh_after_its_revocation_keeps_its_name(fleet: Fleet) -> None:
    old = fleet.join("dev1")
    fleet.registry.revoke("dev1", "admin", "reinstalled")

    assert fleet.join("dev1").id != old.id
    assert fleet.registry.device(old.id).state is DeviceState.REVOKED


def test_a_device_cannot_take_a_name_that_reads_as_an_id(fleet: Fleet) -> None:
    victim = fleet.join("dev1")
    with pytest.raises(Malformed, match="looks like a device id"):
        fleet.registry.enrol(request(fleet.token(), victim.id))


@pytest.mark.parametrize("label", ["id", "name", "profile", "share"])
def test_a_label_cannot_pass_for_a_word_of_cohorts(fleet: Fleet, label: str) -> None:
    with pytest.raises(InputError, match="meaning of its own"):
        fleet.registry.create_tokens(
            count=1, valid_for_s=10, labels={label: "x"}, require_approval=False, actor="admin"
        )


@pytest.mark.parametrize("profile", ["[]", "{", "null", "[" * 60_000, '{"name": "' + "x" * 70_000 + '"}'])
def test_a_profile_that_is_no_small_object_is_refused_and_changes_nothing(fleet: Fleet, profile: str) -> None:
    device = fleet.join("dev1")
    with pytest.raises(Malformed, match="profile"):
        fleet.registry.hello(device.id, Hello("1.0", profile))
    assert fleet.registry.device("dev1") == device


def test_a_hello_during_a_revocation_does_not_undo_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fleet.join("dev1")
    change = fleet.store.change

    def revoked_meanwhile(id_or_name: str, decide: Decide) -> Device:
        monkeypatch.undo()
        fleet.registry.revoke(device.id, "admin", "stolen")
        return change(id_or_name, decide)

    monkeypatch.setattr(fleet.store, "change", revoked_meanwhile)
    fleet.registry.hello(device.id, Hello("1.0", "{}"))

    assert fleet.registry.device("dev1").state is DeviceState.REVOKED


def test_a_heartbeat_is_written_when_it_says_something_new_or_after_a_while(fleet: Fleet) -> None:
    device, start = fleet.join("dev1"), fleet.clock.now()
    fleet.registry.hello(device.id, Hello("1.0", "{}"))
    serving = (Serving("digits", 1, digest_of(b"bundle"), True),)

    fleet.clock.advance(5)
    fleet.registry.seen(device.id, ())
    assert fleet.registry.device("dev1").last_seen_at == start

    fleet.registry.seen(device.id, serving)
    assert fleet.registry.device("dev1").serving == serving
    assert fleet.registry.device("dev1").last_seen_at == start + 5

    fleet.clock.advance(15)
    fleet.registry.seen(device.id, serving)
    assert fleet.registry.device("dev1").last_seen_at == start + 20


def test_a_device_that_claims_one_model_twice_is_refused(fleet: Fleet) -> None:
    device = fleet.join("dev1")
    twice = tuple(Serving("digits", release, digest_of(b"bundle"), True) for release in (1, 2))
    with pytest.raises(Malformed, match="once"):
        fleet.registry.seen(device.id, twice)
    assert fleet.registry.device("dev1").serving == ()
