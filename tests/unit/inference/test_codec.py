"""Requests and answers of the Open Inference Protocol."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.codec import DATATYPES, NAMES, decode, encode, outputs_of, wanted_outputs
from edge_agent.inference.generation import Output, Reply
from edge_agent.runtimes import TensorSpec
from protos import inference_pb2 as pb
from shared.errors import Malformed


def _raw(shape: tuple[int, ...] = (2, 3), datatype: str = "FP32", data: bytes = bytes(24)) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)
    return request


def _typed(datatype: str, field: str, values: list[float], shape: tuple[int, ...]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    getattr(request.inputs.add(name="x", datatype=datatype, shape=shape).contents, field).extend(values)
    return request


def _twice() -> pb.ModelInferRequest:
    request = _raw()
    request.inputs.add(name="x", datatype="FP32", shape=(2, 3))
    request.raw_input_contents.append(bytes(24))
    return request


def _both() -> pb.ModelInferRequest:
    request = _raw()
    request.inputs[0].contents.fp32_contents.extend([0.0] * 6)
    return request


def _too_many_raws() -> pb.ModelInferRequest:
    request = _raw()
    request.raw_input_contents.append(bytes(24))
    return request


def _shared_memory() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=(1,)).parameters["shared_memory_region"].string_param = "r"
    return request


REFUSED: dict[str, Callable[[], pb.ModelInferRequest]] = {
    "no inputs": pb.ModelInferRequest,
    "an unknown datatype": lambda: _raw(datatype="FP8"),
    "strings, which no model here takes": lambda: _raw(datatype="BYTES"),
    "a negative size": lambda: _raw(shape=(-1, 3)),
    "fewer bytes than the shape needs": lambda: _raw(data=bytes(23)),
    "more bytes than the shape needs": lambda: _raw(data=bytes(25)),
    "a shape whose product overflows 64 bits": lambda: _raw(shape=(2**62, 2**62)),
    "the same input twice": _twice,
    "typed and raw contents at once": _both,
    "more raw contents than inputs": _too_many_raws,
    "fewer typed values than the shape needs": lambda: _typed("FP32", "fp32_contents", [1.0], (2,)),
    "typed values in another type's field": lambda: _typed("FP32", "fp64_contents", [1.0], (1,)),
    "half floats as typed values": lambda: _typed("FP16", "fp32_contents", [1.0], (1,)),
    "a value outside its type": lambda: _typed("UINT8", "uint_contents", [256], (1,)),
    "a shared memory region": _shared_memory,
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_request_is_refused(case: str) -> None:
    with pytest.raises(Malformed):
        decode(REFUSED[case]())


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_contents_of_every_datatype_arrive_unchanged(datatype: str) -> None:
    sent = np.array([[0, 1], [1, 0]], DATATYPES[datatype])
    assert np.array_equal(decode(_raw((2, 2), datatype, sent.tobytes()))["x"], sent)


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("BOOL", "bool_contents"),
        ("INT8", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("UINT8", "uint_contents"),
        ("UINT32", "uint_contents"),
        ("UINT64", "uint64_contents"),
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
    ],
)
def test_typed_contents_arrive_in_the_type_that_was_named(datatype: str, field: str) -> None:
    array = decode(_typed(datatype, field, [1, 0, 1, 1], (2, 2)))["x"]
    assert array.dtype == np.dtype(DATATYPES[datatype])
    assert array.tolist() == [[1, 0], [1, 1]]


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_malformed(data: bytes) -> None:
    try:
        request = pb.ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own refusal, before our code
        return
    try:
        arrays = decode(request)
    except Malformed:
        return
    assert len(arrays) == len(request.inputs)


def _reply() -> Reply:
    logits = np.array([[0.5, 1.5]], np.float32)
    label = np.array([7], np.int64)
    outputs = (
        Output("logits", "float32", logits.shape, logits.tobytes()),
        Output("label", "int64", label.shape, label.tobytes()),
    )
    return Reply(outputs, 3, "ab" * 32, "onnxruntime", 0.1)


def test_an_answer_names_the_version_digest_and_runtime_that_gave_it() -> None:
    request = _raw()
    request.id = "r-1"
    response = encode(request, _reply(), None)
    assert (response.model_version, response.id, response.model_name) == ("3", "r-1", "digits")
    assert response.parameters["digest"].string_param == "ab" * 32
    assert response.parameters["runtime"].string_param == "onnxruntime"


def test_a_raw_request_gets_raw_outputs_and_a_typed_one_typed() -> None:
    raw = outputs_of(encode(_raw(), _reply(), None))
    assert raw["logits"].tolist() == [[0.5, 1.5]]
    assert raw["label"].tolist() == [7]
    typed = encode(_typed("FP32", "fp32_contents", [1.0], (1,)), _reply(), None)
    assert not typed.raw_output_contents
    assert list(typed.outputs[0].contents.fp32_contents) == [0.5, 1.5]
    assert list(typed.outputs[1].contents.int64_contents) == [7]


def test_only_the_outputs_asked_for_are_sent_and_an_unknown_one_is_refused() -> None:
    specs = (TensorSpec("logits", (-1, 2), "float32"), TensorSpec("label", (-1,), "int64"))
    request = _raw()
    request.outputs.add(name="label")
    wanted = wanted_outputs(request, specs)
    assert [output.name for output in encode(request, _reply(), wanted).outputs] == ["label"]
    request.outputs.add(name="probabilities")
    with pytest.raises(Malformed, match="probabilities"):
        wanted_outputs(request, specs)


def test_an_answer_whose_bytes_do_not_fit_its_shape_is_refused_by_the_reader() -> None:
    response = encode(_raw(), _reply(), None)
    response.raw_output_contents[0] = b"\0"
    with pytest.raises(Malformed):
        outputs_of(response)


def test_datatype_names_map_both_ways() -> None:
    assert {NAMES[dtype]: dtype for dtype in NAMES} == DATATYPES
