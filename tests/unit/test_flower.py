"""`shared.flower` against the pinned flwr: each private name it touches, messages, and arrays."""

import importlib.metadata
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SType
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.server.utils.validator import validate_message
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from shared.client_apps import NO_KEYS, UNFIT
from shared.errors import Malformed
from shared.flower import (
    APP_RAISED,
    REFUSED,
    assume_identity,
    decode_records,
    encode_records,
    like,
    new_message,
    pack_bytes,
    reply_error,
    reply_for_all,
    reply_with,
    stamp,
    to_numpy,
    unpack_bytes,
    weighted_mean_of_metrics,
    with_content,
)

METADATA = (
    "run_id",
    "message_id",
    "src_node_id",
    "dst_node_id",
    "reply_to_message_id",
    "group_id",
    "created_at",
    "ttl",
    "message_type",
    "src_task_id",
    "dst_task_id",
)


@pytest.fixture
def _identity() -> Any:
    old = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = old


def request(**options: Any) -> Message:
    given_ = {"run_id": 7, "node_id": 3, "message_type": "train", "group_id": "4", **options}
    return new_message(RecordDict({"config": ConfigRecord({"lr": 0.1})}), **given_)


# ---- the pin


def test_flwr_is_the_pinned_minor_version() -> None:
    assert importlib.metadata.version("flwr").startswith("1.41."), "read shared/flower.py again before moving the pin"


def test_stamp_reaches_the_fields_that_metadata_really_reads() -> None:
    message = request()
    stamp(message, run_id=99, message_id="m-1")
    assert (message.metadata.run_id, message.metadata.message_id) == (99, "m-1")


def test_metadata_still_keeps_each_field_under_its_underscored_name() -> None:
    assert {f"_{name}" for name in METADATA} <= set(request().metadata.__dict__)


@pytest.mark.usefixtures("_identity")
def test_a_message_of_flowers_own_needs_the_identity_that_we_set() -> None:
    TaskIdentity._run_id = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=3, message_type="train")
    assume_identity(run_id=7, node_id=1, task_id=5)
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.src_task_id) == (7, 1, 5)


def test_new_message_needs_no_identity() -> None:
    message = request()
    assert (message.metadata.run_id, message.metadata.dst_node_id, message.metadata.group_id) == (7, 3, "4")
    assert message.content.config_records["config"]["lr"] == 0.1


def test_the_error_codes_are_flowers() -> None:
    assert REFUSED == ErrorCode.MOD_FAILED_PRECONDITION
    assert APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert len({REFUSED, APP_RAISED, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED}) == 4
    assert not {NO_KEYS, UNFIT} & {code for name, code in vars(ErrorCode).items() if name.isupper()}


def test_a_stock_strategy_averages_metrics_with_the_function_we_know() -> None:
    strategy = FedAvg()
    assert strategy.train_metrics_aggr_fn is weighted_mean_of_metrics
    assert strategy.evaluate_metrics_aggr_fn is weighted_mean_of_metrics


# ---- messages


def test_a_reply_goes_back_where_its_request_came_from() -> None:
    message = request()
    stamp(message, run_id=7, message_id="m-1")
    reply = reply_with(message, RecordDict())
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (3, 0)
    assert (reply.metadata.reply_to_message_id, reply.metadata.message_type, reply.metadata.group_id) == (
        "m-1",
        "train",
        "4",
    )
    failed = reply_error(message, REFUSED, "no")
    assert failed.has_error()
    assert (failed.error.code, failed.error.reason, failed.metadata.src_node_id) == (REFUSED, "no", 3)


def test_a_reply_for_all_comes_from_nobody() -> None:
    assert reply_for_all(request(), RecordDict()).metadata.src_node_id == 0


@pytest.mark.usefixtures("_identity")
def test_a_reply_passes_the_checks_of_flowers_own_transport() -> None:
    assume_identity(run_id=7, node_id=1, task_id=5)
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="4", ttl=60.0)
    stamp(message, run_id=7, message_id="m-1")
    reply = reply_with(message, RecordDict())
    stamp(reply, run_id=7, message_id="m-2")
    assert validate_message(reply, is_reply_message=True) == []
    latest = message.metadata.created_at + message.metadata.ttl
    assert reply.metadata.created_at + reply.metadata.ttl <= latest
    assert reply.metadata.dst_task_id == 5


@pytest.mark.usefixtures("_identity")
def test_a_message_like_another_differs_in_content_alone_and_has_no_id_yet() -> None:
    assume_identity(run_id=7)
    old = Message(RecordDict(), dst_node_id=3, message_type="train.fit", group_id="4", ttl=60.0)
    stamp(old, run_id=7, message_id="m-1")
    new = like(old, RecordDict({"a": ConfigRecord({})}))
    for name in METADATA:
        expected = "" if name == "message_id" else getattr(old.metadata, name)
        assert getattr(new.metadata, name) == expected, name
    assert (list(new.content), list(old.content)) == (["a"], [])
    stamp(new, run_id=7, message_id="m-2")
    assert old.metadata.message_id == "m-1"
    assert validate_message(new, is_reply_message=False) == []


def test_with_content_leaves_the_original_as_it_was() -> None:
    old = request()
    assert list(with_content(old, RecordDict()).content) == []
    assert list(old.content) == ["config"]


def test_our_messages_survive_flowers_own_protobuf() -> None:
    message = reply_with(request(), RecordDict({"masked": ArrayRecord({"v": pack_bytes(b"\x00\xff\x80", "ours")})}))
    again = message_from_proto(message_to_proto(message))
    assert unpack_bytes(again.content.array_records["masked"]["v"], "ours") == b"\x00\xff\x80"
    assert again.metadata.src_node_id == 3


def test_an_app_is_a_plain_call_whose_mods_come_first() -> None:
    order: list[str] = []

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        order.append("mod")
        reply: Message = call_next(message, context)
        return reply

    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order.append("app")
        context.state["seen"] = ConfigRecord({"n": 1})
        return reply_with(message, RecordDict())

    context = Context(7, 3, {}, RecordDict(), {})
    assert app(request(), context).metadata.src_node_id == 3
    assert order == ["mod", "app"]
    assert list(context.state) == ["seen"]


# ---- arrays


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "complex64"])
def test_an_array_is_read_without_a_copy_and_equal(dtype: str, order: Any) -> None:
    value = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    read = to_numpy(Array(value))
    assert np.array_equal(read, value)
    assert (read.dtype, read.shape) == (value.dtype, value.shape)
    assert not read.flags.owndata
    assert not read.flags.writeable


@pytest.mark.parametrize("value", [np.array(1.5), np.zeros((0, 3)), np.zeros(0, "f4")], ids=["scalar", "empty", "none"])
def test_scalars_and_empty_arrays_are_read(value: Any) -> None:
    assert np.array_equal(to_numpy(Array(value)), value)
    assert to_numpy(Array(value)).shape == value.shape


GOOD = Array(np.arange(4, dtype=np.float32))
ENDLESS = 1 << 70
WITHOUT_END = f"({ENDLESS},), }}".encode().ljust(30)
BAD_ARRAYS = {
    "another shape": Array("float32", (5,), SType.NUMPY, GOOD.data),
    "another dtype": Array("int32", (4,), SType.NUMPY, GOOD.data),
    "another serialization": Array("float32", (4,), "ours", GOOD.data),
    "truncated": Array("float32", (4,), SType.NUMPY, GOOD.data[:-1]),
    "longer than it says": Array("float32", (4,), SType.NUMPY, GOOD.data + b"more"),
    "nothing": Array("float32", (4,), SType.NUMPY, b""),
    "without end": Array("float32", (ENDLESS,), SType.NUMPY, GOOD.data.replace(b"(4,), }".ljust(30), WITHOUT_END)),
    "no npy": Array("float32", (4,), SType.NUMPY, b"x" * 200),
}


@pytest.mark.parametrize("array", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_array_that_is_not_what_it_says_is_malformed(array: Array) -> None:
    with pytest.raises(Malformed):
        to_numpy(array)


def test_an_array_of_objects_is_never_unpickled() -> None:
    header = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    with pytest.raises(Malformed):
        to_numpy(Array("object", (1,), SType.NUMPY, header + text + b"cos\nsystem\n"))


@given(st.binary(max_size=50))
def test_packed_bytes_come_back_as_they_were(data: bytes) -> None:
    packed = pack_bytes(data, "ours")
    assert unpack_bytes(packed, "ours") == data
    records = decode_records(encode_records(RecordDict({"masked": ArrayRecord({"v": packed})})))
    assert unpack_bytes(records.array_records["masked"]["v"], "ours") == data


@pytest.mark.parametrize(
    "array",
    [
        Array("uint8", (2,), "ours", bytes(3)),
        Array("uint8", (3, 1), "ours", bytes(3)),
        Array("uint8", (3,), "theirs", bytes(3)),
        Array("int8", (3,), "ours", bytes(3)),
    ],
    ids=["another length", "another shape", "another type", "another dtype"],
)
def test_packed_bytes_that_are_not_what_they_say_are_malformed(array: Array) -> None:
    with pytest.raises(Malformed):
        unpack_bytes(array, "ours")
