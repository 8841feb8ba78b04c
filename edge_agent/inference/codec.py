"""Open Inference Protocol messages ↔ arrays. Every field of a request is checked here, before anything is queued."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from edge_agent.inference.generation import Output, Reply
from edge_agent.runtimes import TensorSpec
from edge_agent.runtimes.port import Array
from protos import inference_pb2 as pb
from shared.errors import Malformed

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_TYPED = {
    "bool": "bool_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


def decode(request: pb.ModelInferRequest) -> dict[str, Array]:
    """The request's inputs by name; raw contents are views of the message's own bytes. Raises `Malformed`."""
    raws = request.raw_input_contents
    if not request.inputs:
        raise Malformed("the request has no inputs")
    if raws and len(raws) != len(request.inputs):
        raise Malformed(f"{len(raws)} raw contents for {len(request.inputs)} inputs: send one for each, or none")
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in arrays:
            raise Malformed(f"input {tensor.name!r} is given twice")
        arrays[tensor.name] = _decode_tensor(tensor, raws[index] if raws else None)
    return arrays


def _decode_tensor(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise Malformed(f"input {tensor.name!r} has datatype {tensor.datatype[:20]!r}: use {', '.join(DATATYPES)}")
    if "shared_memory_region" in tensor.parameters:
        raise Malformed("shared memory regions are not offered: send the tensor's contents")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise Malformed(f"input {tensor.name!r} has a negative size in its shape {list(shape)}")
    if raw is None:
        return _decode_typed(tensor, dtype, shape)
    if tensor.HasField("contents"):
        raise Malformed(f"input {tensor.name!r} has typed and raw contents: send one of them")
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(raw) != expected:
        raise Malformed(f"input {tensor.name!r} has {len(raw)} bytes, its shape and datatype need {expected}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _decode_typed(tensor: pb.ModelInferRequest.InferInputTensor, dtype: str, shape: tuple[int, ...]) -> Array:
    field = _TYPED.get(dtype)
    if field is None:
        raise Malformed(f"input {tensor.name!r}: {tensor.datatype} travels in raw_input_contents only")
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise Malformed(f"input {tensor.name!r} has {len(values)} values, its shape needs {math.prod(shape)}")
    try:
        return np.array(values, dtype).reshape(shape)
    except OverflowError as error:
        raise Malformed(f"input {tensor.name!r} has a value that {tensor.datatype} cannot hold") from error


def wanted_outputs(request: pb.ModelInferRequest, outputs: Iterable[TensorSpec]) -> frozenset[str] | None:
    """The names asked for, or None for all. Raises `Malformed` for a name that the model does not have."""
    if not request.outputs:
        return None
    known = {spec.name for spec in outputs}
    asked = frozenset(output.name for output in request.outputs)
    if not asked <= known:
        raise Malformed(f"no output named {sorted(asked - known)[0]!r}: the model has {', '.join(sorted(known))}")
    if any("shared_memory_region" in output.parameters for output in request.outputs):
        raise Malformed("shared memory regions are not offered: outputs come in the response")
    return asked


def encode(request: pb.ModelInferRequest, reply: Reply, wanted: frozenset[str] | None) -> pb.ModelInferResponse:
    """Typed contents answer a typed request where the type has them; everything else is raw."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=str(reply.version), id=request.id)
    response.parameters["digest"].string_param = reply.digest
    response.parameters["runtime"].string_param = reply.runtime
    outputs = [output for output in reply.outputs if wanted is None or output.name in wanted]
    typed = not request.raw_input_contents and all(output.dtype in _TYPED for output in outputs)
    for output in outputs:
        tensor = response.outputs.add(name=output.name, datatype=NAMES[output.dtype], shape=output.shape)
        if typed:
            getattr(tensor.contents, _TYPED[output.dtype]).extend(output.array().ravel().tolist())
        else:
            response.raw_output_contents.append(output.raw)
    return response


def outputs_of(response: pb.ModelInferResponse) -> Mapping[str, Array]:
    """A response's raw outputs by name: what a client that sent raw inputs reads. Raises `Malformed`."""
    if len(response.raw_output_contents) != len(response.outputs):
        raise Malformed("the answer's outputs and raw contents differ in number")
    arrays = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        dtype = DATATYPES.get(tensor.datatype)
        shape = tuple(tensor.shape)
        if dtype is None or len(raw) != math.prod(shape) * np.dtype(dtype).itemsize:
            raise Malformed(f"the answer's output {tensor.name!r} does not fit its shape and datatype")
        arrays[tensor.name] = Output(tensor.name, dtype, shape, raw).array()
    return arrays
