"""Runtimes that answer for an ONNX graph, behind one port. Nothing heavy is imported before `Runtime.load`."""

from edge_agent.runtimes.catalog import available, measure, skipped
from edge_agent.runtimes.port import Latency, Runtime, Session, TensorSpec

__all__ = ["Latency", "Runtime", "Session", "TensorSpec", "available", "measure", "skipped"]
