"""Small ONNX graphs with known answers, for the tests of everything that loads one."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.ports import ModelSpec
from shared.ids import Digest

WIDTH = 4


def scaling_model(factor: float, *, width: int = WIDTH, rows: int | None = None, output: str = "logits") -> bytes:
    """`logits = x * factor`; x is float32 of shape (rows or any, width). The answer tells which model gave it."""
    size = "batch" if rows is None else rows
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], [output])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [size, width])],
        [numpy_helper.from_array(np.full(width, factor, np.float32), "factor")],
    )
    return _serialized(graph)


def slow_model(depth: int, *, size: int = 512) -> bytes:
    """`logits = x`, after `depth` products with a matrix of `size` x `size`."""
    names = ["wide", *(f"h{index}" for index in range(depth))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "up"], ["wide"]),
            *(helper.make_node("MatMul", [a, "turn"], [b]) for a, b in itertools.pairwise(names)),
            helper.make_node("MatMul", [names[-1], "down"], ["logits"]),
        ],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            numpy_helper.from_array(np.eye(WIDTH, size, dtype=np.float32), "up"),
            numpy_helper.from_array(np.eye(size, dtype=np.float32), "turn"),
            numpy_helper.from_array(np.eye(size, WIDTH, dtype=np.float32), "down"),
        ],
    )
    return _serialized(graph)


def two_input_model() -> bytes:
    """`sum = a + b`; `a` is float32 (any, 3), `b` int64 (any, 3)."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["b"], ["b_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "b_float"], ["sum"]),
        ],
        "two",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("b", TensorProto.INT64, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 3])],
    )
    return _serialized(graph)


def external_data_model() -> bytes:
    """A graph whose weights lie in another file, which no digest of the graph covers."""
    factor = TensorProto(name="factor", data_type=TensorProto.FLOAT, dims=[WIDTH], data_location=TensorProto.EXTERNAL)
    factor.external_data.add(key="location", value="weights.bin")
    factor.external_data.add(key="offset", value="0")
    factor.external_data.add(key="length", value=str(4 * WIDTH))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["logits"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", WIDTH])],
        [factor],
    )
    return _serialized(graph)


def _serialized(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def spec_of(
    folder: Path,
    data: bytes,
    *,
    version: int = 1,
    model: str = "digits",
    runtime: str = "onnxruntime",
    policy: BatchPolicy | None = None,
) -> ModelSpec:
    """Writes `data` and describes it truthfully."""
    path = folder / f"{model}-{version}-{hashlib.sha256(data).hexdigest()[:8]}.onnx"
    path.write_bytes(data)
    digest = Digest(hashlib.sha256(data).hexdigest())
    return ModelSpec(model, version, digest, path, runtime, policy=policy or BatchPolicy(max_batch=8))


def ones(rows: int = 1, width: int = WIDTH) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.ones((rows, width), np.float32)
