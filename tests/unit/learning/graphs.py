"""Small ONNX graphs made by hand: one that is fine, and ways to spoil it."""

from itertools import pairwise

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from shared.learning.spec import InputSchema

SCHEMA = InputSchema((1, 4, 4), ("a", "b", "c"))


def linear_graph(schema: InputSchema = SCHEMA, *, seed: int = 0) -> ModelProto:
    """Flatten → Gemm with random weights."""
    features, classes = int(np.prod(schema.shape)), len(schema.classes)
    weight = np.random.default_rng(seed).normal(size=(features, classes)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("Gemm", ["flat", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *schema.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def graph_bytes(schema: InputSchema = SCHEMA) -> bytes:
    data: bytes = linear_graph(schema).SerializeToString()
    return data


def with_node(operator: str, *, domain: str = "") -> ModelProto:
    model = linear_graph()
    model.graph.node.append(helper.make_node(operator, ["flat"], ["spare"], domain=domain))
    return model


def with_external_data() -> ModelProto:
    model = linear_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def with_external_constant() -> ModelProto:
    model = linear_graph()
    value = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="secret")
    model.graph.node.append(helper.make_node("Constant", [], ["spare"], value=value))
    return model


def with_branch() -> ModelProto:
    model = linear_graph()
    branch = helper.make_graph([], "b", [], [])
    node = helper.make_node("Identity", ["flat"], ["spare"])
    node.attribute.append(helper.make_attribute("body", branch))
    model.graph.node.append(node)
    return model


def with_function() -> ModelProto:
    model = linear_graph()
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [], [helper.make_opsetid("", 21)]))
    return model


def with_domain() -> ModelProto:
    model = linear_graph()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return model


def with_batch_of_one() -> ModelProto:
    model = linear_graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def with_second_input() -> ModelProto:
    model = linear_graph()
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch"]))
    return model


def with_double_input() -> ModelProto:
    model = linear_graph()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def with_broken_edge() -> ModelProto:
    model = linear_graph()
    model.graph.node[1].input[0] = "nowhere"
    return model


def with_old_opset() -> ModelProto:
    model = linear_graph()
    model.opset_import[0].version = 7
    return model


def quantized_graph(
    *,
    scale: object = 0.05,
    scales: object = (0.1, 0.2, 0.3),
    zero: object = None,
    axis: int = 1,
    bias: object = (0.0, 0.0, 0.0),
) -> ModelProto:
    """Quantize → dequantize → Flatten → Gemm with int8 weights, one scale for each of three outputs."""
    features, classes = int(np.prod(SCHEMA.shape)), len(SCHEMA.classes)
    stored = {
        "scale": np.asarray(scale, dtype=np.float32),
        "zero": np.asarray(0, dtype=np.uint8) if zero is None else np.asarray(zero),
        "weight": np.ones((features, classes), dtype=np.int8),
        "scales": np.asarray(scales, dtype=np.float32),
        "bias": np.asarray(bias, dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["floats"], axis=axis),
        helper.make_node("Flatten", ["values"], ["flat"]),
        helper.make_node("Gemm", ["flat", "floats", "bias"], ["logits"]),
    ]
    model = linear_graph()
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    return model


def with_computed_scale() -> ModelProto:
    model = quantized_graph()
    model.graph.node.insert(0, helper.make_node("Identity", ["scale"], ["computed"]))
    model.graph.node[1].input[1] = "computed"
    return model


def with_doublings(times: int = 40, *, axis: int = 1) -> ModelProto:
    """Each node's output is twice as long as its input."""
    model = linear_graph()
    names = ["flat", *(f"twice{place}" for place in range(times))]
    for before, after in pairwise(names):
        model.graph.node.append(helper.make_node("Concat", [before, before], [after], axis=axis))
    return model


def with_doublings_and_lies() -> ModelProto:
    """The graph says of itself that nothing grows."""
    model = with_doublings()
    for node in model.graph.node[2:]:
        said = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["batch", 16])
        model.graph.value_info.append(said)
    return model


def with_constant_numbers() -> ModelProto:
    model = linear_graph()
    model.graph.node.append(helper.make_node("Constant", [], ["numbers"], value_floats=[1.0, float("nan")]))
    return model


def with_shape_from_input() -> ModelProto:
    """Whoever sends the input says how large a value becomes."""
    model = linear_graph()
    model.graph.node.append(helper.make_node("Cast", ["flat"], ["whole"], to=TensorProto.INT64))
    model.graph.node.append(helper.make_node("Flatten", ["whole"], ["row"], axis=0))
    model.graph.node.append(helper.make_node("Squeeze", ["row"], ["shape"]))
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["spare"]))
    return model


def with_long_shape() -> ModelProto:
    model = linear_graph()
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20]))
    return model
