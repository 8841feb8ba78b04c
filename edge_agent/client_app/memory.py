"""What the device remembers of older examples: the replay buffer on disk, and whether newer ones look different. No torch."""

import contextlib
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
    while True:
        buffer = _absorbed(store, path, ReplayBuffer.empty(capacity, shape), rng)
        if _is_stored(buffer, store):
            return buffer.below(classes)
        # A file was removed since it was listed, and `forget` may have come before the write.
        path.unlink(missing_ok=True)


def _absorbed(store: DataStore, path: Path, empty: ReplayBuffer, rng: np.random.Generator) -> ReplayBuffer:
    before = buffer = _load(path, empty, store)
    for chunk in store.chunks():
        if chunk.name in buffer.sources or (read := chunk.read()) is None or read[0].shape[1:] != empty.x.shape[1:]:
            continue
        x, y = read
        kept = ~is_held_out(x)
        buffer = buffer.add(x[kept], y[kept], rng, source=chunk.name)
    if buffer is not before:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):  # forgotten while it was written
            write_atomic(path, buffer.to_bytes(), mode=0o600)
    return buffer


def _load(path: Path, empty: ReplayBuffer, store: DataStore) -> ReplayBuffer:
    try:
        buffer = ReplayBuffer.from_bytes(path.read_bytes())
    except (FileNotFoundError, Corrupt):
        return empty
    alike = (buffer.capacity, buffer.x.shape[1:]) == (empty.capacity, empty.x.shape[1:])
    return buffer if alike and _is_stored(buffer, store) else empty


def _is_stored(buffer: ReplayBuffer, store: DataStore) -> bool:
    """Whether every file that it saw is still there."""
    return {chunk.name for chunk in store.chunks()}.issuperset(buffer.sources)


def forget(state: Path) -> None:
    """Drop the buffers of all apps, below the folder `state`: they hold copies of examples. The next training makes them anew."""
    for path in state.glob(f"*/{FILE}"):
        path.unlink(missing_ok=True)
    forget_halves(state)


def forget_halves(state: Path) -> None:
    """Remove what a trainer that was killed left half written. One that is writing keeps no buffer."""
    for path in state.glob(f"*/.{FILE}.*.tmp"):
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
