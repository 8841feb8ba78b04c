"""Releases: a checked bundle becomes stored files, a numbered row and signed metadata.

The database decides what exists; signed metadata follows it. A crash between the two is made good before anything else is said
about releases, so a device never hears of a release that is not whole, and a withdrawn one never stays unmarked.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.releases.ports import InspectBundle, ReleaseStore
from coordinator.releases.release import Release
from coordinator.releases.repository import Repository
from shared.blobs import READ_SIZE, Blobs
from shared.bundle import MAX_REPORT_BYTES
from shared.clock import Clock
from shared.errors import Malformed
from shared.ids import parse_name
from shared.signing.manifest import FileEntry, Manifest, Scalar


class ReleaseService:
    """Synchronous and safe to call from threads. `inspect` checks a bundle folder (`shared.bundle`)."""

    def __init__(
        self, store: ReleaseStore, repository: Repository, blobs: Blobs, inspect: InspectBundle, clock: Clock
    ) -> None:
        self._store = store
        self._repository = repository
        self._blobs = blobs
        self._inspect = inspect
        self._clock = clock
        self._lock = threading.RLock()
        self._in_step = False  # signed metadata says what the database says

    @property
    def first_root(self) -> bytes:
        """What devices trust from enrolment on."""
        return self._repository.first_root

    def publish(self, folder: Path, model: str, lineage: Mapping[str, Scalar] | None = None) -> Release:
        """Make the bundle in `folder` the model's next release. The same files again are the same release, unless that one
        was withdrawn.

        Raises `Malformed` and what `inspect` raises for a bundle that is not whole, `DigestMismatch` when a file changes
        meanwhile, `StorageFull`; then there is no such release, or, where only signing failed, it is signed before it is used.
        """
        parse_name(model)
        files = dict(self._inspect(folder))
        with self._lock:
            known = [release for release in self._store.releases() if release.model == model]
            for release in known:
                if not release.withdrawn and dict(release.manifest.files) == files:
                    self._sign_what_stands()
                    return release
            manifest = Manifest(
                model=model,
                release=max((release.number for release in known), default=0) + 1,
                files=files,
                created_at=float(self._clock.now()),
                lineage=dict(lineage or {}),
            )
            for name, entry in files.items():
                self._keep(folder / name, entry)
            self._blobs.write(manifest.to_bytes())
            release = Release(manifest, _report(self._blobs.read(files["report.json"].digest)))
            self._in_step = False
            self._store.add_release(release)
            self._sign_what_stands()
            return release

    def release(self, model: str, number: int = 0) -> Release:
        """Number 0 is the newest that was not withdrawn. Raises `NotFound`."""
        return self._store.release(model, number)

    def releases(self) -> list[Release]:
        return self._store.releases()

    def metadata(self) -> dict[str, bytes]:
        """The signed files that travel with a command. Raises what signing raises: then no command leaves."""
        with self._lock:
            self._sign_what_stands()
            return self._repository.bundle_of_metadata()

    def withdrawal_committed(self) -> None:
        """The database marks a release as withdrawn since now; sign that before the next command leaves."""
        with self._lock:
            self._in_step = False

    def refresh(self) -> tuple[str, ...]:
        """Sign again what would expire. Call often: it costs nothing while nothing is due."""
        with self._lock:
            self._sign_what_stands()
            return self._repository.refresh(self._clock.now())

    def rotate(self, role: str) -> int:
        """Replace a role's keys, and return the number of the root that names the new ones. Raises what `Repository.rotate`
        raises."""
        with self._lock:
            self._sign_what_stands()
            self._repository.rotate(role, self._clock.now())
            return self._repository.root_version

    def _sign_what_stands(self) -> None:
        if self._in_step:
            return
        now = self._clock.now()
        for release in self._store.releases():
            self._repository.publish(release.manifest, now)
            if release.withdrawn:
                self._repository.withdraw(release.model, release.number, now)
        self._in_step = True

    def _keep(self, path: Path, entry: FileEntry) -> None:
        """Copy a file into the blobs, in pieces. Raises `DigestMismatch` unless it still is what was inspected."""
        digest = entry.digest
        if self._blobs.has(digest):
            return
        with path.open("rb") as file:
            offset = self._blobs.received(digest)
            file.seek(offset)
            while data := file.read(READ_SIZE):
                self._blobs.append(digest, offset, data)
                offset += len(data)
        self._blobs.finish(digest)


def _report(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_REPORT_BYTES:
        raise Malformed(f"report.json is larger than {MAX_REPORT_BYTES} bytes")
    try:
        value = json.loads(data)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise Malformed("report.json is not JSON", detail=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise Malformed("report.json is not an object")
    return value
