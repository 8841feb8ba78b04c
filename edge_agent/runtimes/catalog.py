"""Which runtimes this device has, and how fast one answers."""

import time
from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np

from edge_agent.runtimes.onnxruntime_cpu import OnnxRuntime
from edge_agent.runtimes.openvino_cpu import OpenVino
from edge_agent.runtimes.port import Array, Latency, Runtime, Session

_WARM_UP_RUNS = 3


def _known() -> tuple[tuple[Runtime, str], ...]:
    """Every adapter with the module that it needs. Finding a module costs nothing; importing one costs 50 MB."""
    return ((OnnxRuntime(), "onnxruntime"), (OpenVino(), "openvino"))


def available() -> dict[str, Runtime]:
    """The runtimes installed here, by name."""
    return {runtime.name: runtime for runtime, module in _known() if find_spec(module) is not None}


def skipped() -> dict[str, str]:
    """The runtimes that cannot be used here, by name, with the reason."""
    return {
        runtime.name: f"the package {module} is not installed"
        for runtime, module in _known()
        if find_spec(module) is None
    }


def measure(session: Session, inputs: Mapping[str, Array], repeats: int) -> Latency:
    """Times `repeats` runs one after the other, after a short warm-up."""
    if repeats < 1:
        raise ValueError("measuring needs at least one run")
    for _ in range(_WARM_UP_RUNS):
        session.run(inputs)
    times = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter()
        session.run(inputs)
        times[index] = time.perf_counter() - start
    p50, p99 = np.percentile(times * 1e3, (50, 99))
    return Latency(float(p50), float(p99))
