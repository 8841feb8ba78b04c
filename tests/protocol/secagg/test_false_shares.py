"""Devices that deal shares nobody can use, and devices that complain without cause."""

import os
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from coordinator.rounds.exchange import DEFAULT_GROUP_ROUNDS
from shared.errors import FalseShares, ProtocolError, RoundAborted
from shared.flower import reply_with
from shared.secagg.graph import Rates
from shared.secagg.kept import pieces
from shared.secagg.keys import KEY_BYTES, Secret, seal
from shared.secagg.messages import RECORD, Complaint, Inbox
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import ClientState
from tests.protocol.secagg.appgrid import AppGrid, Fault, make_grid, silent
from tests.protocol.secagg.exchanges import assert_mean_of, messages, secure
from tests.protocol.secagg.kit import Fleet


def garbage_for(grid: AppGrid, holders: set[int]) -> Fault:
    """Its letters to these seats hold nothing."""

    def fault(message: Message) -> Message:
        reply = grid.handle(message)
        record: dict[str, Any] = reply.content.config_records[RECORD]  # type: ignore[assignment]
        rows = zip(record["peers"], record["boxes"], strict=True)
        record["boxes"] = [bytes(len(box)) if peer in holders else box for peer, box in rows]
        return reply

    return fault


def complaining_of(*dealers: int) -> Fault:
    def fault(message: Message) -> Message:
        return reply_with(message, RecordDict({RECORD: ConfigRecord(dict(Complaint(dealers).to_fields()))}))

    return fault


def test_a_device_that_deals_garbage_to_all_is_named_and_nobody_else_is_blamed() -> None:
    inner, authority = make_grid()
    inner.faults[2, "shares"] = garbage_for(inner, {1, 3, 4, 5})
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())
    assert seen.fates == {2: "rejected", **dict.fromkeys((1, 3, 4, 5), "abandoned")}
    assert seen.reason(2) == "dealt shares that 4 devices could not use"
    assert seen.summaries[-1].false_dealers == (2,)


def test_two_that_deal_garbage_are_both_named_at_once() -> None:
    inner, authority = make_grid()
    for node in (2, 3):
        inner.faults[node, "shares"] = garbage_for(inner, {1, 2, 3, 4, 5} - {node})
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages())
    assert set(seen.summaries[-1].false_dealers) == {2, 3}
    assert (seen.fates[1], seen.fates[4]) == ("abandoned", "abandoned")


def test_one_device_that_cannot_use_its_shares_costs_only_its_own_part_and_blames_nobody() -> None:
    """It may be the one that lies, so the other stays."""
    inner, authority = make_grid()
    inner.faults[2, "shares"] = garbage_for(inner, {1})
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert seen.fates == {1: "dropped-and-recovered", **dict.fromkeys((2, 3, 4, 5), "counted")}
    assert "could not use the shares" in seen.reason(1)
    assert seen.summaries[-1].false_dealers == ()
    assert_mean_of(reply.content, {2, 3, 4, 5})


def test_one_device_cannot_slander_the_others_out_of_a_round() -> None:
    inner, authority = make_grid()
    inner.faults[1, "masked"] = complaining_of(2, 3, 4, 5)
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert seen.summaries[-1].false_dealers == ()
    assert_mean_of(reply.content, {2, 3, 4, 5})


@pytest.mark.parametrize("dealers", [(), (1,), (7,), (-1,), (2, 99)], ids=str)
def test_a_complaint_about_nobody_oneself_or_a_stranger_is_refused(dealers: tuple[int, ...]) -> None:
    inner, authority = make_grid()
    inner.faults[1, "masked"] = complaining_of(*dealers)
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert seen.fates[1] == "rejected"
    assert_mean_of(reply.content, {2, 3, 4, 5})


def changing(grid: AppGrid, name: str, value: Any) -> Fault:
    def fault(message: Message) -> Message:
        reply = grid.handle(message)
        reply.content.config_records[RECORD][name] = value
        return reply

    return fault


PROOFS: dict[str, tuple[str, Any, str, str]] = {
    "of another seed": ("seed_digests", [b"0" * 32] * DEFAULT_GROUP_ROUNDS, "unmasked", "shares of another seed"),
    "of another key": ("key_digests", [b"0" * 32] * DEFAULT_GROUP_ROUNDS, "masked", "shares of another key"),
    "and a record that does not open": (
        "records",
        [bytes(7 * 32 + 16)] * DEFAULT_GROUP_ROUNDS,
        "masked",
        "a record of other masks",
    ),
}


@pytest.mark.parametrize(("name", "value", "gone", "says"), PROOFS.values(), ids=PROOFS)
def test_shares_that_open_are_proof_against_their_dealer(name: str, value: Any, gone: str, says: str) -> None:
    """The server sees it when it puts the secret together: another than the dealer committed to. It needs it only when device 2
    has gone: its seed after masking, its key for the sake of device 5, which goes too and cannot tell what they share.
    """
    inner, authority = make_grid(8)
    inner.faults[2, "shares"] = changing(inner, name, value)
    inner.faults[2, gone] = silent
    inner.faults[5, "unmasked"] = silent
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted, match=f"dev-2 dealt {says}"):
        grid.send_and_receive(messages(8))
    assert seen.summaries[-1].false_dealers == (2,)
    assert seen.fates == {2: "rejected", **dict.fromkeys((1, 3, 4, 5, 6, 7, 8), "abandoned")}
    assert seen.reason(2) == "dealt shares that do not fit together"


def test_a_device_that_reveals_another_seed_than_it_dealt_is_counted_by_its_shares() -> None:
    inner, authority = make_grid()
    inner.faults[2, "unmasked"] = changing(inner, "seed", bytes(32))
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert "another seed than it dealt shares of" in seen.reason(2)


def test_a_device_that_names_other_masks_than_its_partners_is_left_out_before_anything_is_masked() -> None:
    inner, authority = make_grid()
    inner.faults[2, "shares"] = changing(inner, "pair_digests", [bytes(4 * 16)] * DEFAULT_GROUP_ROUNDS)
    grid, seen = secure(inner, authority)
    (reply,) = grid.send_and_receive(messages())
    assert_mean_of(reply.content, {1, 3, 4, 5})
    assert seen.fates == {2: "rejected", **dict.fromkeys((1, 3, 4, 5), "counted")}
    assert seen.summaries[-1].false_dealers == (2,)


def test_a_client_names_every_dealer_whose_letter_is_wrong_and_keeps_its_state(five: Fleet) -> None:
    inbox = five.shares(five.coins(five.keys()))[1]
    before = five.clients[1]
    with pytest.raises(FalseShares) as caught:
        before.receive(Inbox({seat: box if seat in (3, 5) else bytes(len(box)) for seat, box in inbox.boxes.items()}))
    assert caught.value.dealers == (2, 4)
    assert before.receive(inbox) != before


def test_a_letter_that_opens_but_holds_another_number_of_shares_is_as_false(five: Fleet) -> None:
    near = five.coins(five.keys())
    deal = five.clients[2].share(near[2], five.verifier, os.urandom)[1]
    inbox = five.shares(near, {1, 3, 4, 5})[1]
    draft = five.clients[1].draft
    assert draft is not None
    key = pieces(draft.letters, KEY_BYTES)[0]  # of device 2, the first of its neighbours
    for plain in (b"", bytes(2 * SHARE_BYTES * 3 - 1), bytes(2 * SHARE_BYTES * 4)):
        with pytest.raises(FalseShares) as caught:
            five.clients[1].receive(Inbox({**inbox.boxes, 2: seal(key, Secret(plain))}))
        assert caught.value.dealers == (2,)
    assert five.clients[1].receive(Inbox({2: deal.boxes[1], **inbox.boxes})).state is ClientState.READY


def test_a_client_that_complained_cannot_send_a_vector_too(group: Fleet) -> None:
    group.begin()
    group.server.add_complaint(1, Complaint((2,)))
    with pytest.raises(ProtocolError, match="answered already"):
        group.server.add_vector(1, group.mask(1))
    with pytest.raises(ProtocolError, match="answered already"):
        group.server.add_complaint(1, Complaint((3,)))


@pytest.mark.parametrize("dealers", [(), (1,), (7,), (-1,), (0,), (2, 99)], ids=str)
def test_the_core_refuses_a_complaint_about_nobody_oneself_or_a_stranger(
    group: Fleet, dealers: tuple[int, ...]
) -> None:
    group.begin()
    with pytest.raises(ProtocolError, match="complains of clients that dealt it nothing"):
        group.server.add_complaint(1, Complaint(dealers))
    group.server.add_vector(1, group.mask(1))


def test_a_complaint_from_one_that_takes_no_part_or_sent_a_vector_is_refused(group: Fleet) -> None:
    group.begin(present={1, 2, 3, 4})
    group.server.add_vector(1, group.mask(1))
    for seat in (1, 5):
        with pytest.raises(ProtocolError):
            group.server.add_complaint(seat, Complaint((2,)))


def test_as_many_complaints_name_a_dealer_as_none_of_them_names_dealers(group: Fleet) -> None:
    group.begin()
    group.server.add_complaint(1, Complaint((2, 3)))
    assert group.server.false_dealers == {}
    group.server.add_complaint(4, Complaint((2,)))
    assert group.server.false_dealers == {}, "device 1 complains of as many as complain of device 2"
    group.server.add_complaint(5, Complaint((2,)))
    assert group.server.false_dealers == {2: 3}


def test_who_complains_is_gone_for_the_round_and_its_masks_are_taken_out(group: Fleet) -> None:
    group.begin()
    group.server.add_complaint(1, Complaint((2,)))
    assert (group.run(masked={2, 3, 4, 5}) == group.expected()).all()


@pytest.mark.parametrize("liars", [2, 3, 4])
def test_devices_that_work_together_have_fewer_named_than_they_are(liars: int) -> None:
    """However many each complains of."""
    fleet = Fleet(12, Rates(0.34, 0.0), rounds=1).make()
    most = 0
    for count in range(1, 13 - liars):
        fleet.begin()
        for liar in range(1, liars + 1):
            fleet.server.add_complaint(liar, Complaint(tuple(range(liars + 1, liars + 1 + count))))
        most = max(most, len(fleet.server.false_dealers))
        assert set(fleet.server.false_dealers) <= set(range(liars + 1, 13))
    assert most == liars - 1
