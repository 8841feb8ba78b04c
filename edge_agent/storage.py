"""The device's labelled examples: a folder of immutable chunks, one an ingested file. No torch here.

A chunk's file is named for its place in line, the digest of its bytes and the file that it came from; ingesting the same examples
twice changes nothing. Files appear and go whole, so any process may read while another ingests or removes.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors.numpy import load, save

from shared.errors import Conflict, Corrupt, InputError, Malformed, NotFound
from shared.files import fsync_folder, write_atomic
from shared.ids import digest_of
from shared.learning.examples import Split, X, Y, check_examples, is_held_out, load_file, split_examples

__all__ = ["Chunk", "Contents", "DataStore", "Ingested", "Split", "is_held_out", "load_file"]

_log = structlog.get_logger()
_CHUNK = re.compile(r"\d{8}-(?P<digest>[0-9a-f]{64})(-(?P<source>[\w.-]+))?\.safetensors\Z")
_ID_LENGTH = len("00000000-01234567")
_EPOCH_LENGTH = 8
_SOURCE_BYTES = 100  # of a file name, which has 255


@dataclass(frozen=True)
class Chunk:
    """One ingested file. `name` stays the same for ever."""

    name: str
    path: Path = field(repr=False)

    @property
    def id(self) -> str:
        """What people call it: the beginning of its name."""
        return self.name[:_ID_LENGTH]

    @property
    def source(self) -> str:
        """The file that was ingested; empty where that is not known."""
        return self._part("source")

    @property
    def digest(self) -> str:
        """Of its bytes: the same examples in the same order have it, whenever they are ingested."""
        return self._part("digest")

    @property
    def epoch(self) -> str:
        """What the privacy ledger calls it: the beginning of its digest, which people see in `id` too."""
        return self.digest[:_EPOCH_LENGTH]

    def _part(self, name: str) -> str:
        match = _CHUNK.match(self.name)
        return (match[name] if match else None) or ""

    def read(self) -> tuple[X, Y] | None:
        """None: it was removed since. Raises `Corrupt` when the bytes are not what was ingested."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if digest_of(data) != self.digest:
            raise Corrupt(
                f"ingested file {self.id} was changed or damaged:"  # without its name: the coordinator is told too
                f" `edge-agent data remove {self.id}`, and ingest it again"
            )
        arrays = load(data)
        return arrays["x"], arrays["y"]


@dataclass(frozen=True)
class Ingested:
    """`added`: how many examples are new; 0 when the chunk was there already."""

    chunk: Chunk
    added: int


@dataclass(frozen=True)
class Contents:
    """What one chunk holds. `labels`: how many examples have each; None, as is `shape`, for a chunk that is damaged."""

    chunk: Chunk
    size_bytes: int
    ingested_at: float  # seconds since the epoch
    shape: tuple[int, ...] | None = None
    labels: Mapping[int, int] | None = None


@dataclass(frozen=True)
class _Misfit:
    """Examples of one chunk that a model cannot take, and why."""

    chunk: Chunk
    examples: int
    reason: str


class DataStore:
    """One device's folder of chunks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ingest_files(self, paths: Sequence[Path]) -> list[Ingested]:
        """All are good, or none is taken. Raises what `load_file` and `ingest` raise; `Malformed` names the file."""
        loaded = [(path, *load_file(path)) for path in paths]
        stored = self._shape() or loaded[0][1].shape[1:]
        for path, x, _ in loaded:
            _check_shape(x, stored, path.name)
        return [self.ingest(x, y, source=path.name) for path, x, y in loaded]

    def ingest(self, x: NDArray[Any], y: NDArray[Any], *, source: str = "") -> Ingested:
        """Add examples: `x` float32 (n, …), `y` integer labels (n,). Raises `Malformed` for examples that do not fit,
        `StorageFull`; nothing is then changed.
        """
        images, labels = check_examples(x, y)
        chunks = self.chunks()
        _check_shape(images, self._shape())
        data = save({"x": images, "y": labels})
        digest = digest_of(data)
        for chunk in chunks:
            if digest in chunk.name:
                return Ingested(chunk, 0)
        place = int(chunks[-1].name[:8]) + 1 if chunks else 0
        kept = _kept(source)
        name = f"{place:08d}-{digest}{'-' if kept else ''}{kept}.safetensors"
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._path, fcntl.LOCK_SH):
            write_atomic(self._path / name, data, mode=0o600)
        return Ingested(Chunk(name, self._path / name), len(labels))

    def remove(self, name: str) -> Chunk:
        """Forget one chunk, by its id or the file that it came from, which may have a path. Raises `NotFound`, and `Conflict` for
        a name that several have.
        """
        source = _kept(Path(name).name)
        found = [chunk for chunk in self.chunks() if chunk.id == name or (source and chunk.source == source)]
        if not found:
            raise NotFound(f"no ingested file {name[:80]!r}; `edge-agent data list` shows them")
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} ingested files are called {name}; give one of {', '.join(one.id for one in found)}"
            )
        found[0].path.unlink(missing_ok=True)
        fsync_folder(self._path)
        return found[0]

    def forget_halves(self) -> None:
        """Remove what an ingest that was killed left half written; nothing while one runs."""
        if not self._path.is_dir():
            return
        with contextlib.suppress(BlockingIOError), _locked(self._path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in self._path.glob(".*.safetensors.*.tmp"):
                path.unlink(missing_ok=True)

    def _shape(self) -> tuple[int, ...] | None:
        """Of the stored examples, if there are any."""
        return next((read[0].shape[1:] for chunk in self.chunks() if (read := chunk.read()) is not None), None)

    def chunks(self) -> list[Chunk]:
        """Oldest first."""
        if not self._path.is_dir():
            return []
        return [Chunk(name, self._path / name) for name in sorted(os.listdir(self._path)) if _CHUNK.match(name)]

    def epochs(self) -> frozenset[str]:
        """The chunks as the privacy ledger knows them."""
        return frozenset(chunk.epoch for chunk in self.chunks())

    def contents(self) -> Iterator[Contents]:
        """Oldest first."""
        for chunk in self.chunks():
            try:
                status = chunk.path.stat()
                read = chunk.read()
            except Corrupt:
                yield Contents(chunk, status.st_size, status.st_mtime)
                continue
            except FileNotFoundError:
                continue
            if read is not None:
                x, y = read
                labels, counts = np.unique(y, return_counts=True)
                found = dict(zip(labels.tolist(), counts.tolist(), strict=True))
                yield Contents(chunk, status.st_size, status.st_mtime, x.shape[1:], found)

    def split(self, *, shape: tuple[int, ...] | None = None, classes: int | None = None) -> Split:
        """The examples that a model takes whose input has this `shape` and whose answers are numbered below `classes`; None: any.
        The others are left out, which the log tells.

        Raises `NotFound` when nothing has been ingested, `Conflict` when nothing is left, `Corrupt`.
        """
        kept: list[tuple[X, Y]] = []
        misfits: list[_Misfit] = []
        for chunk in self.chunks():
            if (read := chunk.read()) is None:
                continue
            x, y = read
            shape = shape or x.shape[1:]
            if x.shape[1:] != shape:
                misfits.append(_Misfit(chunk, len(y), f"shape {list(x.shape[1:])}, the model takes {list(shape)}"))
                continue
            fits = np.ones(len(y), np.bool_) if classes is None else y < classes
            if not fits.all():
                reason = f"labels up to {int(y.max())}, the model has {classes} classes"
                misfits.append(_Misfit(chunk, int((~fits).sum()), reason))
            kept.append((x, y) if fits.all() else (x[fits], y[fits]))
        for one in misfits:
            about = {"file": one.chunk.source, "id": one.chunk.id, "examples": one.examples, "reason": one.reason}
            _log.warning("examples left out", **about)
        if not sum(len(y) for _, y in kept):
            raise _nothing_left(misfits)
        return split_examples(np.concatenate([x for x, _ in kept]), np.concatenate([y for _, y in kept]))


def _check_shape(x: X, stored: tuple[int, ...] | None, name: str = "") -> None:
    if stored is not None and x.shape[1:] != stored:
        raise Malformed(
            f"{name}{': ' if name else ''}examples have shape {list(x.shape[1:])}, those stored here have {list(stored)};"
            " `edge-agent data remove` makes room for others"
        )


def _kept(source: str) -> str:
    """A file's name as far as a chunk's keeps it."""
    return re.sub(r"[^\w.-]", "_", source).encode()[:_SOURCE_BYTES].decode(errors="ignore")


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """The kernel lets go of the lock when the process ends, however it ends. Raises `BlockingIOError` if `how` says so."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _nothing_left(misfits: Sequence[_Misfit]) -> InputError:
    """Names chunks, not the files that they came from: the coordinator is told too."""
    if not misfits:
        return NotFound("this device has no examples yet: add some with `edge-agent ingest FILE`")
    first, count = misfits[0], len(misfits)
    which = f"{first.chunk.id}, the first of {count} files," if count > 1 else first.chunk.id
    return Conflict(
        f"none of this device's examples fits the model: {which} has {first.reason}; see `edge-agent data list`"
    )
