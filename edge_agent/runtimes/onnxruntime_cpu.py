"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.runtimes.port import Array, Artifact, Session, TensorSpec, check_inputs, version_of
from shared.errors import Malformed, NotFound

_SILENT = 4  # fatal only: every failure reaches the caller as an exception, with the same text
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        *("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf"),
        *("NoModel", "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException"),
    )
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def _spec(arg: Any) -> TensorSpec:
    if arg.type not in _DTYPES:
        raise Malformed(f"tensor {arg.name!r} has type {arg.type}, which is not supported")
    shape = tuple(size if isinstance(size, int) else -1 for size in arg.shape)
    return TensorSpec(arg.name, shape, _DTYPES[arg.type])


class OnnxRuntime:
    """Adapter for `onnxruntime`. One arena per session; no spinning, because the trainer needs the other core."""

    name = "onnxruntime"
    artifact: Artifact = "onnx"

    @property
    def version(self) -> str:
        return version_of("onnxruntime", "onnxruntime-gpu")

    def obstacle(self) -> str:
        return ""

    def load(self, path: Path, *, threads: int) -> Session:
        import onnxruntime as ort

        if not path.is_file():
            raise NotFound(f"no model file at {path}")
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        failures = _failures()
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return OnnxSession(session, failures)
        except failures as error:
            raise Malformed(
                f"ONNX Runtime cannot load {path.name}: is it a complete ONNX graph?", detail=_first_line(error)
            ) from error


class OnnxSession:
    def __init__(self, session: Any, failures: tuple[type[Exception], ...]) -> None:
        self._session = session
        self._failures = failures
        self.inputs = tuple(_spec(arg) for arg in session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise Malformed("this model is closed")
        check_inputs(self.inputs, inputs)
        try:
            if out is None:
                return dict(zip(self._names, session.run(self._names, dict(inputs)), strict=True))
            return self._run_into(session, inputs, out)
        except self._failures as error:
            raise Malformed("the model rejects these inputs", detail=_first_line(error)) from error

    def _run_into(self, session: Any, inputs: Mapping[str, Array], out: Mapping[str, Array]) -> dict[str, Array]:
        binding = session.io_binding()
        lent = {name: np.ascontiguousarray(array) for name, array in inputs.items()}  # must outlive the run
        for name, array in lent.items():
            binding.bind_cpu_input(name, array)
        for spec in self.outputs:
            array = out[spec.name]
            if array.dtype != np.dtype(spec.dtype) or not array.flags.c_contiguous or not array.flags.writeable:
                raise ValueError(f"the buffer for {spec.name!r} is not a writable {spec.dtype} array")
            binding.bind_output(spec.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        return dict(out)

    def close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
