"""Devices that deal shares nobody can use, and devices that complain without cause."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from shared.errors import FalseShares, ProtocolError, RoundAborted
from shared.flower import reply_with
from shared.secagg.messages import RECORD, Complaint
from tests.protocol.secagg.appgrid import AppGrid, Fault, make_grid
from tests.protocol.secagg.exchanges import assert_mean_of, messages, secure
from tests.protocol.secagg.kit import Round


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


def test_shares_that_open_and_still_do_not_fit_together_are_proof_against_their_dealer() -> None:
    """The server sees it when it puts the secret together: another seed than the dealer committed to."""
    inner, authority = make_grid()

    def other_seed(message: Message) -> Message:
        reply = inner.handle(message)
        reply.content.config_records[RECORD]["seed_digest"] = b"0" * 32
        return reply

    inner.faults[2, "shares"] = other_seed
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted, match="dev-2 dealt shares of another seed"):
        grid.send_and_receive(messages())
    assert seen.summaries[-1].false_dealers == (2,)
    assert seen.fates == {2: "rejected", **dict.fromkeys((1, 3, 4, 5), "abandoned")}


def test_a_client_names_every_dealer_whose_letter_is_wrong_and_keeps_its_state() -> None:
    group = Round(4, 3)
    inbox = group.shares(group.keys())[1]
    letters = tuple(item if item.peer == 3 else type(item)(item.peer, b"", b"", b"") for item in inbox.letters)
    before = group.clients[1]
    with pytest.raises(FalseShares) as caught:
        before.receive(type(inbox)(letters))
    assert caught.value.dealers == (2, 4)
    assert before.receive(inbox) != before


def test_a_client_that_complained_cannot_send_a_vector_too() -> None:
    group = Round(4, 3)
    group.shares(group.keys())
    group.server.add_complaint(1, Complaint((2,)))
    with pytest.raises(ProtocolError, match="answered already"):
        group.server.add_vector(1, group.vectors[1])
    with pytest.raises(ProtocolError, match="answered already"):
        group.server.add_complaint(1, Complaint((3,)))
