"""Malformed and truncated messages at every stage, in both directions: every field of every message, in every way.

A device refuses and changes nothing; the server leaves the device out, by name, and never for want of a check. Where a damaged
value is as good as another (a name, a number within its range), what matters is that no wrong sum comes of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from shared.client_apps import NO_KEYS
from shared.errors import PeerError, RoundAborted
from shared.flower import REFUSED, with_content
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD
from tests.protocol.secagg.appgrid import AppGrid, make_grid, rewriting, silent
from tests.protocol.secagg.exchanges import CONFIG, assert_weight_and_loss_of, exchange, secure
from tests.protocol.secagg.kit import SPARSE, Fleet

VICTIM, SILENT, GONE = 2, 3, 4
MISSING = object()
Value = Any
FEW = ["keys", "shares", "masked", "confirmed", "unmasked", "recovered"]
STAGES = [*((5, phase) for phase in FEW), (30, "coins"), (30, "shares")]  # the last two draw a graph


def set_up(size: int, phase: str = "") -> tuple[AppGrid, Callable[[], RecordDict], Any]:
    """An exchange about to begin in which every phase has its messages: a device falls silent before it reveals, and for the last
    phase another is gone before.
    """
    inner, authority = make_grid(size)
    rates = SPARSE if size > 5 else CONFIG.rates
    grid, seen = secure(inner, authority, replace(CONFIG, max_weight=1000, rates=rates))
    inner.faults[SILENT, "unmasked"] = silent
    if phase == "recovered":
        inner.faults[GONE, "masked"] = silent
    return inner, lambda: exchange(grid, size), seen


def broken(value: Value) -> Iterator[tuple[str, Value]]:
    """What no reader may take for `value`."""
    yield "missing", MISSING
    yield "of another type", 7 if isinstance(value, str | bytes | list) else "seven"
    if isinstance(value, bytes):
        yield "a list", [value]
        yield "longer", value + b"\0"
    if isinstance(value, bytes) and value:
        yield "truncated", value[:-1]
        yield "empty", b""
    if isinstance(value, list) and value:
        yield "of others", [1 if isinstance(item, str | bytes) else "x" for item in value]
        yield "truncated", value[:-1]
        yield "longer", [*value, value[-1]]
        yield "empty", []


def altered(value: Value) -> Iterator[tuple[str, Value]]:
    """What could be meant, and is not."""
    if isinstance(value, bytes) and value:
        yield "a bit changed", bytes([value[0] ^ 1]) + value[1:]
        yield "the last bit changed", value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, list) and value:
        for what, first in altered(value[0]):
            yield f"the first {what}", [first, *value[1:]]
        if value[::-1] != value:
            yield "in another order", value[::-1]
    if isinstance(value, int | float):
        yield "one more", value + 1
        yield "below zero", -value - 1
    if isinstance(value, int):
        yield "without end", 2**63 - 1
    if isinstance(value, float):
        yield "not a number", float("nan")
        yield "infinite", float("inf")
    if isinstance(value, str):
        yield "a letter more", value + "x"
        yield "empty", ""


def with_value(record: dict[str, Value], name: str, value: Value) -> ConfigRecord:
    return ConfigRecord({key: item for key, item in {**record, name: value}.items() if item is not MISSING})


FEWER = ("recovered", {"seeds_of", "keys_of"})  # a request for shares of fewer is another request


@pytest.mark.parametrize(("size", "phase"), STAGES, ids=str)
def test_a_damaged_request_is_refused_and_changes_nothing(size: int, phase: str) -> None:
    """All of them, one after the other, and then the one that was meant is still answered."""
    inner, run, seen = set_up(size, phase)
    accepted: list[tuple[str, str]] = []

    def damaging(message: Message) -> Message:
        honest = dict(message.content.config_records[RECORD])
        state = inner.nodes[VICTIM].context.state
        before = dict(state.items())
        tried = 0
        for name, value in honest.items():
            for damage in (broken, altered):
                for what, wrong in damage(value):
                    content = RecordDict({**message.content, RECORD: with_value(honest, name, wrong)})
                    reply = inner.handle(with_content(message, content))
                    if reply.has_error():
                        lost = reply.error.code == NO_KEYS and name in (
                            "group_id",
                            "number",
                        )  # another group's, or round's
                        assert lost or reply.error.code == REFUSED, (name, what, reply.error.reason)
                        assert dict(state.items()) == before, "a refusal changes nothing"
                    else:
                        accepted.append((name, what))
                        fewer = phase == FEWER[0] and name in FEWER[1] and isinstance(wrong, list)
                        assert damage is altered or fewer, (name, what)
                        state.clear()
                        state.update(before)
                    tried += 1
        assert tried > 10
        return inner.handle(message)

    inner.faults[VICTIM, phase] = damaging
    assert not assert_exact_or_aborted(run, seen, phase)
    assert seen.fates[VICTIM] == "counted"
    for name, what in accepted:
        inner, run, seen = set_up(size, phase)
        inner.faults[VICTIM, phase] = asking(inner, name, what)
        assert_exact_or_aborted(run, seen, (name, what))


def asking(inner: AppGrid, name: str, what: str) -> Callable[[Message], Message]:
    def fault(message: Message) -> Message:
        record = damaged(message.content.config_records[RECORD], name, what)
        return inner.handle(with_content(message, RecordDict({**message.content, RECORD: record})))

    return fault


def damaged(record: ConfigRecord, name: str, what: str) -> ConfigRecord:
    value = record[name]
    return with_value(dict(record), name, {**dict(broken(value)), **dict(altered(value))}[what])


def assert_exact_or_aborted(run: Callable[[], RecordDict], seen: Any, case: object) -> str:
    """What became of the victim. Whatever is wrong with an answer was looked for: nothing failed while it was read."""
    try:
        content = run()
    except RoundAborted:
        content = None
    reason = str(seen.reason(VICTIM))
    assert "cannot be read" not in reason, (case, reason)
    if content is not None:
        assert_weight_and_loss_of(content, {node for node, fate in seen.fates.items() if fate == "counted"})
    return reason


Taking = tuple[Any, Callable[[Any], None]]  # a message, and who takes it


def advert(fleet: Fleet) -> Taking:
    return fleet.advertise(VICTIM), fleet.setup.add_advert


def coin(fleet: Fleet) -> Taking:
    members = fleet.keys()
    assert members is not None
    return fleet.clients[VICTIM].toss(members)[1], fleet.setup.add_coin


def deal(fleet: Fleet) -> Taking:
    return fleet.deal(VICTIM, fleet.coins(fleet.keys())[VICTIM]), fleet.setup.add_deal


def confirmation(fleet: Fleet) -> Taking:
    fleet.make().begin()
    return fleet.confirm(VICTIM, fleet.masked()), fleet.server.add_confirmation


def reveal(fleet: Fleet) -> Taking:
    fleet.make().begin()
    witnesses = fleet.confirmed(fleet.masked(EVERYBODY - {GONE}))
    return fleet.reveal(VICTIM, witnesses[VICTIM]), fleet.server.add_reveal


def shares(fleet: Fleet) -> Taking:
    fleet.make().begin()
    witnesses = fleet.confirmed(fleet.masked(EVERYBODY - {GONE}))
    requests = fleet.unmasked(witnesses, EVERYBODY - {GONE, SILENT})
    return fleet.recover(VICTIM, requests[VICTIM]), fleet.server.add_shares


EVERYBODY = set(range(1, 31))
ANSWERS = {
    "keys": advert,
    "coins": coin,
    "shares": deal,
    "confirmed": confirmation,
    "unmasked": reveal,
    "recovered": shares,
}


@pytest.mark.parametrize(("phase", "ready"), ANSWERS.items(), ids=ANSWERS)
def test_a_damaged_answer_costs_its_device_at_most(phase: str, ready: Callable[[Fleet], Taking]) -> None:
    """The server refuses it and changes nothing: after all of them it takes the true one. Those that it takes are lies about what
    only others know: with these an exchange is exact, or aborts.
    """

    def fresh() -> Taking:
        return ready(Fleet(30, SPARSE) if phase == "coins" else Fleet(5))

    message, take = fresh()
    accepted: list[tuple[str, str]] = []
    for name, value in dict(message.to_fields()).items():
        for damage in (broken, altered):
            for what, wrong in damage(value):
                fields = dict(with_value(dict(message.to_fields()), name, wrong))
                try:
                    take(type(message).from_fields(fields))
                except PeerError:
                    continue
                assert damage is altered, (name, what)
                accepted.append((name, what))
                message, take = fresh()
    take(message)
    with pytest.raises(PeerError):
        take(message)
    for name, what in accepted:
        inner, run, seen = set_up(5, phase)
        inner.faults[VICTIM, phase] = rewriting(inner, setting(name, what))
        assert_exact_or_aborted(run, seen, (name, what))


def setting(name: str, what: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[RECORD] = damaged(content.config_records[RECORD], name, what)

    return change


VECTORS: dict[str, Callable[[Array], Array]] = {
    "truncated": lambda a: Array("uint8", (len(a.data) - 1,), PACKED_TYPE, a.data[:-1]),
    "longer": lambda a: Array("uint8", (len(a.data) + 4,), PACKED_TYPE, a.data + bytes(4)),
    "empty": lambda a: Array("uint8", (0,), PACKED_TYPE, b""),
    "of another serialization": lambda a: Array("uint8", (len(a.data),), "numpy.ndarray", a.data),
    "of another dtype": lambda a: Array("int8", (len(a.data),), PACKED_TYPE, a.data),
    "of another shape": lambda a: Array("uint8", (len(a.data), 1), PACKED_TYPE, a.data),
    "shorter than it says": lambda a: Array("uint8", (len(a.data),), PACKED_TYPE, a.data[:-1]),
}


@pytest.mark.parametrize("damage", VECTORS.values(), ids=VECTORS)
def test_a_vector(damage: Callable[[Array], Array]) -> None:
    """… is left out, and the sum is over the others. Other words are another update: nobody can tell them from the true ones."""
    inner, run, seen = set_up(5)

    def change(content: RecordDict) -> None:
        vector = content.array_records[VECTOR_RECORD][VECTOR_RECORD]
        content[VECTOR_RECORD] = ArrayRecord({VECTOR_RECORD: damage(vector)})

    inner.faults[VICTIM, "masked"] = rewriting(inner, change)
    assert_weight_and_loss_of(run(), {1, 3, 4, 5})
    assert seen.fates[VICTIM] == "rejected"
    assert "cannot be read" not in seen.reason(VICTIM)


RECORDS: dict[str, Callable[[RecordDict], None]] = {
    "no record": lambda content: content.clear(),
    "a record of another kind": lambda content: content.update({RECORD: ArrayRecord()}),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("phase", FEW)
def test_an_answer_with(phase: str, damage: Callable[[RecordDict], None]) -> None:
    """… is left out."""
    inner, run, seen = set_up(5)
    inner.faults[VICTIM, phase] = rewriting(inner, damage)
    assert assert_exact_or_aborted(run, seen, phase) or phase == "masked"
