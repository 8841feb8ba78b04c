"""What was said in another round, or in another group, said again: by a server, or by a device."""

from typing import Any

import pytest
from flwr.app import Message, RecordDict

from coordinator.rounds.secure_grid import SecureGrid
from shared.errors import RoundAborted
from shared.flower import REFUSED, reply_with
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import (
    AppGrid,
    Recorder,
    make_grid,
    silent,
    tampering,
)
from tests.protocol.secagg.exchanges import (
    EVERYBODY,
    GROUP,
    RECOVERY,
    VICTIM,
    assert_weight_and_loss_of,
    exchange,
    secure,
)


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
