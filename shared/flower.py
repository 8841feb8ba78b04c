"""Every touch of Flower's private names, and the encoding of its records, in one place.

Flower's internals move between minor versions: `flwr==1.41.*` is pinned and `tests/unit/test_flower.py` checks each name used here.

A `RecordDict` travels as one safetensors blob: array bytes as tensors of uint8, all values that are bytes, end to end, as one more,
everything else as JSON in the header. Nothing is pickled, an `Array`'s `stype` is carried opaquely, and equal records give equal
bytes, so a round's global weights are one blob.
"""

import json
import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode, SType
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared.errors import Malformed
from shared.ids import Digest, digest_of
from shared.text import clean_text, is_clean

DEFAULT_TTL_S = 86_400.0
REFUSED = ErrorCode.MOD_FAILED_PRECONDITION  # a mod on the device said no, and changed nothing
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as its own reader says
MAX_NAME = 1000  # characters, of a record, an array or a value
INTEGERS = range(-(1 << 63), 1 << 64)  # what Flower's own records hold: a signed or an unsigned 64-bit number
APP_NOT_LOADED = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
APP_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
weighted_mean_of_metrics = aggregate_metricrecords  # what a stock strategy uses unless told otherwise
# The format's version 1.0, as numpy.lib.format writes it for numbers and truth values.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][biufc]\d{1,2})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]*)\), \} *\n",
    re.DOTALL,
)
_VALUES = "values"  # the tensor of those that are bytes
_KINDS: dict[str, type[MetricRecord] | type[ConfigRecord]] = {"metrics": MetricRecord, "config": ConfigRecord}


def new_message(content: RecordDict, *, run_id: int, node_id: int, message_type: str, group_id: str = "") -> Message:
    """A message that needs no process-wide `TaskIdentity`, which `Message(...)` insists on."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=0,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id=group_id,
        created_at=0.0,
        ttl=DEFAULT_TTL_S,
        message_type=message_type,
    )
    return make_message(metadata=metadata, content=content)


def stamp(message: Message, *, run_id: int, message_id: str) -> None:
    """Give a message its run and id. There is no setter, and a strategy may have built it under another identity."""
    message.metadata.__dict__["_run_id"] = run_id
    message.metadata.__dict__["_message_id"] = message_id


def assume_identity(*, run_id: int, node_id: int = 1, task_id: int = 0) -> None:
    """Set the process-wide identity that strategies need to build a `Message`. One run a process; `stamp` corrects the rest."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def like(message: Message, content: RecordDict) -> Message:
    """Another message to the same node, in the same run and group, still without an id."""
    old = message.metadata
    metadata = _without_id(old, src=old.src_node_id, dst=old.dst_node_id, answers=old.reply_to_message_id)
    return make_message(metadata=metadata, content=content)


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message, id and all, holding something else; the original keeps its content."""
    return make_message(metadata=message.metadata, content=content)


def reply_with(request: Message, content: RecordDict) -> Message:
    """A reply from the node that `request` was sent to."""
    return make_message(metadata=_reply_metadata(request), content=content)


def reply_for_all(request: Message, content: RecordDict) -> Message:
    """A reply that speaks for every node of an exchange, so its source is node 0, nobody."""
    reply = reply_with(request, content)
    reply.metadata.__dict__["_src_node_id"] = 0
    return reply


def reply_error(request: Message, code: int, reason: str) -> Message:
    """A failed reply; strategies log it and leave it out."""
    return make_message(metadata=_reply_metadata(request), error=Error(code=code, reason=reason))


def _reply_metadata(request: Message) -> Metadata:
    """Created with its request, so it lives exactly as long: Flower's own transport refuses a reply that outlives it."""
    old = request.metadata
    return _without_id(old, src=old.dst_node_id, dst=old.src_node_id, answers=old.message_id)


def _without_id(old: Metadata, *, src: int, dst: int, answers: str) -> Metadata:
    """Of a new message in the run, group and time of an old one; the task ids follow the nodes."""
    forward = src == old.src_node_id
    metadata = Metadata(
        run_id=old.run_id,
        message_id="",
        src_node_id=src,
        dst_node_id=dst,
        reply_to_message_id=answers,
        group_id=old.group_id,
        created_at=old.created_at,
        ttl=old.ttl,
        message_type=old.message_type,
        src_task_id=old.src_task_id if forward else old.dst_task_id,
        dst_task_id=old.dst_task_id if forward else old.src_task_id,
    )
    metadata.delivered_at = ""
    return metadata


def to_numpy(array: Array) -> NDArray[Any]:
    """The array, read-only and without a copy. Raises `Malformed` unless the `.npy` bytes are what the fields say.

    The header is matched, not evaluated: NumPy's own reader parses it with `ast`, whose state in CPython 3.11 is shared by all
    threads, so that two jobs reading at once can fail ("AST constructor recursion depth mismatch").
    """
    if array.stype != SType.NUMPY:
        raise Malformed(f"an array is serialized as {array.stype}")
    found = _NPY.match(array.data)
    try:
        if found is None or found.end() != 10 + int.from_bytes(array.data[8:10], "little"):
            raise ValueError("no plain .npy header")
        dtype = np.dtype(found["dtype"].decode())
        shape = tuple(int(item) for item in found["shape"].decode().split(",") if item.strip())
        if shape != tuple(array.shape) or str(dtype) != array.dtype:
            raise ValueError(f"holds {dtype} {shape}, not {array.dtype} {tuple(array.shape)}")
        flat = np.frombuffer(array.data, dtype=dtype, offset=found.end())
        return flat.reshape(shape, order="F" if found["fortran"] == b"True" else "C")
    except (ValueError, TypeError) as error:
        raise Malformed("an array is not what it says it is", detail=str(error)[:200]) from error


def record_to_numpy(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """A record's arrays by name, in its order; each as by `to_numpy`."""
    return {name: to_numpy(array) for name, array in record.items()}


def pack_bytes(data: bytes, stype: str) -> Array:
    """Bytes as they are, under our own `stype`."""
    return Array("uint8", (len(data),), stype, data)


def unpack_bytes(array: Array, stype: str) -> bytes:
    """The inverse of `pack_bytes`. Raises `Malformed`."""
    if array.stype != stype or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise Malformed("not a packed vector")
    return array.data


def arrays_from_safetensors(data: bytes) -> ArrayRecord:
    """Named tensors as Flower's arrays, in order of name. Raises `Malformed`."""
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise Malformed("not a safetensors file", detail=str(error)[:200]) from error
    return ArrayRecord({name: Array(tensors[name]) for name in sorted(tensors)})


def arrays_to_safetensors(record: ArrayRecord) -> bytes:
    """The inverse of `arrays_from_safetensors`."""
    return save_tensors({name: np.asarray(to_numpy(array), order="C") for name, array in record.items()})


def encode_records(records: RecordDict) -> bytes:
    """One self-describing blob. Raises `Malformed` for a record type Flower does not define."""
    layout: list[dict[str, Any]] = []
    tensors: dict[str, NDArray[np.uint8]] = {}
    values: list[bytes] = []
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays = []
            for key, array in record.items():
                arrays.append([key, array.dtype, list(array.shape), array.stype])
                tensors[f"{len(layout)}/{len(arrays) - 1}"] = np.frombuffer(array.data, dtype=np.uint8)
            layout.append({"name": name, "kind": "arrays", "arrays": arrays})
        elif isinstance(record, MetricRecord | ConfigRecord):
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            layout.append({"name": name, "kind": kind, "values": {k: _to_json(v, values) for k, v in record.items()}})
        else:
            raise Malformed(f"cannot send a {type(record).__name__}")
    if data := b"".join(values):
        tensors[_VALUES] = np.frombuffer(data, dtype=np.uint8)
    return save_tensors(tensors, metadata={"records": json.dumps(layout)})


def decode_records(blob: bytes, digest: Digest | None = None) -> RecordDict:
    """The inverse of `encode_records`. Raises `Malformed` for anything that it did not write.

    `digest`: of `blob`, if this side computed it already. A lone `ArrayRecord` then need not be hashed again.
    """
    try:
        layout, tensors = _open(blob)
        records, values = RecordDict(), _Values(tensors.pop(_VALUES, memoryview(b"")))
        for index, entry in enumerate(layout):
            _check_name(entry["name"], records)
            if entry["kind"] == "arrays":
                records[entry["name"]] = _arrays(entry["arrays"], index, tensors)
            else:
                found = {key: _from_json(value, values) for key, value in entry["values"].items() if _check_name(key)}
                records[entry["name"]] = _KINDS[entry["kind"]](found)
        if tensors or values.left:
            raise ValueError("bytes that belong to no value")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Malformed("not a record blob", detail=clean_text(str(error), 200)) from error
    if digest is not None and len(records) == 1:
        for name, record in records.array_records.items():
            remember_digest(name, record, digest)
    return records


def remember_digest(name: str, record: ArrayRecord, digest: Digest) -> None:
    """`digest` is that of this record, encoded alone under this name: whoever computed it spares the next one the work."""
    record.__dict__["_encoded_as"] = (name, digest, list(record.items()))


def _record_digest(name: str, record: Any) -> Digest:
    """Of the record encoded alone, values in order of name: other transports than ours keep no order of values."""
    if not isinstance(record, ArrayRecord):
        return digest_of(encode_records(RecordDict({name: type(record)(dict(sorted(record.items())))})))
    known_name, known, items = record.__dict__.get("_encoded_as", ("", None, []))
    same = len(items) == len(record) and all(
        key == old_key and array is old for (key, array), (old_key, old) in zip(record.items(), items, strict=True)
    )
    if known is None or known_name != name or not same:
        known = digest_of(encode_records(RecordDict({name: record})))
        remember_digest(name, record, known)
    return Digest(known)


def inputs_digest(
    content: RecordDict, *, message_type: str, client_app: str, run_config: Mapping[str, Any] | None = None
) -> Digest:
    """Of all that an app's answer may depend on besides the device itself: which app, asked for what, given which records, in a run
    of which settings.
    """
    records = [[name, _record_digest(name, record)] for name, record in sorted(content.items())]
    return digest_of(json.dumps([client_app, message_type, records, sorted((run_config or {}).items())]).encode())


def _open(blob: bytes) -> tuple[Any, dict[str, memoryview]]:
    """The layout and the vectors of bytes in a safetensors blob, which are not copied: its own reader copies them twice.

    Raises `ValueError` unless they lie in it end to end, so no byte of it can be asked for twice, and other things for other lies.
    """
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:start]) if start <= min(len(blob), MAX_HEADER_BYTES) else {}
    layout = json.loads(header.pop("__metadata__")["records"])
    body, at, tensors = memoryview(blob)[start:], 0, {}
    for (begin, end), name, entry in sorted((entry["data_offsets"], name, entry) for name, entry in header.items()):
        if begin != at or end < begin or (entry["dtype"], entry["shape"]) != ("U8", [end - begin]):
            raise ValueError(f"tensor {name} is not the next vector of bytes")
        tensors[name], at = body[begin:end], end
    if at != len(body):
        raise ValueError("bytes that belong to no tensor")
    return layout, tensors


def _arrays(rows: Any, index: int, tensors: dict[str, memoryview]) -> ArrayRecord:
    """The arrays of the record in place `index`, whose tensors are taken out."""
    arrays: dict[str, Array] = {}
    for place, (key, dtype, shape, stype) in enumerate(rows):
        _check_name(key, arrays)
        arrays[key] = Array(dtype, tuple(shape), stype, bytes(tensors.pop(f"{index}/{place}")))
    return ArrayRecord(arrays)


class _Values:
    """Values that are bytes, end to end; each is taken out once, in the order in which they were put."""

    def __init__(self, data: memoryview) -> None:
        self.left = data

    def take(self, size: Any) -> bytes:
        if type(size) is not int or not 0 <= size <= len(self.left):
            raise ValueError("a value that is longer than what there is")
        taken, self.left = bytes(self.left[:size]), self.left[size:]
        return taken


def _to_json(value: Any, values: list[bytes]) -> Any:
    """Bytes are put at the end of `values`; how long they are stands for them."""
    if isinstance(value, bytes):
        values.append(value)
        return {"bytes": len(value)}
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        values.extend(value)
        return {"bytes": [len(item) for item in value]}
    return value


def _from_json(value: Any, values: _Values) -> Any:
    """Raises `ValueError` for what the rest of the system cannot hold: a database, a float, UTF-8."""
    if isinstance(value, dict):
        sizes = value["bytes"]
        return [values.take(size) for size in sizes] if isinstance(sizes, list) else values.take(sizes)
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, int) and item not in INTEGERS:
            raise ValueError("an integer of more than 64 bits")
    return value


def _check_name(name: str, taken: Container[str] = ()) -> bool:
    """Names reach logs, tables and terminals. Raises `ValueError` for one that should not, or is `taken`."""
    if not is_clean(name, MAX_NAME) or name in taken:
        raise ValueError("a name that cannot be printed, or comes twice")
    return True
