"""What is fuzzed: each target takes bytes, and raises for what must not happen. Typed errors of the right kind may.

A decoder that takes something must give it back word for word: nothing altered is taken for something else. Whatever comes over
the wire or out of storage, a device answers or refuses, and a server takes it or names the device.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import SType

from edge_agent.secure_mod import GROUP, ModPolicy, make_secure_mod
from shared.errors import Malformed, PeerError, ShoalError, Unsupported
from shared.flower import decode_records, encode_records, new_message, pack_bytes, reply_with, to_numpy, unpack_bytes
from shared.secagg.client import Client
from shared.secagg.graph import Rates, derive
from shared.secagg.keys import UnsignedIdentity, UnsignedVerifier
from shared.secagg.messages import PACKED_TYPE, RECORD, Advert, Coin, Complaint, Confirmation, Deal, Reveal, Shares
from shared.secagg.packing import Layout
from shared.secagg.policy import Policy
from shared.secagg.schema import MetricField
from shared.secagg.states import ClientState
from shared.secagg.terms import Settings
from tests.fuzz.source import Source
from tests.fuzz.valid import SEAT, Step, steps

Target = Callable[[bytes], None]


@cache
def _steps() -> tuple[Step, ...]:
    return steps()


def fuzz_messages(data: bytes) -> None:
    """Every message of every phase, and the terms and settings."""
    source = Source(data)
    message = source.choose([item for step in _steps() for item in step.messages])
    fields = source.damaged(message.to_fields())
    try:
        read = type(message).from_fields(fields)
    except Malformed:
        return
    again = read.to_fields()
    assert all(fields.get(name) == value for name, value in again.items()), "read as something else than it says"


def fuzz_stored_state(data: bytes) -> None:
    """A client that is read from damaged storage and then asked for its next step."""
    source = Source(data)
    step = source.choose(_steps())
    fields = source.damaged(step.client.to_fields())
    try:
        client = Client.from_fields(fields, Policy())
    except Malformed:
        return
    try:
        step.ask(client)
    except ShoalError:
        return


def fuzz_device(data: bytes) -> None:
    """A device asked something in some state, through the mod."""
    source = Source(data)
    step, asked = source.choose(_steps()), source.choose(_steps())
    state = RecordDict()
    if step.client.state is not ClientState.NEW:
        state[f"{GROUP}{step.client.terms.group_id}"] = ConfigRecord(dict(step.client.to_fields()))
    context = Context(1, SEAT, {}, state, {})
    content = RecordDict(dict(asked.request.items()))
    try:
        content[RECORD] = ConfigRecord(source.damaged(asked.request.config_records[RECORD]))
    except (TypeError, ValueError):
        return  # no record holds this
    before = dict(state.items())
    reply = _mod()(new_message(content, run_id=1, node_id=SEAT, message_type="train"), context, _train)
    if reply.has_error():
        assert dict(state.items()) == before, "a refusal changed something"


def _train(message: Message, context: Context) -> Message:
    arrays = {name: to_numpy(array) for name, array in message.content.array_records["arrays"].items()}
    new = ArrayRecord({name: Array(array + 1) for name, array in arrays.items()})
    return reply_with(message, RecordDict({"arrays": new, "metrics": MetricRecord({"num-examples": 1})}))


@cache
def _mod() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_secure_mod(UnsignedIdentity(f"dev-{SEAT}"), UnsignedVerifier(), ModPolicy())


def fuzz_server(data: bytes) -> None:
    """An answer, taken by the server in the phase that it belongs to."""
    source = Source(data)
    step = source.choose([item for item in _steps() if item.answer is not None])
    answer: Any = step.answer
    try:
        read = type(answer).from_fields(source.damaged(answer.to_fields()))
    except Malformed:
        return
    server = step.server()
    before = _held(server)
    try:
        getattr(server, TAKES[type(answer)])(*((SEAT, read) if isinstance(read, Complaint) else (read,)))
    except PeerError:
        assert _held(server) == before, "a refusal changed something"


TAKES: Mapping[type, str] = {
    Advert: "add_advert",
    Coin: "add_coin",
    Deal: "add_deal",
    Complaint: "add_complaint",
    Confirmation: "add_confirmation",
    Reveal: "add_reveal",
    Shares: "add_shares",
}


def _held(server: Any) -> str:
    return repr({name: value for name, value in vars(server).items() if name.startswith("_") or name == "state"})


def fuzz_packed(data: bytes) -> None:
    source = Source(data)
    bits, length = 1 + source.below(32), source.below(100)
    layout = Layout(length, bits)
    raw = source.rest()[: layout.size + source.below(2)]
    try:
        words = layout.unpack(raw)
    except Malformed:
        return
    assert (words.dtype, words.shape) == (np.dtype("<u8"), (layout.words,))
    assert layout.pack(words) == raw, "two strings of bytes are one vector"


def fuzz_array(data: bytes) -> None:
    """Arrays as a device or a server is sent them."""
    source = Source(data)
    dtype, stype = source.choose(("float32", "int64", "uint8", "bool", "O")), source.choose((SType.NUMPY, PACKED_TYPE))
    shape = source.choose([(2, 3), (6,), (), (0,), (source.below(300),), (1 << 70,), (-1,), (0, 1 << 70)])
    array = Array(dtype, shape, stype, source.rest())
    with contextlib.suppress(Malformed):
        read = to_numpy(array)
        assert (str(read.dtype), read.shape) == (dtype, shape)
    with contextlib.suppress(Malformed):
        assert pack_bytes(unpack_bytes(array, PACKED_TYPE), PACKED_TYPE) == array


def fuzz_records(data: bytes) -> None:
    """The encoding of all records that travel."""
    try:
        records = decode_records(data)
    except Malformed:
        return
    again = decode_records(encode_records(records))
    assert list(again) == list(records)
    assert encode_records(again) == encode_records(records)
    assert sum(map(len, _strings(records))) == len(data) - _header(data), "bytes that are of no value, or of two"


def fuzz_layout(data: bytes) -> None:
    """The same, where what the header says of the records, or of where their bytes are, is damaged."""
    source = Source(data)
    blob = encode_records(source.choose(_steps()).request)
    header = json.loads(blob[8 : _header(blob)])
    layout = json.loads(header["__metadata__"]["records"])
    entry = source.choose(layout)
    if entry["kind"] == "arrays" and source.below(2):
        entry["arrays"] = source.damage(entry["arrays"])
    elif entry["kind"] == "config":
        sizes = [value for value in entry["values"].values() if isinstance(value, dict)]
        if sizes and source.below(2):
            size = source.choose(sizes)
            size["bytes"] = source.damage(size["bytes"])
        entry["values"] = source.damaged(entry["values"])
    if source.below(4) == 1:
        layout = source.damage(layout)
    header["__metadata__"] = {"records": json.dumps(layout, default=_size)}
    head = json.dumps(source.damaged(header), default=_size).encode()
    fuzz_records(len(head).to_bytes(8, "little") + head + blob[_header(blob) :])


def _size(value: bytes) -> Any:
    return {"bytes": len(value)}


def _header(blob: bytes) -> int:
    return 8 + int.from_bytes(blob[:8], "little")


def _strings(records: RecordDict) -> list[bytes]:
    """All that is bytes in records."""
    arrays = [array.data for record in records.array_records.values() for array in record.values()]
    values = [value for record in records.config_records.values() for value in record.values()]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [*arrays, *(item for item in items if isinstance(item, bytes))]


def fuzz_rates(data: bytes) -> None:
    """How dense a graph must be, for whatever rates and size somebody asks."""
    source = Source(data)
    dropout, corrupt = (
        source.choose((source.below(1000) / 1000, np.frombuffer(source.take(8), "<f8")[0].item())) for _ in range(2)
    )
    clients = 2 + source.below(source.choose((20, 200, 600)))
    try:
        rates = Rates(dropout, corrupt, source.below(300), source.below(300))
        degrees = derive.__wrapped__(clients, rates)
    except Unsupported:
        return
    assert 1 <= degrees.threshold <= degrees.neighbours < clients
    assert 1 <= degrees.partners <= degrees.neighbours
    assert rates.corrupted(clients) < degrees.threshold or not degrees.complete
    assert degrees.majority <= degrees.witnesses <= clients


def fuzz_schema(data: bytes) -> None:
    """Settings that are read, and the layout that they make."""
    source = Source(data)
    valid = Settings(metrics=(MetricField("loss", 0.0, 9.0),), scales={"w": 0.5}, unit_weight=3.0, ranges={"w*": 2.0})
    try:
        settings = Settings.from_fields(source.damaged(valid.to_fields()))
        schema = settings.schema(2 + source.below(300), {"w": np.zeros(5, "f4"), "n": np.zeros(2, "i8")}, bytes(32))
    except (Malformed, Unsupported):
        return
    assert schema.modulus_bits <= 32
    assert schema.length == schema.exact * schema.digits + 5


TARGETS: Mapping[str, Target] = {
    name.removeprefix("fuzz_"): target for name, target in list(globals().items()) if name.startswith("fuzz_")
}


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: every message undamaged, and valid encodings of all that is raw bytes."""
    numbers = [number.to_bytes(2, "little") for number in range(60)]
    if name == "packed":
        return [
            (layout.bits - 1).to_bytes(2, "little") + (70).to_bytes(2, "little") + layout.pack(layout.join(np.ones(70)))
            for layout in (Layout(70, bits) for bits in (4, 8, 11, 16, 20, 32))
        ]
    if name == "array":
        array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
        return [bytes(6) + array.data, bytes(2) + b"\1\0" + bytes(2) + b"packed"]
    if name == "records":
        return [encode_records(step.request) for step in _steps()]
    damage = [number + name_ for number in (b"\1\0", b"\2\0") for name_ in numbers[:20]]
    kinds = [first + second for first in numbers[:12] for second in numbers[:12]] if name == "device" else numbers
    return [kind + item for kind in kinds for item in (b"", *damage[:: 8 if name == "device" else 1])]
