"""OpenVINO on the CPU."""

import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from edge_agent.runtimes.port import Array, Artifact, Session, TensorSpec, check_inputs, version_of
from shared.errors import Malformed, NotFound


def _import_openvino() -> Any:
    """`import openvino` sends a usage event through `openvino_telemetry` when it can; barring that module first
    makes openvino fall back on its own stub, so nothing is imported for it and nothing leaves the device."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None bars an import
    import openvino

    return openvino


def _spec(port: Any) -> TensorSpec:
    shape = tuple(dim.get_length() if dim.is_static else -1 for dim in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, str(np.dtype(port.get_element_type().to_dtype())))


class OpenVino:
    """Adapter for `openvino`. CPU pinning is off: with it, two one-thread models land on one core."""

    name = "openvino"
    artifact: Artifact = "onnx"

    @property
    def version(self) -> str:
        return version_of("openvino")

    def obstacle(self) -> str:
        return ""

    def load(self, path: Path, *, threads: int) -> Session:
        openvino = _import_openvino()
        if not path.is_file():
            raise NotFound(f"no model file at {path}")
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            # Without this, machines with bf16 units would answer differently from the rest of the fleet.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
            return OpenVinoSession(openvino, compiled)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Malformed(
                f"OpenVINO cannot load {path.name}: is it a complete ONNX graph?", detail=_last_line(error)
            ) from error


class OpenVinoSession:
    """Each concurrent `run` takes its own infer request from a pool that grows to the number of callers."""

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self._tensor = openvino.Tensor
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)

    def run(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        compiled = self._compiled
        if compiled is None:
            raise Malformed("this model is closed")
        check_inputs(self.inputs, inputs)
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        try:
            # A shared tensor does not keep its array alive: `lent` must outlive the run.
            lent = [_shareable(inputs[spec.name]) for spec in self.inputs]
            for index, array in enumerate(lent):
                request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            request.infer()
            results = {spec.name: request.get_output_tensor(index).data for index, spec in enumerate(self.outputs)}
            answer = _copied(results, out)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Malformed("the model rejects these inputs", detail=_last_line(error)) from error
        self._idle.put(request)  # a request that failed is dropped, not reused
        return answer

    def close(self) -> None:
        self._compiled = None
        self._idle = SimpleQueue()


def _shareable(array: Array) -> Array:
    """OpenVINO shares only writable, contiguous memory."""
    return array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")


def _copied(results: Mapping[str, Array], out: Mapping[str, Array] | None) -> dict[str, Array]:
    """The request owns its outputs and overwrites them in its next run."""
    if out is None:
        return {name: array.copy() for name, array in results.items()}
    for name, array in results.items():
        if out[name].shape != array.shape or out[name].dtype != array.dtype:
            raise ValueError(f"the buffer for {name!r} is {out[name].shape}, the answer {array.shape}")
        np.copyto(out[name], array)
    return dict(out)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
