"""The device's examples: nothing lost, nothing twice, a split that stays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from edge_agent.storage import DataStore, load_file
from shared.errors import Corrupt, Malformed, NotFound, StorageFull
from shared.learning.examples import is_held_out, split_examples


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((count, 1, 3, 3), dtype=np.float32), rng.integers(0, 10, count)


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "data")


def test_what_goes_in_comes_out_in_order(store: DataStore) -> None:
    x, y = some(50)
    assert store.ingest(x[:30], y[:30]) == 30
    assert store.ingest(x[30:], y[30:]) == 20
    split = store.split()
    assert store.count() == len(split.train_y) + len(split.held_y) == 50
    held = is_held_out(x)
    assert np.array_equal(split.train_x, x[~held])
    assert np.array_equal(split.held_y, y[held])
    assert split.train_x.dtype == np.float32
    assert split.train_y.dtype == np.int64


def test_the_same_examples_again_change_nothing(store: DataStore) -> None:
    store.ingest(*some(10))
    store.ingest(*some(5, seed=1))
    assert store.ingest(*some(10)) == 0
    assert (store.count(), len(store.chunks())) == (15, 2)


def test_an_example_stays_on_its_side_however_the_store_grows(store: DataStore) -> None:
    store.ingest(*some(200))
    before = store.split()
    store.ingest(*some(300, seed=1))
    after = store.split()
    assert rows(before.held_x) <= rows(after.held_x)
    assert rows(before.train_x) <= rows(after.train_x)
    assert not rows(after.held_x) & rows(after.train_x)


def test_about_a_fifth_is_held_out() -> None:
    assert 0.17 < is_held_out(some(4000)[0]).mean() < 0.23


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_there_is_always_something_to_train_on_and_nothing_is_lost(count: int, seed: int) -> None:
    x, y = some(count, seed)
    split = split_examples(x, y)
    assert len(split.train_y) >= 1
    assert len(split.train_y) + len(split.held_y) == count


def test_an_empty_store_says_what_to_do(store: DataStore) -> None:
    with pytest.raises(NotFound, match="edge-agent ingest"):
        store.split()
    assert store.count() == 0


X, Y = some(6)
BAD = {
    "no examples": (X[:0], Y[:0]),
    "fewer labels than examples": (X, Y[:5]),
    "labels that are fractions": (X, Y.astype(np.float32)),
    "labels in a square": (X, Y.reshape(2, 3)),
    "a negative label": (X, -1 - Y),
    "an enormous label": (X, Y + 10**9),
    "NaN": (np.where(X > 0.5, np.nan, X), Y),
    "infinity": (np.where(X > 0.5, np.inf, X), Y),
    "bytes for pixels": ((X * 255).astype(np.uint8), Y),
    "a value beyond float32": (X.astype(np.float64) * 1e300, Y),
    "objects": (X.astype(object), Y),
    "empty examples": (np.zeros((6, 0), np.float32), Y),
    "another shape than what is stored": (np.zeros((6, 1, 2, 2), np.float32), Y),
}


@pytest.mark.parametrize(("x", "y"), BAD.values(), ids=BAD.keys())
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_examples_are_refused_with(x: np.ndarray, y: np.ndarray, store: DataStore) -> None:
    store.ingest(*some(10))
    before = [chunk.name for chunk in store.chunks()]
    with pytest.raises(Malformed):
        store.ingest(x, y)
    assert [chunk.name for chunk in store.chunks()] == before


def test_a_full_disk_leaves_the_store_as_it_was(
    store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ingest(*some(10))
    before = sorted(os.listdir(tmp_path / "data"))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        store.ingest(*some(10, seed=1))
    assert sorted(os.listdir(tmp_path / "data")) == before
    assert store.count() == 10


def test_a_damaged_chunk_is_told(store: DataStore) -> None:
    store.ingest(*some(10))
    path = store.chunks()[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="ingest"):
        store.split()


def test_what_a_crash_left_half_written_is_passed_over(store: DataStore, tmp_path: Path) -> None:
    store.ingest(*some(10))
    (tmp_path / "data" / ".00000001-ab.safetensors.0011.tmp").write_bytes(b"half")
    assert store.count() == 10


def test_examples_are_for_their_owner_alone(store: DataStore) -> None:
    store.ingest(*some(3))
    assert store.chunks()[0].path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_files_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    x, y = some(4)
    if name.endswith("npz"):
        np.savez(path, x=x, y=y)
    else:
        path.write_bytes(save({"x": x, "y": y}))
    read_x, read_y = load_file(path)
    assert np.array_equal(read_x, x)
    assert np.array_equal(read_y, y)


def test_a_pickle_in_an_archive_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object), y=np.array([1]))
    with pytest.raises(Malformed):
        load_file(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("name", "data"), [("a.npz", b"PK\x03\x04junk"), ("a.safetensors", b"x"), ("a.csv", b"1,2")])
def test_files_that_hold_something_else_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Malformed):
        load_file(tmp_path / name)


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_file(tmp_path / "a.npz")
