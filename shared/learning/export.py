"""From a converted network to a self-contained ONNX file with quantize/dequantize pairs and a free batch axis."""

from typing import Any

import torch
from onnx import ModelProto

from shared.learning.graph import INPUT, OUTPUT, check_graph
from shared.learning.models import example_batch
from shared.learning.qat import MAX_BATCH
from shared.learning.quiet import hushed
from shared.learning.spec import InputSchema

OPSET = 21  # the first whose QuantizeLinear every runtime we use reads per channel


def to_onnx(module: torch.nn.Module, schema: InputSchema) -> bytes:
    """One file's bytes. Raises `Malformed` when the result fails `check_graph`: an operator we do not allow."""
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
    data = _without_traces(program.model_proto)
    check_graph(data, schema)
    return data


def _without_traces(model: ModelProto) -> bytes:
    """Drops the exporter's notes: stack traces name files on the machine that built the bundle."""
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer]
    parts += [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    return model.SerializeToString(deterministic=True)
