"""Which runtimes this device has, and how fast one answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from edge_agent.runtimes.onnxruntime_cpu import OnnxRuntime
from edge_agent.runtimes.openvino_cpu import OpenVino
from edge_agent.runtimes.port import Array, Latency, Runtime, Session
from shared.errors import Unsupported

_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Known:
    """An adapter and the module that it needs. Finding a module costs nothing; importing one costs 50 MB."""

    runtime: Runtime
    module: str

    def obstacle(self) -> str:
        """Why it cannot be used here; empty: it can."""
        if find_spec(self.module) is None:
            return f"the package {self.module} is not installed"
        return self.runtime.obstacle()


KNOWN = (Known(OnnxRuntime(), "onnxruntime"), Known(OpenVino(), "openvino"))


def available(known: Sequence[Known] = KNOWN) -> dict[str, Runtime]:
    """The runtimes that can be used here, by name."""
    return {one.runtime.name: one.runtime for one in known if not one.obstacle()}


def skipped(known: Sequence[Known] = KNOWN) -> dict[str, str]:
    """The runtimes that cannot be used here, by name, with the reason."""
    return {one.runtime.name: reason for one in known if (reason := one.obstacle())}


def find(name: str, known: Sequence[Known] = KNOWN) -> Runtime:
    """One runtime; no other is looked at unless it cannot be used. Raises `Unsupported` with the reason."""
    one = next((one for one in known if one.runtime.name == name), None)
    reason = "unknown" if one is None else one.obstacle()
    if one is None or reason:
        usable = ", ".join(available(known)) or "none"
        raise Unsupported(f"runtime {name!r} is not usable here ({reason}); there is {usable}")
    return one.runtime


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
