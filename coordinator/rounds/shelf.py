"""The global state of jobs as blobs: arrays and the strategy's own memory, named by digest in the job's row."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from coordinator.rounds.ports import JobStore, ModelState
from coordinator.rounds.round import Event, Job
from shared.blobs import Blobs
from shared.errors import ConfigError, Corrupt, Malformed
from shared.flower import (
    arrays_from_safetensors,
    arrays_to_safetensors,
    decode_records,
    encode_records,
    record_to_numpy,
    remember_digest,
)
from shared.ids import Digest

ARRAYS = "arrays"  # the record's name in a message: what is stored is what is sent


@dataclass(frozen=True)
class GlobalState:
    """Between two rounds. `kept` is what the strategy remembers."""

    arrays: ArrayRecord
    digest: Digest
    model_json: str = ""
    kept: bytes = b""


class Shelf:
    """Blobs are shared by digest, so none is deleted while any job's row names it."""

    def __init__(self, blobs: Blobs, store: JobStore) -> None:
        self._blobs = blobs
        self._store = store
        self._lock = threading.Lock()

    def put(self, arrays: ArrayRecord) -> Digest:
        digest = self._blobs.write(encode_records(RecordDict({ARRAYS: arrays})))
        remember_digest(ARRAYS, arrays, digest)
        return digest

    def put_kept(self, kept: bytes) -> Digest | None:
        return self._blobs.write(kept) if kept else None

    def create(self, job: Job, arrays: ArrayRecord, event: Event) -> Job:
        """Store a new job with its first arrays. Returns what `JobStore.create` does."""
        with self._lock:
            return self._store.create(replace(job, arrays_digest=self.put(arrays)), event)

    def load(self, job: Job) -> GlobalState:
        """Raises `NotFound` for a lost blob, `Corrupt` for a damaged one."""
        if job.arrays_digest is None:
            raise Corrupt(f"job {job.id} has no arrays")
        records = decode_records(self._blobs.read(job.arrays_digest), job.arrays_digest).array_records
        kept = self._blobs.read(job.strategy_digest) if job.strategy_digest else b""
        return GlobalState(records[ARRAYS], job.arrays_digest, job.model_json, kept)

    def sweep(self, owned: Iterable[Digest]) -> int:
        """Delete the owned blobs that no job needs: a former process was killed before it could. Returns how many.

        For the start of a process, before any job runs.
        """
        left = set(owned) - self._needed()
        self.drop(*left)
        return len(left)

    def _needed(self) -> set[Digest | None]:
        jobs = self._store.jobs()
        return {job.arrays_digest for job in jobs} | {job.strategy_digest for job in jobs}

    def drop(self, *digests: Digest | None) -> None:
        """Delete blobs that no job needs any more."""
        with self._lock:
            for digest in set(digests) - self._needed():
                if digest is not None:
                    self._blobs.delete(digest)


def as_model(arrays: ArrayRecord, model_json: str) -> ModelState:
    return ModelState(model_json, arrays_to_safetensors(arrays))


def arrays_of(state: ModelState) -> ArrayRecord:
    """Raises `Malformed`."""
    return arrays_from_safetensors(state.arrays)


def starting_arrays(state: ModelState) -> ArrayRecord:
    """Raises `ConfigError` unless there are arrays, all finite."""
    try:
        arrays = arrays_of(state)
    except Malformed as error:
        raise ConfigError(str(error), path="job.start") from error
    if not arrays:
        raise ConfigError("there are no arrays to start from", path="job.start")
    for name, value in record_to_numpy(arrays).items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ConfigError(f"{name} holds NaN or infinite values", path="job.start")
    return arrays
