"""Models with known answers, made into each artifact that a runtime may load. An adapter of a new kind adds its factory here."""

from collections.abc import Callable, Mapping
from typing import Protocol

from edge_agent.runtimes import Artifact
from tests.unit.inference import onnx_models


class Models(Protocol):
    """Each answer is a file's content. A model takes float32 `x` of shape (any, 4) and gives `logits` of that shape, unless it
    says otherwise."""

    def scaling(self, factor: float, *, rows: int | None = None) -> bytes:
        """`logits = x * factor`; with `rows`, for batches of that size alone."""
        ...

    def slow(self, depth: int, *, size: int) -> bytes:
        """`logits = x`, by way of `depth` products with a matrix of `size` x `size`."""
        ...

    def two_inputs(self) -> bytes:
        """`sum = a + b`; `a` is float32 (any, 3), `b` int64 (any, 3)."""
        ...

    @property
    def bad(self) -> Mapping[str, Callable[[], bytes]]:
        """What no runtime may load, besides what is bad for every artifact (`BAD`)."""
        ...


class OnnxModels:
    def scaling(self, factor: float, *, rows: int | None = None) -> bytes:
        return onnx_models.scaling_model(factor, rows=rows)

    def slow(self, depth: int, *, size: int) -> bytes:
        return onnx_models.slow_model(depth, size=size)

    def two_inputs(self) -> bytes:
        return onnx_models.two_input_model()

    @property
    def bad(self) -> Mapping[str, Callable[[], bytes]]:
        return {"weights in a file that is not there": onnx_models.external_data_model}


MODELS: dict[Artifact, Models] = {"onnx": OnnxModels()}
BAD: dict[str, Callable[[Models], bytes]] = {
    "an empty file": lambda models: b"",
    "text": lambda models: b"this is not a model",
    "half a model": lambda models: models.scaling(1.0)[:60],
}
