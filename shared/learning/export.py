"""From a converted network to a self-contained ONNX file with quantize/dequantize pairs and a free batch axis."""

from typing import Any

import torch
from onnx import ModelProto

from shared.errors import Malformed
from shared.learning import trouble
from shared.learning.graph import INPUT, OUTPUT, check_graph, foreign_operators
from shared.learning.models import example_batch
from shared.learning.qat import MAX_BATCH
from shared.learning.quiet import hushed
from shared.learning.spec import InputSchema

OPSET = 21  # the first whose QuantizeLinear every runtime we use reads per channel


def to_onnx(module: torch.nn.Module, schema: InputSchema, *, origin: torch.nn.Module | None = None) -> bytes:
    """One file's bytes. `origin` is the network that `module` was made from: it still knows its lines of code.

    Raises `Malformed` for an operator that ONNX lacks or `check_graph` does not allow, and says on which line it is.
    """
    source = origin or module
    try:
        model = _exported(module, schema)
    except MemoryError:
        raise
    except Exception as error:  # the exporter's kinds have no common base
        operator = trouble.operator_in(error)
        with hushed():
            line = trouble.line_of_operator(source, example_batch(schema), operator)
        raise trouble.explain(error, "the network does not export to ONNX", line=line) from error
    data = _without_traces(model)
    try:
        check_graph(data, schema)
    except Malformed as error:
        found = foreign_operators(model)
        raise (trouble.with_line(error, _line_of(found[0], source, schema)) if found else error) from error
    return data


def _line_of(operator: str, source: torch.nn.Module, schema: InputSchema) -> str:
    """Of an ONNX operator in the code of `source`, which is exported for its traces; empty if that cannot be told."""
    try:
        model = _exported(source.eval(), schema)
    except Exception:  # noqa: BLE001  # the sentence does without the line
        return ""
    for node in model.graph.node:
        if node.op_type == operator:
            traces = [entry.value for entry in node.metadata_props if entry.key.endswith("stack_trace")]
            return trouble.line_in_trace("\n".join(traces))
    return ""


def _exported(module: torch.nn.Module, schema: InputSchema) -> ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with hushed():
        program = torch.onnx.export(
            module,
            (example_batch(schema),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise AssertionError("the dynamo exporter returns a program")
    proto: ModelProto = program.model_proto
    return proto


def _without_traces(model: ModelProto) -> bytes:
    """Drops the exporter's notes: stack traces name files on the machine that built the bundle."""
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer]
    parts += [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    return model.SerializeToString(deterministic=True)
