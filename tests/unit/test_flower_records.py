"""Records as bytes: what arrives is what was sent, or `Malformed`."""

import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.flower import (
    decode_records,
    encode_records,
    inputs_digest,
)
from shared.ids import Digest

NAMES = st.text(st.characters().filter(str.isprintable), max_size=5)
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.booleans()
)
LISTS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.lists(st.binary(max_size=3), max_size=3),
    st.lists(st.booleans(), max_size=3),
)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.lists(st.floats(), max_size=3))
ARRAYS = st.builds(
    lambda dtype, size, stype: Array(dtype, (size,), stype, bytes(range(size))),
    st.sampled_from(["float32", "bfloat16", "anything"]),
    st.integers(0, 9),
    st.sampled_from([SType.NUMPY, "ours"]),
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, st.one_of(SCALARS, LISTS), max_size=4).map(ConfigRecord),
    st.dictionaries(NAMES, NUMBERS, max_size=4).map(MetricRecord),  # type: ignore[arg-type]
    st.dictionaries(NAMES, ARRAYS, max_size=4).map(ArrayRecord),
)


def plain(records: RecordDict) -> list[Any]:
    """Order, types and values; NaN by its name."""
    return [
        (name, type(record), [(key, repr(value)) for key, value in record.items()]) for name, record in records.items()
    ]


@given(st.dictionaries(NAMES, RECORDS, max_size=4))
def test_any_records_come_back_from_their_bytes_in_order_and_type(content: dict[str, Any]) -> None:
    records = RecordDict(content)
    blob = encode_records(records)
    assert plain(decode_records(blob)) == plain(records)
    assert encode_records(decode_records(blob)) == blob


@given(st.dictionaries(NAMES, RECORDS, max_size=4), st.randoms())
def test_what_arrives_has_the_digest_of_what_was_sent_whatever_the_order(content: dict[str, Any], random: Any) -> None:
    sent = RecordDict(content)
    shuffled = list(decode_records(encode_records(sent)).items())
    random.shuffle(shuffled)
    values: dict[str, Any] = {}
    for name, record in shuffled:
        items: Any = dict(list(record.items())[::-1])
        values[name] = record if isinstance(record, ArrayRecord) else type(record)(items)
    one = inputs_digest(sent, message_type="train", client_app="app")
    assert inputs_digest(RecordDict(values), message_type="train", client_app="app") == one


DIFFERENT: dict[str, tuple[dict[str, Any], str, str]] = {
    "another value in an array": ({"arrays": ArrayRecord({"w": Array(np.ones(2) * 2)})}, "train", "app"),
    "another array": ({"arrays": ArrayRecord({"v": Array(np.ones(2))})}, "train", "app"),
    "another record's name": ({"weights": ArrayRecord({"w": Array(np.ones(2))})}, "train", "app"),
    "another setting": ({"config": ConfigRecord({"lr": 0.2})}, "train", "app"),
    "a setting of another type": ({"config": ConfigRecord({"lr": "0.1"})}, "train", "app"),
    "a setting too many": ({"config": ConfigRecord({"lr": 0.1, "x": 1})}, "train", "app"),
    "a record too many": ({"more": ConfigRecord({})}, "train", "app"),
    "another kind of task": ({}, "train.other", "app"),
    "another app": ({}, "train", "echo"),
}


@pytest.mark.parametrize(("change", "kind", "app"), DIFFERENT.values(), ids=DIFFERENT)
def test_inputs_have_another_digest_with(change: dict[str, Any], kind: str, app: str) -> None:
    def inputs() -> RecordDict:
        arrays = ArrayRecord({"w": Array(np.ones(2))})
        return RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})})

    changed = RecordDict({**inputs(), **change})
    if "weights" in change:
        del changed["arrays"]
    one = inputs_digest(inputs(), message_type="train", client_app="app")
    assert inputs_digest(changed, message_type=kind, client_app=app) != one


def test_a_digest_that_is_known_spares_the_hashing_only_until_the_record_changes() -> None:
    records = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(2))})})
    blob = encode_records(records)
    arrived = decode_records(blob, Digest("f" * 64))  # as if somebody had hashed it to this
    known = inputs_digest(arrived, message_type="train", client_app="app")
    honest = inputs_digest(records, message_type="train", client_app="app")
    assert known != honest

    arrived.array_records["arrays"]["w"] = Array(np.ones(2))
    assert inputs_digest(arrived, message_type="train", client_app="app") == honest
    renamed = RecordDict({"other": decode_records(blob, Digest("f" * 64)).array_records["arrays"]})
    again = RecordDict({"other": records.array_records["arrays"]})
    for kind in ("train", "evaluate"):
        one = inputs_digest(renamed, message_type=kind, client_app="app")
        assert one == inputs_digest(again, message_type=kind, client_app="app")


@pytest.mark.parametrize("number", [10**30, -(2**63) - 1, 2**64])
def test_an_integer_that_64_bits_do_not_hold_is_malformed(number: int) -> None:
    for value in (number, [1, number]):
        blob = encode_records(RecordDict({"m": MetricRecord({"x": 1})})).replace(
            b"1}", f"{json.dumps(value)}}}".encode()
        )
        blob = (len(blob) - 8).to_bytes(8, "little") + blob[8:]
        with pytest.raises(Malformed, match="64 bits"):
            decode_records(blob)
    most = RecordDict({"m": MetricRecord({"low": -(2**63), "high": 2**63 - 1})})
    assert plain(decode_records(encode_records(most))) == plain(most)


HOSTILE_NAMES = {
    "a lone surrogate": "\ud800",
    "NUL": "\0",
    "an escape sequence": "\x1b[2J",
    "a line break": "a\nb",
    "endless": "x" * 1001,
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_a_name_that_would_harm_a_terminal_or_a_database_is_malformed(name: str) -> None:
    array = ArrayRecord({"w": Array(np.ones(2))})
    for content in ({name: array}, {"a": ArrayRecord({name: array["w"]})}, {"m": MetricRecord({name: 1})}):
        with pytest.raises(Malformed) as caught:
            decode_records(encode_records(RecordDict(content)))  # type: ignore[arg-type]
        assert str(caught.value).isprintable()


def test_text_that_is_no_unicode_is_malformed() -> None:
    for value in ("\ud800", ["\ud800"]):
        with pytest.raises(Malformed):
            decode_records(encode_records(RecordDict({"c": ConfigRecord({"name": value})})))


def test_numbers_that_json_has_no_name_for_come_back() -> None:
    metrics = MetricRecord({"nan": math.nan, "inf": math.inf, "one": 1.0, "int": 1})
    back = decode_records(encode_records(RecordDict({"m": metrics}))).metric_records["m"]
    assert [type(value) for value in back.values()] == [float, float, float, int]
    assert math.isnan(float(back["nan"]))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_records_are_malformed(blob: bytes) -> None:
    with pytest.raises(Malformed):
        decode_records(blob)


WHOLE = encode_records(
    RecordDict(
        {
            "a": ArrayRecord({"w": Array(np.arange(4, dtype=np.float32))}),
            "c": ConfigRecord({"b": b"xy", "l": [b"y", b"", b"zz"]}),
            "d": ConfigRecord({"b": b"z"}),
        }
    )
)
HEADER = 8 + int.from_bytes(WHOLE[:8], "little")


def test_values_that_are_bytes_travel_as_they_are() -> None:
    """… and lists of them together: a tensor of its own for each would take some 60 bytes."""
    letters = [bytes([place]) * 300 for place in range(44)]
    blob = encode_records(RecordDict({"c": ConfigRecord({"letters": letters, "key": bytes(range(32))})}))
    assert b"".join([*letters, bytes(range(32))]) in blob
    assert len(blob) < 44 * 306 + 32 + 250


def test_records_of_the_same_bytes_are_encoded_alike_however_the_bytes_are_held() -> None:
    class Secret(bytes):
        pass

    one, other = (
        RecordDict({"c": ConfigRecord({"b": kind(b"key"), "l": [kind(b"ab"), kind(b"")]})}) for kind in (bytes, Secret)
    )
    assert encode_records(one) == encode_records(other)


def leaves(records: RecordDict) -> list[bytes]:
    """Every string of bytes in records that differ in nothing else from `WHOLE`'s."""
    array, values = records.array_records["a"]["w"], records.config_records
    return [array.data, values["c"]["b"], *values["c"]["l"], values["d"]["b"]]  # type: ignore[list-item,misc]


@pytest.mark.parametrize("place", range(HEADER, len(WHOLE)))
def test_each_byte_behind_the_header_is_of_exactly_one_value(place: int) -> None:
    changed = decode_records(WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :])
    pairs = zip(leaves(changed), leaves(decode_records(WHOLE)), strict=True)
    assert sum(one != other for one, other in pairs) == 1


def raw(layout: Any, **tensors: bytes) -> bytes:
    """A blob of that layout, with these tensors in that order."""
    header: dict[str, Any] = {"__metadata__": {"records": json.dumps(layout)}}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(tensors.values())


def values(kind: str = "config", **found: Any) -> dict[str, Any]:
    return {"name": "c", "kind": kind, "values": found}


ARRAY = ["w", "uint8", [3], "ours"]


def arrays(*rows: Any) -> dict[str, Any]:
    return {"name": "a", "kind": "arrays", "arrays": list(rows)}


def test_a_layout_written_by_hand_is_read() -> None:
    blob = raw([arrays(ARRAY), values(b={"bytes": 1}, l={"bytes": [0, 2]})], **{"0/0": b"abc", "values": b"def"})
    records = decode_records(blob)
    assert records.array_records["a"]["w"].data == b"abc"
    assert dict(records.config_records["c"]) == {"b": b"d", "l": [b"", b"ef"]}


LAYOUTS: dict[str, tuple[list[Any], dict[str, bytes]]] = {
    "more than there is": ([values(b={"bytes": 4})], {"values": b"abc"}),
    "bytes where there are none": ([values(b={"bytes": 1})], {}),
    "less than there is": ([values(b={"bytes": 2})], {"values": b"abc"}),
    "bytes of no value": ([values(n=1)], {"values": b"abc"}),
    "a list that ends too late": ([values(l={"bytes": [2, 2]})], {"values": b"abc"}),
    "a list that ends too soon": ([values(l={"bytes": [1, 1]})], {"values": b"abc"}),
    "a step back": ([values(l={"bytes": [3, -1, 1]})], {"values": b"abc"}),
    "all that is left": ([values(b={"bytes": -1})], {"values": b"abc"}),
    "a length without end": ([values(b={"bytes": 1 << 70})], {"values": b"abc"}),
    "a length that is no integer": ([values(b={"bytes": 3.0})], {"values": b"abc"}),
    "a length that is a truth": ([values(b={"bytes": True})], {"values": b"a"}),
    "a length that is none": ([values(b={"bytes": None})], {"values": b"abc"}),
    "a length in letters": ([values(b={"bytes": "3"})], {"values": b"abc"}),
    "a list in a list": ([values(l={"bytes": [[3]]})], {"values": b"abc"}),
    "no length": ([values(b={})], {"values": b"abc"}),
    "hex": ([values(b={"hex": "616263"})], {}),
    "a metric of bytes": ([values("metrics", b={"bytes": 3})], {"values": b"abc"}),
    "a tensor of no array": ([arrays(ARRAY)], {"0/0": b"abc", "0/1": b""}),
    "an array without a tensor": ([arrays(ARRAY)], {}),
    "an array twice": ([arrays(ARRAY, ARRAY)], {"0/0": b"abc", "0/1": b"abc"}),
    "a record twice": ([arrays(ARRAY), arrays(ARRAY)], {"0/0": b"abc", "1/0": b"abc"}),
    "no kind that there is": ([values("secrets", b={"bytes": 3})], {"values": b"abc"}),
}


@pytest.mark.parametrize(("layout", "tensors"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_malformed_with(layout: list[Any], tensors: dict[str, bytes]) -> None:
    with pytest.raises(Malformed):
        decode_records(raw(layout, **tensors))


def test_a_value_named_twice_is_malformed() -> None:
    blob = raw([values(b={"bytes": 1}, c={"bytes": 1})], values=b"xy")
    with pytest.raises(Malformed):
        decode_records(blob.replace(rb"\"c\": {", rb"\"b\": {"))


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_other_records_or_malformed_and_nothing_worse(place: int, change: int) -> None:
    blob = bytearray(WHOLE)
    blob[place] ^= change
    try:
        records = decode_records(bytes(blob))
    except Malformed:
        return
    assert isinstance(records, RecordDict)


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_records_are_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        decode_records(WHOLE[:length])


def test_records_nested_without_end_are_malformed() -> None:
    header = ('{"__metadata__":{"records":' + "[" * 100_000).encode()
    with pytest.raises(Malformed):
        decode_records(len(header).to_bytes(8, "little") + header)
