"""Keeps the chatter of torch.export and the ONNX exporter away from people, by name: anything not listed here still shows."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

os.environ.setdefault("TORCHAO_SKIP_LOADING_SO_FILES", "1")  # CUDA kernels; loading them on a CPU build prints failures

_LOGGERS = (
    "torch.onnx",
    "torch.utils._pytree",
    "torch.fx.experimental.symbolic_shapes",  # what it cannot do it also raises
    "torchao",
    "torch.export",
    "onnxscript",
    "onnx_ir",
)
_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # torch's own pytree code
    (r"Exporting a model while it is in training mode", UserWarning),  # converted graphs have no other mode
    (r"erase_node\(.*\) on an already erased node", UserWarning),  # torchao's pattern rewriting
    (r"`torch\.jit\.script", DeprecationWarning),  # torch.fx.experimental's own imports
    (r"Converting a tensor with requires_grad=True to a scalar", UserWarning),
)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """For the duration, in this thread's process: the exporters' known warnings and log lines below ERROR are dropped."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message, category in _WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
