"""What a device believes about releases: The Update Framework (specification 1.0), by python-tuf.

Layout that publisher and device agree on: consistent snapshots; one top-level `targets` role; a release is the target
`MODEL/RELEASE/manifest.json` with its SHA-256 and length; a withdrawn release stays listed with `custom: {"withdrawn": true}`.
Metadata files arrive in the command itself, by their repository names (`2.root.json`, `timestamp.json`, `7.snapshot.json`,
`7.targets.json`); there is nothing else to download.

The state that was trusted last is kept on disk, so rollback and freeze are refused across restarts. An update works on a copy
that replaces the old state by one rename, after everything verified; a refusal changes nothing.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    StorageError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from shared.errors import Corrupt, Malformed, Untrusted
from shared.files import fsync_folder, storage_errors
from shared.ids import Digest, parse_digest

WITHDRAWN = "withdrawn"
MAX_METADATA_BYTES = 1_000_000
_LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=0,
    root_max_length=100_000,
    timestamp_max_length=16_384,
    snapshot_max_length=100_000,
    targets_max_length=MAX_METADATA_BYTES,
)


def target_path(model: str, release: int) -> str:
    """Where a release stands among the TUF targets."""
    return f"{model}/{release}/manifest.json"


@dataclass(frozen=True)
class Target:
    """A signed release: the digest and size of its manifest, and whether it was withdrawn."""

    digest: Digest
    length: int
    withdrawn: bool


@dataclass(frozen=True)
class Catalogue:
    """Everything that verified metadata says about releases."""

    targets: Mapping[str, Target]

    def find(self, model: str, release: int) -> Target:
        """Raises `Untrusted` for a release that nobody signed."""
        try:
            return self.targets[target_path(model, release)]
        except KeyError:
            raise Untrusted(f"release {model}:{release} is not in the signed metadata") from None

    def check_install(self, model: str, wanted: int, current: int) -> Target:
        """The target to install where release `current` (0: none) serves now.

        Raises `Untrusted` for a withdrawn release, and for an older one unless every newer one up to `current` was withdrawn.
        """
        target = self.find(model, wanted)
        if target.withdrawn:
            raise Untrusted(f"release {model}:{wanted} was withdrawn")
        standing = [release for release in range(wanted + 1, current + 1) if not self.is_withdrawn(model, release)]
        if standing:
            raise Untrusted(f"release {model}:{wanted} would roll back {model}:{standing[-1]}, which was not withdrawn")
        return target

    def is_withdrawn(self, model: str, release: int) -> bool:
        target = self.targets.get(target_path(model, release))
        return target is not None and target.withdrawn


class Trust:
    """The trusted metadata in `folder`, which is one process's alone. `root` is the first root, learned at enrolment; later roots
    must be signed by it."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self._folder = folder
        self._root = root
        self._current = folder / "current"
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def catalogue(self) -> Catalogue | None:
        """What was trusted last, even if it has expired since. None: nothing yet. Raises `Corrupt`."""
        if not self._current.exists():
            return None
        try:
            root = Metadata[Root].from_file(str(self._current / "root.json")).signed
            targets = Metadata[Targets].from_file(str(self._current / "targets.json"))
            root.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
            return _catalogue(targets.signed)
        except (RepositoryError, StorageError, Malformed, OSError, ValueError, RecursionError) as error:
            raise Corrupt(
                f"the release metadata in {self._folder} is damaged; it is replaced with the next order",
                detail=str(error)[:200],
            ) from error

    def update(self, metadata: Mapping[str, bytes]) -> Catalogue:
        """Verify metadata and, if it holds, trust it from now on.

        Raises `Untrusted`, which says which attack it looks like, or `StorageFull`; the trusted state is then as before.
        """
        candidate = self._folder / f"trusted.{secrets.token_hex(6)}"
        with storage_errors("release metadata"):
            try:
                if self._current.exists():
                    shutil.copytree(self._current.resolve(), candidate, symlinks=True)
                else:
                    candidate.mkdir()
                catalogue = self._verify(candidate, metadata)
                self._replace(candidate)
            except BaseException:
                shutil.rmtree(candidate, ignore_errors=True)
                raise
        return catalogue

    def _verify(self, folder: Path, metadata: Mapping[str, bytes]) -> Catalogue:
        try:
            updater = Updater(str(folder), "shoal:///", fetcher=_Given(metadata), config=_LIMITS, bootstrap=self._root)
            updater.refresh()
            return _catalogue(Metadata[Targets].from_file(str(folder / "targets.json")).signed)
        except (RepositoryError, DownloadError, Malformed, ValueError, RecursionError) as error:
            raise Untrusted(f"release metadata refused: {_explain(error)}", detail=str(error)[:200]) from error

    def _sweep(self) -> None:
        """Remove what a crash in the middle of an update left behind."""
        current = self._current.resolve()
        for path in self._folder.glob("trusted.*"):
            if path.resolve() != current:
                shutil.rmtree(path, ignore_errors=True)
        for path in self._folder.glob("current.*"):
            path.unlink(missing_ok=True)

    def _replace(self, candidate: Path) -> None:
        for path in candidate.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fsync_folder(candidate)
        old = self._current.resolve() if self._current.exists() else None
        link = self._folder / f"current.{secrets.token_hex(6)}"
        link.symlink_to(candidate.name)
        link.replace(self._current)
        fsync_folder(self._folder)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _catalogue(targets: Targets) -> Catalogue:
    """Raises `Malformed`."""
    return Catalogue({path: _target(target) for path, target in targets.targets.items()})


def _target(target: TargetFile) -> Target:
    """Raises `Malformed`. Anything but an explicit `false` or absence of the mark means withdrawn."""
    custom = target.custom if isinstance(target.custom, dict) else {}
    withdrawn = custom.get(WITHDRAWN, False) is not False
    return Target(digest=parse_digest(target.hashes.get("sha256", "")), length=target.length, withdrawn=withdrawn)


class _Given(FetcherInterface):
    """Hands out the files that came with the command."""

    def __init__(self, metadata: Mapping[str, bytes]) -> None:
        self._metadata = metadata

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name not in self._metadata:
            raise DownloadHTTPError(f"{name} did not come with the command", 404)
        return iter((self._metadata[name],))


def _explain(error: Exception) -> str:
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (ExpiredMetadataError, "it has expired, so it may be frozen in the past"),
        (EqualVersionNumberError, "its version was seen before"),
        (BadVersionNumberError, "its version is older than what is trusted, or parts do not belong together"),
        (LengthOrHashMismatchError, "parts do not belong together"),
        (UnsignedMetadataError, "it is not signed by enough trusted keys"),
        (DownloadHTTPError, "a part is missing"),
        (DownloadError, "a part is too large or unreadable"),
    )
    return next((text for kind, text in reasons if isinstance(error, kind)), "it is not valid metadata")
