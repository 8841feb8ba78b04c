"""What a graph may not be. Each spoiled graph stands for an attack or an accident."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from shared.errors import Malformed
from shared.learning.graph import check_graph
from shared.learning.spec import InputSchema
from tests.unit.learning import graphs

SPOILED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "an operator that is not on the list": (lambda: graphs.with_node("Loop"), "Loop"),
    "an operator of a vendor": (lambda: graphs.with_node("Relu", domain="com.evil"), "com.evil"),
    "an imported domain": (graphs.with_domain, "outside the ONNX standard"),
    "weights in another file": (graphs.with_external_data, "another file"),
    "a constant in another file": (graphs.with_external_constant, "another file"),
    "a graph within an operator": (graphs.with_branch, "control flow"),
    "a function of its own": (graphs.with_function, "functions"),
    "a fixed batch size": (graphs.with_batch_of_one, "fixed batch"),
    "a second input": (graphs.with_second_input, "one input"),
    "another input type": (graphs.with_double_input, "not float32"),
    "an edge from nowhere": (graphs.with_broken_edge, "not a valid"),
    "an opset nobody reads": (graphs.with_old_opset, "opset 7"),
    "a scale of zero": (lambda: graphs.quantized_graph(scale=0.0), "codes.*scale outside"),
    "a negative scale": (lambda: graphs.quantized_graph(scale=-0.1), "scale outside"),
    "a scale that is not a number": (lambda: graphs.quantized_graph(scale=np.nan), "'scale'.*not finite"),
    "an infinite scale": (lambda: graphs.quantized_graph(scale=np.inf), "not finite"),
    "a huge scale": (lambda: graphs.quantized_graph(scale=1e30), "scale outside"),
    "one huge scale of many": (lambda: graphs.quantized_graph(scales=[0.1, 1e30, 0.1]), "floats.*scale outside"),
    "too few scales": (lambda: graphs.quantized_graph(scales=[0.1, 0.1]), "2 scales for another number"),
    "scales along an axis that is not there": (
        lambda: graphs.quantized_graph(axis=5),
        "3 scales for another number|not a valid",
    ),
    "scales that are a matrix": (lambda: graphs.quantized_graph(scales=[[0.1, 0.2, 0.3]]), "not one float32"),
    "a scale that is computed": (graphs.with_computed_scale, "not stored in the graph"),
    "a zero point of another type": (lambda: graphs.quantized_graph(zero=np.int16(0)), "zero point"),
    "two zero points for one scale": (lambda: graphs.quantized_graph(zero=np.zeros(2, np.uint8)), "zero point"),
    "a weight that is not finite": (lambda: graphs.quantized_graph(bias=[0.0, np.inf, 0.0]), "'bias'.*not finite"),
    "numbers beside tensors that are not finite": (graphs.with_constant_numbers, "'numbers'.*not finite"),
    "values that double and double": (graphs.with_doublings, "elements an example"),
    "batches that double and double": (lambda: graphs.with_doublings(axis=0), "elements an example"),
    "values that double, and lies about it": (
        graphs.with_doublings_and_lies,
        "elements an example|not a valid|do not fit",
    ),
    "a shape that the input decides": (graphs.with_shape_from_input, "cannot be told"),
    "an array that is declared and not there": (graphs.with_long_shape, "not a valid|larger than"),
}


def test_a_plain_graph_passes() -> None:
    check_graph(graphs.graph_bytes(), graphs.SCHEMA)


def test_a_quantized_graph_passes() -> None:
    check_graph(graphs.quantized_graph().SerializeToString(), graphs.SCHEMA)


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED.keys())
def test_a_graph_is_refused_for(spoil: Callable[[], ModelProto], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        check_graph(spoil().SerializeToString(), graphs.SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [InputSchema((1, 4, 5), ("a", "b", "c")), InputSchema((16,), ("a", "b", "c")), InputSchema((1, 4, 4), ("a", "b"))],
)
def test_a_graph_for_another_schema_is_refused(schema: InputSchema) -> None:
    with pytest.raises(Malformed, match="schema says"):
        check_graph(graphs.graph_bytes(), schema)


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"not a graph at all", graphs.graph_bytes()[:-30]])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        check_graph(data, graphs.SCHEMA)


def test_a_graph_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Malformed, match="at most 10"):
        check_graph(b"x" * 11, graphs.SCHEMA, max_bytes=10)
