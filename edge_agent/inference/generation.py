"""One loaded version of a model: how it is opened, and how it runs a batch. Blocking; called from worker threads."""

import asyncio
import errno
import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.inference.batching import SLOW
from edge_agent.inference.buffers import BufferPool
from edge_agent.inference.ports import ModelSpec
from edge_agent.inference.stats import Timing, VersionStats
from edge_agent.runtimes import Artifact, Session, TensorSpec, file_name, find
from edge_agent.runtimes.port import Array
from shared.errors import (
    ChildFailed,
    Corrupt,
    DigestMismatch,
    Malformed,
    NotFound,
    ShoalError,
    StorageFull,
    Unsupported,
)


@dataclass(frozen=True, slots=True)
class Output:
    """One named answer, as the bytes that go on the wire."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: bytes

    def array(self) -> Array:
        return np.frombuffer(self.raw, self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request, and which version gave it. `run_ms`: the run that held it."""

    outputs: tuple[Output, ...]
    version: int
    digest: str
    runtime: str
    run_ms: float


@dataclass(slots=True, eq=False)
class Job:
    """A request in a queue. `key`: jobs with equal keys may share a batch. Times are
    `time.monotonic`'s: a loop's own may be a millisecond coarse."""

    inputs: Mapping[str, Array]
    rows: int
    key: tuple[tuple[int, ...], ...]
    arrived: float
    deadline: float
    future: "asyncio.Future[Reply]"


@dataclass(eq=False)
class Generation:
    """`fitting`: rows of the largest warm-up batch within the target. `inflight` is the event loop's to change."""

    spec: ModelSpec
    artifact: Artifact
    session: Session
    fitting: int
    stats: VersionStats = field(default_factory=VersionStats)
    inflight: int = 0
    idle: asyncio.Event | None = None

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may be joined: every tensor's first dimension is free."""
        tensors = (*self.session.inputs, *self.session.outputs)
        return all(spec.shape and spec.shape[0] == -1 for spec in tensors)

    def started(self) -> None:
        self.inflight += 1

    def finished(self) -> None:
        self.inflight -= 1
        if self.inflight == 0 and self.idle is not None:
            self.idle.set()

    async def drained(self) -> None:
        """Returns once no batch of this version runs."""
        if self.inflight:
            self.idle = asyncio.Event()
            await self.idle.wait()


@dataclass(frozen=True)
class Opened:
    generation: Generation
    load_s: float
    warm_up_ms: float


def open_generation(spec: ModelSpec, max_bytes: int) -> Opened:
    """Checks the digest, loads exactly the bytes that were checked, and answers once at every batch bucket.

    Raises `NotFound`, `DigestMismatch`, `Malformed`, `Unsupported`, `StorageFull`, `Corrupt`.
    """
    runtime = find(spec.runtime)
    start = time.perf_counter()
    data = _checked_bytes(spec, max_bytes)
    staged = file_name(runtime.artifact)
    if spec.path.suffix != Path(staged).suffix:  # some runtimes would guess a format from the ending and try it
        raise Unsupported(f"runtime {spec.runtime!r} loads files like {staged}; {spec.path.name} is none")
    try:
        # A private copy: the file cannot change between check and load, and a graph that refers to other files
        # (ONNX external data, say, which the digest does not cover) finds none.
        with tempfile.TemporaryDirectory(prefix="shoal-model-") as folder:
            path = Path(folder, staged)
            path.write_bytes(data)
            session = runtime.load(path, threads=spec.threads)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no space left to load a model: free some in the temporary folder") from error
        raise Corrupt(f"cannot stage {spec.path.name}", detail=str(error.strerror)) from error
    try:
        generation, first_ms = _warmed(spec, runtime.artifact, session)
    except ShoalError:
        session.close()
        raise
    return Opened(generation, time.perf_counter() - start, first_ms)


def _checked_bytes(spec: ModelSpec, max_bytes: int) -> bytes:
    try:
        if not spec.path.is_file():
            raise NotFound(f"no model file at {spec.path}")
        size = spec.path.stat().st_size
        if size > max_bytes:
            raise Malformed(f"{spec.path.name} has {size} bytes, the limit is {max_bytes}")
        data = spec.path.read_bytes()
    except OSError as error:
        raise Corrupt(f"cannot read {spec.path}", detail=str(error.strerror)) from error
    if hashlib.sha256(data).hexdigest() != spec.digest:
        raise DigestMismatch(f"{spec.path.name} is not the file with digest {spec.digest[:12]}…: fetch it again")
    return data


def _warmed(spec: ModelSpec, artifact: Artifact, session: Session) -> tuple[Generation, float]:
    """Runs zeros through every bucket up to the policy's limit, or to the first one that is far too slow."""
    generation = Generation(spec, artifact, session, fitting=1)
    first_ms, rows = 0.0, 1
    while True:
        inputs = {tensor.name: _zeros(tensor, rows) for tensor in session.inputs}
        answers = session.run(inputs)  # the first run of a shape also compiles it
        if any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in answers.values()):
            raise Malformed(f"version {spec.version} of {spec.model!r} answers NaN to zeros: its weights are unusable")
        start = time.perf_counter()
        session.run(inputs)
        took_ms = (time.perf_counter() - start) * 1e3
        first_ms = first_ms or took_ms
        if took_ms <= SLOW * spec.policy.target_ms:
            generation.fitting = rows
        if not generation.batchable or rows >= spec.policy.max_batch or took_ms > SLOW * spec.policy.target_ms:
            return generation, first_ms
        rows = min(rows * 2, spec.policy.max_batch)


def _zeros(tensor: TensorSpec, rows: int) -> Array:
    shape = tuple(rows if size == -1 and axis == 0 else abs(size) for axis, size in enumerate(tensor.shape))
    return np.zeros(shape, tensor.dtype)


def run_batch(generation: Generation, jobs: Sequence[Job], pool: BufferPool) -> tuple[list[Reply | ShoalError], Timing]:
    """One reply or error per job, in order. When a batch fails, each job runs alone, so that one caller's values
    cannot fail its neighbours."""
    try:
        return _run_together(generation, jobs, pool)
    except ShoalError as error:
        if len(jobs) == 1:
            return [error], Timing(0.0, 0.0, 0.0)
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the worker thread must live on
        return [ChildFailed("the runtime failed", detail=repr(error)[:300])] * len(jobs), Timing(0.0, 0.0, 0.0)
    alone = [run_batch(generation, [job], pool) for job in jobs]
    total = Timing(*(sum(parts) for parts in zip(*((t.gather_s, t.run_s, t.scatter_s) for _, t in alone), strict=True)))
    return [replies[0] for replies, _ in alone], total


def _run_together(
    generation: Generation, jobs: Sequence[Job], pool: BufferPool
) -> tuple[list[Reply | ShoalError], Timing]:
    session = generation.session
    start = time.perf_counter()
    inputs = _gathered(session, jobs, pool)
    gathered = time.perf_counter()
    answers = session.run(inputs, _pooled_outputs(generation, jobs, pool))
    ran = time.perf_counter()
    spec, run_ms, offset = generation.spec, (ran - gathered) * 1e3, 0
    replies: list[Reply | ShoalError] = []
    for job in jobs:
        outputs = []
        for tensor in session.outputs:
            array = answers[tensor.name]
            part = array if len(jobs) == 1 else array[offset : offset + job.rows]
            outputs.append(Output(tensor.name, tensor.dtype, part.shape, part.tobytes()))
        offset += job.rows
        replies.append(Reply(tuple(outputs), spec.version, spec.digest, spec.runtime, run_ms))
    return replies, Timing(gathered - start, ran - gathered, time.perf_counter() - ran)


def _gathered(session: Session, jobs: Sequence[Job], pool: BufferPool) -> Mapping[str, Array]:
    if len(jobs) == 1:
        return jobs[0].inputs
    rows = sum(job.rows for job in jobs)
    joined = {}
    for tensor in session.inputs:
        parts = [job.inputs[tensor.name] for job in jobs]
        array = pool.take(f"in:{tensor.name}", rows, parts[0].shape[1:], tensor.dtype)
        np.concatenate(parts, out=array)
        joined[tensor.name] = array
    return joined


def _pooled_outputs(generation: Generation, jobs: Sequence[Job], pool: BufferPool) -> Mapping[str, Array] | None:
    """Buffers for the answers, when their shape is known beforehand."""
    outputs = generation.session.outputs
    if not generation.batchable or any(-1 in spec.shape[1:] for spec in outputs):
        return None
    rows = sum(job.rows for job in jobs)
    return {spec.name: pool.take(f"out:{spec.name}", rows, spec.shape[1:], spec.dtype) for spec in outputs}
