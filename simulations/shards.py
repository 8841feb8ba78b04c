"""A device's own samples as a file: safetensors with `x` float32 (N, C, H, W) and `y` int64 (N,), what `edge-agent
ingest` takes.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import Malformed
from shared.files import write_atomic
from simulations.data import Dataset


def write_shard(path: Path, samples: Dataset) -> int:
    """Whole or absent; readable by its owner only, for it stands for private data. Returns the bytes written."""
    content = save({"x": np.ascontiguousarray(samples.x), "y": np.ascontiguousarray(samples.y)})
    write_atomic(path, content, mode=0o600)
    return len(content)


def read_shard(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Raises `Malformed` for a file that `write_shard` did not write."""
    try:
        arrays = load(path.read_bytes())
        x, y = arrays["x"], arrays["y"]
    except (SafetensorError, KeyError) as error:
        raise Malformed(f"{path} is no shard of samples", detail=str(error)[:120]) from error
    if x.dtype != np.float32 or y.dtype != np.int64 or len(x) != len(y):
        raise Malformed(f"{path} is no shard of samples", detail="x is float32 and y int64, one label a sample")
    return x, y
