"""What the device remembers of older examples: the replay buffer on disk, and whether newer ones look different. No torch."""

from pathlib import Path

import numpy as np

from edge_agent.storage import Chunk, DataStore, is_held_out
from shared.errors import Corrupt
from shared.files import write_atomic
from shared.learning.continual import ReplayBuffer
from shared.learning.drift import drift_score, input_statistics

FILE = "replay.safetensors"
_WINDOW = 512  # newest examples that drift is judged on


def absorb(
    store: DataStore, folder: Path, capacity: int, rng: np.random.Generator, *, shape: tuple[int, ...], classes: int
) -> ReplayBuffer:
    """The device's buffer after it has seen every stored training example of this `shape`; of it what has a label below `classes`.

    A buffer of another size, one that cannot be read, or one that saw a file which was removed since, is made anew from the store:
    nothing in it is the only copy.
    """
    path = folder / FILE
    chunks = store.chunks()
    before = buffer = _load(path, ReplayBuffer.empty(capacity, shape), {chunk.name for chunk in chunks})
    for chunk in chunks:
        if chunk.name in buffer.sources or (read := chunk.read()) is None or read[0].shape[1:] != shape:
            continue
        x, y = read
        kept = ~is_held_out(x)
        buffer = buffer.add(x[kept], y[kept], rng, source=chunk.name)
    if buffer is not before:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, buffer.to_bytes(), mode=0o600)
    return buffer.below(classes)


def _load(path: Path, empty: ReplayBuffer, stored: set[str]) -> ReplayBuffer:
    try:
        buffer = ReplayBuffer.from_bytes(path.read_bytes())
    except (FileNotFoundError, Corrupt):
        return empty
    alike = (buffer.capacity, buffer.x.shape[1:]) == (empty.capacity, empty.x.shape[1:])
    return buffer if alike and stored.issuperset(buffer.sources) else empty


def forget(state: Path) -> None:
    """Drop the buffers of all apps, below the folder `state`: they hold copies of examples. The next training makes them anew."""
    for path in state.glob(f"*/{FILE}"):
        path.unlink(missing_ok=True)


def drift_of(store: DataStore) -> float:
    """How far the newest examples are from the first chunk's, as `drift_score` says; 0 while there is one chunk."""
    chunks = store.chunks()
    if len(chunks) < 2:
        return 0.0
    reference = _statistics(chunks[0])
    recent = reference[:0]
    for chunk in reversed(chunks[1:]):
        recent = np.concatenate([_statistics(chunk), recent])
        if len(recent) >= _WINDOW:
            break
    return drift_score(reference, recent[-_WINDOW:])


def _statistics(chunk: Chunk) -> np.ndarray:
    read = chunk.read()
    return input_statistics(read[0]) if read is not None else np.zeros((0, 2))
