"""Small ONNX graphs made by hand: one that is fine, and ways to spoil it."""

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
