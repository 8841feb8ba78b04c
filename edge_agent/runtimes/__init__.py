"""Runtimes that answer for a model, each from the kind of file that it loads (`Artifact`), behind one port.

Nothing heavy is imported before `Runtime.load`.
"""

from edge_agent.runtimes.catalog import available, find, measure, skipped
from edge_agent.runtimes.port import Artifact, Latency, Runtime, Session, TensorSpec, file_name

__all__ = [
    "Artifact",
    "Latency",
    "Runtime",
    "Session",
    "TensorSpec",
    "available",
    "file_name",
    "find",
    "measure",
    "skipped",
]
