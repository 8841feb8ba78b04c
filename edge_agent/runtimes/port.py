"""The port: what every runtime adapter offers, and the checks that all of them share.

`tests/contract/test_runtimes.py` runs one suite on every adapter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import Malformed

Array = NDArray[Any]
# What a model is made into for a runtime: an ONNX graph, or an ExecuTorch program, which no runtime here loads yet.
Artifact = Literal["onnx", "pte"]
_SUFFIX: Mapping[Artifact, str] = {"onnx": ".onnx", "pte": ".pte"}


def file_name(artifact: Artifact) -> str:
    """What an artifact's file is called: runtimes that read several formats go by its ending."""
    return f"model{_SUFFIX[artifact]}"


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output. `shape` has -1 where any size is allowed; `dtype` is NumPy's name ("float32")."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Latency:
    """Wall time of a run, in milliseconds."""

    p50_ms: float
    p99_ms: float


class Session(Protocol):
    """A loaded model. `run` may be called from several threads at once and releases the GIL while it computes."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """All outputs by name. With `out` (an array of the exact shape and type for every output) the answers are
        written there. Raises `Malformed` for names, shapes or types that do not fit the model, or values it rejects.
        """
        ...

    def close(self) -> None:
        """Frees the model. Safe to repeat; a later `run` raises `Malformed`."""
        ...


class Runtime(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def artifact(self) -> Artifact:
        """What it loads."""
        ...

    @property
    def version(self) -> str:
        """Of the installed package; empty where it cannot be told, and then nothing measured may be remembered by it."""
        ...

    def obstacle(self) -> str:
        """Why it is of no use on this device although its package is installed; empty: it can be used."""
        ...

    def load(self, path: Path, *, threads: int) -> Session:
        """Raises `NotFound` when the file is missing and `Malformed` when it is not a model that this runtime can run."""
        ...


def version_of(*distributions: str) -> str:
    """The version of the first that is installed, without importing it; empty where none is. One module may come from
    several distributions (`onnxruntime`, `onnxruntime-gpu`)."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def check_inputs(specs: Iterable[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raises `Malformed` unless `inputs` has exactly the model's names, types and shapes."""
    expected = {spec.name: spec for spec in specs}
    if inputs.keys() != expected.keys():
        raise Malformed(f"inputs are {sorted(inputs)}, the model takes {sorted(expected)}")
    for name, spec in expected.items():
        array = inputs[name]
        if array.dtype != np.dtype(spec.dtype):
            raise Malformed(f"input {name!r} is {array.dtype}, the model takes {spec.dtype}")
        if not fits(array.shape, spec.shape):
            raise Malformed(
                f"input {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)} (-1: any size)"
            )


def fits(shape: tuple[int, ...], spec: tuple[int, ...]) -> bool:
    """Whether a concrete shape is one that `spec` allows. Empty dimensions are not."""
    return len(shape) == len(spec) and all(
        have > 0 and want in (-1, have) for have, want in zip(shape, spec, strict=True)
    )
