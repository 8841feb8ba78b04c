"""What the numbers in an ONNX graph must be: weights that are whole and finite, scales that quantize, values that fit into memory.

A scale of zero, NaN or 1e30 turns every answer into noise and passes the ONNX checker. The range allowed here is that of float32
weights and activations of any use; per channel, there is one scale for each (ONNX operators, `QuantizeLinear`). Sizes are the
shapes that ONNX infers for one example: a few dozen nodes that each double their input, along whatever axis, would ask for all
memory there is. What the graph itself says of sizes is not believed; where one cannot be told, the graph is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper, shape_inference

from shared.errors import Malformed

MAX_TENSOR_BYTES = 64 * 1024**2
MAX_VALUE_ELEMENTS = 16 * 1024**2  # of any value, for one example
LEAST_SCALE, LARGEST_SCALE = 1e-12, 1e6
_QUANTIZING = frozenset(["QuantizeLinear", "DequantizeLinear"])
_ZERO_POINTS = frozenset(["int8", "uint8", "int32"])
_DEFAULT_AXIS = 1

Arrays = Mapping[str, NDArray[Any]]


def check_values(model: ModelProto) -> None:
    """Raises `Malformed` with the name of the value that is wrong. `model` has passed the ONNX checker and takes one input, a batch
    of examples; what it says of sizes is lost.
    """
    stored = {tensor.name: _array(tensor.name, tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        stored |= _constants(node)
    for node in model.graph.node:
        if node.op_type in _QUANTIZING:
            _check_quantizer(node, stored)
    _check_sizes(model)


def _constants(node: NodeProto) -> Arrays:
    """The tensor that a node holds, by the node's output. Numbers beside tensors must be finite, too."""
    found = {}
    for attribute in node.attribute:
        if not np.isfinite([attribute.f, *attribute.floats]).all():
            raise Malformed(f"{node.output[0][:60]!r} of the graph holds a value that is not finite")
        for tensor in (attribute.t, *attribute.tensors):
            if tensor.data_type:
                found[node.output[0]] = _array(node.output[0], tensor)
    return found


def _array(name: str, tensor: TensorProto) -> NDArray[Any]:
    if any(length < 0 for length in tensor.dims) or math.prod(tensor.dims) > MAX_TENSOR_BYTES:
        raise Malformed(f"{name[:60]!r} of the graph is larger than {MAX_TENSOR_BYTES >> 20} MiB")
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise Malformed(f"{name[:60]!r} of the graph does not hold what its shape says", detail=str(error)) from error
    if array.nbytes > MAX_TENSOR_BYTES:
        raise Malformed(f"{name[:60]!r} of the graph is larger than {MAX_TENSOR_BYTES >> 20} MiB")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Malformed(f"{name[:60]!r} of the graph holds a value that is not finite")
    return array


def _check_quantizer(node: NodeProto, stored: Arrays) -> None:
    where = f"{node.op_type} to {node.output[0][:60]!r}"
    if len(node.input) < 2 or node.input[1] not in stored:
        raise Malformed(f"{where} has a scale that is not stored in the graph")
    scale = stored[node.input[1]]
    if scale.dtype != np.float32 or scale.ndim > 1 or not scale.size:
        raise Malformed(f"{where} has a scale that is not one float32, or one a channel")
    if not ((scale >= LEAST_SCALE) & (scale <= LARGEST_SCALE)).all():
        raise Malformed(f"{where} has a scale outside {LEAST_SCALE:g} to {LARGEST_SCALE:g}")
    if len(node.input) > 2 and node.input[2]:
        zero = stored.get(node.input[2])
        if zero is None or zero.dtype.name not in _ZERO_POINTS or zero.shape != scale.shape:
            raise Malformed(f"{where} has a zero point that is not int8, uint8 or int32, or not one a scale")
    if scale.ndim and node.input[0] in stored:
        axis = next((item.i for item in node.attribute if item.name == "axis"), _DEFAULT_AXIS)
        shape = stored[node.input[0]].shape
        if not -len(shape) <= axis < len(shape) or shape[axis] != scale.size:
            raise Malformed(f"{where} has {scale.size} scales for another number of channels")


def _check_sizes(model: ModelProto) -> None:
    del model.graph.value_info[:]
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stored:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = shape_inference.infer_shapes(model, data_prop=True).graph
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise Malformed("the shapes of the graph do not fit together", detail=str(error).strip()[:200]) from error
    values = {value.name: value for value in (*found.value_info, *found.output)}
    for node in found.node:
        for name in filter(None, node.output):
            _check_size(name, values.get(name))


def _check_size(name: str, value: ValueInfoProto | None) -> None:
    axes = value.type.tensor_type.shape.dim if value and value.type.tensor_type.HasField("shape") else None
    if axes is None or not all(axis.HasField("dim_value") and axis.dim_value >= 0 for axis in axes):
        raise Malformed(f"the size of {name[:60]!r} of the graph cannot be told before it runs")
    if math.prod(axis.dim_value for axis in axes) > MAX_VALUE_ELEMENTS:
        raise Malformed(f"{name[:60]!r} of the graph has more than {MAX_VALUE_ELEMENTS:,} elements an example")
