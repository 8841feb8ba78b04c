"""Every message survives its flat form, and a damaged flat form is `Malformed`, nothing worse."""

import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.client import Client
from shared.secagg.fields import MAX_ROWS
from shared.secagg.graph import Rates
from shared.secagg.keys import InsecureWarning, Secret, UnsignedIdentity
from shared.secagg.messages import (
    Advert,
    Coin,
    Complaint,
    Confirmation,
    Deal,
    Inbox,
    Members,
    Neighbourhood,
    RecoveryRequest,
    Reveal,
    Roster,
    Shares,
    Witness,
)
from shared.secagg.policy import Policy
from shared.secagg.schema import MetricField
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import MAX_CLIENTS, GroupTerms, Settings

TERMS = GroupTerms("group", 5, 3, Rates())
ADVERT = Advert(1, "dev-1", b"p" * 32, b"c" * 32, b"certificate", b"signature")
OTHER = Advert(2, "dev-2", b"P" * 32, b"C" * 32, b"c", b"s")
BOXES = {1: b"box", 2: b""}
SHARE = Secret(b"s" * SHARE_BYTES)
MESSAGES: dict[str, Any] = {
    "terms": TERMS,
    "settings": Settings(ranges={"w*": 3.0}, metrics=(MetricField("loss", 0, 9),), scales={"w": 0.5}, unit_weight=3.0),
    "advert": ADVERT,
    "roster": Roster((ADVERT, OTHER)),
    "empty roster": Roster(()),
    "members": Members.of([ADVERT, OTHER]),
    "coin": Coin(1, b"c" * 32),
    "neighbourhood": Neighbourhood({1: b"c" * 32, 4: b"C" * 32}, Roster((ADVERT,))),
    "neighbourhood without coins": Neighbourhood({}, Roster((ADVERT,))),
    "deal": Deal(1, BOXES, (b"s" * 32,), (b"k" * 32,), (b"record",), (b"pairs",)),
    "inbox": Inbox(BOXES),
    "complaint": Complaint((2, 4)),
    "confirmation": Confirmation(1, {2: b"t" * 16, 3: b"T" * 16}),
    "witness": Witness({2: b"t" * 16}),
    "reveal": Reveal(1, Secret(b"a" * 32), {3: Secret(b"c" * 32)}),
    "recovery request": RecoveryRequest((1, 2), (3,)),
    "shares": Shares(1, {1: SHARE}, {3: SHARE, 4: SHARE}),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=70),
    *(st.lists(kind, max_size=3) for kind in (st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=9))),
)


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_message_comes_back_from_its_flat_form(message: Any) -> None:
    assert type(message).from_fields(message.to_fields()) == message


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_flat_form_with_a_field_missing_or_mistyped_is_malformed(message: Any, data: st.DataObject) -> None:
    fields = dict(message.to_fields())
    name = data.draw(st.sampled_from(sorted(fields)))
    wrong: Any = data.draw(st.sampled_from([None, True, {}, [None], [True], [{}], ["x", 1, b"x", 1.0]]))
    if wrong is None:
        del fields[name]
    else:
        fields[name] = wrong
    with pytest.raises(Malformed):
        type(message).from_fields(fields)


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_flat_form_of_noise_is_malformed_or_a_message(message: Any, data: st.DataObject) -> None:
    """Whatever else a decoder raised would be a crash."""
    fields = dict(message.to_fields())
    for name in data.draw(st.sets(st.sampled_from(sorted(fields)))):
        fields[name] = data.draw(ANYTHING)
    with suppress(Malformed):
        assert isinstance(type(message).from_fields(fields), type(message))


TRUNCATED = [
    (name, field)
    for name, message in MESSAGES.items()
    for field, value in message.to_fields().items()
    if isinstance(value, bytes) and value and field not in ("coin", "seed")
]


@pytest.mark.parametrize(("name", "field"), TRUNCATED, ids=str)
def test_rows_of_bytes_that_are_cut_short_are_malformed(name: str, field: str) -> None:
    message = MESSAGES[name]
    fields = message.to_fields()
    with pytest.raises(Malformed):
        type(message).from_fields({**fields, field: fields[field][:-1]})


def test_a_seat_named_twice_is_malformed() -> None:
    members = dict(Members.of([ADVERT, OTHER]).to_fields())
    with pytest.raises(Malformed, match="twice"):
        Members.from_fields({**members, "seats": [1, 1]})
    for kind, fields in {
        Inbox: {"peers": [2, 2], "boxes": [b"a", b"b"]},
        Witness: {"tag_seats": [2, 2], "tags": bytes(32)},
        Reveal: {"sender": 1, "seed": bytes(32), "pairs_with": [2, 2], "pairs": bytes(64)},
        Shares: {"sender": 1, "seeds_of": [3], "seed_shares": bytes(36), "keys_of": [2, 2], "key_shares": bytes(72)},
        Neighbourhood: {**Roster(()).to_fields(), "coin_seats": [2, 2], "coins": bytes(64)},
    }.items():
        with pytest.raises(Malformed, match="twice"):
            kind.from_fields(fields)  # type: ignore[attr-defined]


def test_columns_of_different_lengths_are_malformed() -> None:
    fields = dict(Inbox(BOXES).to_fields())
    fields["peers"] = [1, 2, 3]
    with pytest.raises(Malformed, match="different lengths"):
        Inbox.from_fields(fields)


def test_an_advert_is_exactly_one() -> None:
    for roster in (Roster((ADVERT, ADVERT)), Roster(())):
        with pytest.raises(Malformed):
            Advert.from_fields(roster.to_fields())


def test_a_list_without_end_is_malformed() -> None:
    with pytest.raises(Malformed):
        RecoveryRequest.from_fields({"seeds_of": [1] * (MAX_ROWS + 1), "keys_of": []})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"group_id": ""},
        {"clients": 1},
        {"clients": MAX_CLIENTS + 1},
        {"clients": 10**400},
        {"rounds": 0},
        {"rounds": 65},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"dropout": 10**400},
        {"corrupt": -0.1},
        {"security_bits": 0},
        {"abort_bits": 1000},
    ],
    ids=str,
)
def test_terms_that_make_no_sense_are_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        GroupTerms.from_fields({**TERMS.to_fields(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 7},
        {"float_range": float("inf")},
        {"unit_weight": -1.0},
        {"unit_weight": float("nan")},
        {"max_weight": 0},
        {"feedback": 2},
        {"unit_weight": 2**63 - 1},
        {"range_patterns": ["w*", "w*"], "range_bounds": [3.0, 4.0]},
        {"weight_key": "\ud800"},
        {"metric_names": ["\udfff"]},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Settings.from_fields({**MESSAGES["settings"].to_fields(), **change})


def test_members_know_each_advert_by_its_digest_and_every_difference_shows() -> None:
    members = Members.of([ADVERT, OTHER])
    others = [
        Members.of([ADVERT]),
        Members.of([OTHER, Advert(1, "dev-3", ADVERT.public, ADVERT.coin_digest, b"", b"")]),
        Members.of([OTHER, Advert(1, "dev-1", b"q" * 32, ADVERT.coin_digest, b"", b"")]),
        Members.of([OTHER, Advert(1, "dev-1", ADVERT.public, b"q" * 32, b"", b"")]),
        Members.of([OTHER, Advert(3, "dev-1", ADVERT.public, ADVERT.coin_digest, b"", b"")]),
    ]
    assert members.digest == Members.of([OTHER, ADVERT]).digest
    assert len({members.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_a_stored_client_of_noise_is_malformed_or_a_client() -> None:
    with pytest.warns(InsecureWarning):
        identity = UnsignedIdentity("dev-1")
    fields = Client(TERMS, 1, Policy()).advertise(identity, os.urandom)[0].to_fields()

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def noise(data: st.DataObject) -> None:
        names = data.draw(st.sets(st.sampled_from(sorted(fields)), min_size=1))
        with suppress(Malformed):
            assert Client.from_fields({**fields, **{name: data.draw(ANYTHING) for name in names}}, Policy()).terms

    noise()


def test_revealed_secrets_do_not_show() -> None:
    for message in (
        Reveal(1, Secret(b"secret seed"), {2: Secret(b"secret pair")}),
        Shares(1, {2: Secret(b"secret")}, {}),
    ):
        assert "secret seed" not in repr(message)
        assert "secret pair" not in repr(message)
        assert "b'secret" not in repr(message)
