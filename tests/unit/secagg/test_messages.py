"""Every message survives its flat form, and a damaged flat form is `Malformed`, nothing worse."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.fields import MAX_ROWS
from shared.secagg.keys import Secret
from shared.secagg.messages import Advert, Complaint, Deal, Inbox, Letter, Reveal, Roster, UnmaskRequest
from shared.secagg.terms import Settings, Terms

ADVERT = Advert(1, "dev-1", b"s" * 32, b"m" * 32, b"certificate", b"signature")
LETTERS = (Letter(1, b"", b"k1", b"s1"), Letter(2, b"box", b"k2", b"s2"))
MESSAGES: dict[str, Any] = {
    "terms": Terms("round", 5, 3, "d" * 64, "e" * 64),
    "settings": Settings(ranges={"w*": 3.0}),
    "advert": ADVERT,
    "roster": Roster((ADVERT, Advert(2, "dev-2", b"S" * 32, b"M" * 32, b"c", b"s"))),
    "empty roster": Roster(()),
    "deal": Deal(1, b"digest", LETTERS),
    "inbox": Inbox(LETTERS),
    "complaint": Complaint((2, 4)),
    "unmask request": UnmaskRequest((1, 2), (3,)),
    "reveal": Reveal(1, {1: Secret(b"a")}, {3: Secret(b"c")}),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_message_comes_back_from_its_flat_form(message: Any) -> None:
    assert type(message).from_fields(message.to_fields()) == message


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
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


def test_columns_of_different_lengths_are_malformed() -> None:
    fields = dict(Inbox(LETTERS).to_fields())
    fields["peers"] = [1, 2, 3]
    with pytest.raises(Malformed, match="different lengths"):
        Inbox.from_fields(fields)


def test_an_advert_is_exactly_one() -> None:
    with pytest.raises(Malformed):
        Advert.from_fields(Roster((ADVERT, ADVERT)).to_fields())
    with pytest.raises(Malformed):
        Advert.from_fields(Roster(()).to_fields())


def test_a_list_without_end_is_malformed() -> None:
    with pytest.raises(Malformed):
        UnmaskRequest.from_fields({"seeds_of": [1] * (MAX_ROWS + 1), "keys_of": []})


@pytest.mark.parametrize("change", [{"version": 1}, {"round_id": ""}, {"threshold": 0}, {"threshold": 6}], ids=str)
def test_terms_that_make_no_sense_are_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Terms.from_fields({**MESSAGES["terms"].to_fields(), **change})


def test_revealed_shares_do_not_show() -> None:
    assert "secret share" not in repr(Reveal(1, {1: Secret(b"secret share")}, {}))
