"""What an ONNX graph must be before a runtime may load it: standard operators on an allow-list, self-contained, one input
and one output that match the schema, numbers that can be right (`graph_values`). No torch here.
"""

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from shared.errors import Malformed
from shared.learning.graph_values import check_values
from shared.learning.spec import InputSchema

INPUT, OUTPUT = "input", "logits"
MAX_GRAPH_BYTES = 256 * 1024**2
MAX_NODES = 20_000
OPSETS = range(13, 24)
# fmt: off
OPERATORS = frozenset(
    [
        "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv",
        "DequantizeLinear", "Div", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool",
        "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool",
        "Mul", "Pad", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Shape", "Sigmoid", "Slice",
        "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    ]
)
# fmt: on
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def check_graph(data: bytes, schema: InputSchema, *, max_bytes: int = MAX_GRAPH_BYTES) -> None:
    """Raises `Malformed` with the reason. A graph that passes holds no code, reads no other file and takes the schema's input."""
    if len(data) > max_bytes:
        raise Malformed(f"the graph has {len(data)} bytes, at most {max_bytes} are allowed")
    try:
        model = onnx.load_model_from_string(data)
        _check_parts(model)
        onnx.checker.check_model(model, full_check=False)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise Malformed("not a valid ONNX graph", detail=str(error).strip()[:200]) from error
    _check_signature(model, schema)
    check_values(model)


def _check_parts(model: ModelProto) -> None:
    if len(model.functions) or len(model.training_info):
        raise Malformed("the graph defines functions or training steps: only plain operators are allowed")
    if [entry.domain for entry in model.opset_import] not in ([""], ["ai.onnx"]):
        raise Malformed("the graph imports operators from outside the ONNX standard")
    if model.opset_import[0].version not in OPSETS:
        raise Malformed(f"the graph uses opset {model.opset_import[0].version}, {OPSETS[0]} to {OPSETS[-1]} are read")
    if len(model.graph.node) > MAX_NODES:
        raise Malformed(f"the graph has more than {MAX_NODES} operators")
    if len(model.graph.sparse_initializer):
        raise Malformed("sparse weights are not allowed")
    for node in model.graph.node:
        _check_node(node)
    for tensor in model.graph.initializer:
        _check_tensor(tensor)


def foreign_operators(model: ModelProto) -> list[str]:
    """Names of those that `check_graph` does not allow, in the order of the graph."""
    return [node.op_type for node in model.graph.node if _is_foreign(node)]


def _is_foreign(node: NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS


def _check_node(node: NodeProto) -> None:
    if _is_foreign(node):
        raise Malformed(f"operator {node.domain or 'onnx'}:{node.op_type[:40]} is not allowed")
    for attribute in node.attribute:
        if attribute.type in _SUBGRAPHS:
            raise Malformed(f"operator {node.op_type} holds a graph of its own: control flow is not allowed")
        if attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            raise Malformed("sparse weights are not allowed")
        for tensor in (attribute.t, *attribute.tensors):
            _check_tensor(tensor)


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise Malformed("the graph refers to data in another file")


def _check_signature(model: ModelProto, schema: InputSchema) -> None:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if [value.name for value in inputs] != [INPUT] or [value.name for value in model.graph.output] != [OUTPUT]:
        raise Malformed(f"the graph must take one input {INPUT!r} and give one output {OUTPUT!r}")
    _check_value(inputs[0], schema.shape)
    _check_value(model.graph.output[0], (len(schema.classes),))


def _check_value(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    tensor = value.type.tensor_type
    axes = tensor.shape.dim
    if tensor.elem_type != TensorProto.FLOAT:
        raise Malformed(f"{value.name!r} of the graph is not float32")
    if not axes or axes[0].HasField("dim_value"):
        raise Malformed(f"{value.name!r} of the graph has a fixed batch size")
    if tuple(axis.dim_value for axis in axes[1:]) != shape:
        found = [axis.dim_value or axis.dim_param for axis in axes[1:]]
        raise Malformed(f"{value.name!r} of the graph has shape {found} after the batch, the schema says {list(shape)}")
