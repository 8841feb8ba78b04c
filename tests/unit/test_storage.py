"""The device's examples: nothing lost, nothing twice, a split that stays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from structlog.testing import capture_logs

from edge_agent.storage import DataStore, load_file
from shared.errors import Conflict, Corrupt, Malformed, NotFound, StorageFull
from shared.learning.examples import is_held_out, split_examples


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((count, 1, 3, 3), dtype=np.float32), rng.integers(0, 10, count)


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


def count(store: DataStore) -> int:
    return sum(sum((one.labels or {}).values()) for one in store.contents())


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "data")


def test_what_goes_in_comes_out_in_order(store: DataStore) -> None:
    x, y = some(50)
    assert store.ingest(x[:30], y[:30]).added == 30
    assert store.ingest(x[30:], y[30:]).added == 20
    split = store.split()
    assert count(store) == len(split.train_y) + len(split.held_y) == 50
    held = is_held_out(x)
    assert np.array_equal(split.train_x, x[~held])
    assert np.array_equal(split.held_y, y[held])
    assert split.train_x.dtype == np.float32
    assert split.train_y.dtype == np.int64


def test_the_same_examples_again_change_nothing(store: DataStore) -> None:
    first = store.ingest(*some(10), source="monday.npz")
    store.ingest(*some(5, seed=1))
    again = store.ingest(*some(10), source="copy.npz")
    assert (again.added, again.chunk) == (0, first.chunk)
    assert (count(store), len(store.chunks())) == (15, 2)


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
    assert count(store) == 0


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
    assert count(store) == 10


def test_a_damaged_chunk_is_told_without_the_owners_file_and_folder(store: DataStore, tmp_path: Path) -> None:
    store.ingest(*some(10), source="maria.npz")
    path = store.chunks()[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="ingest it again") as told:
        store.split()
    assert store.chunks()[0].id in str(told.value)
    assert "maria" not in str(told.value)
    assert str(tmp_path) not in str(told.value)


def test_what_a_crash_left_half_written_is_passed_over(store: DataStore, tmp_path: Path) -> None:
    store.ingest(*some(10))
    (tmp_path / "data" / ".00000001-ab.safetensors.0011.tmp").write_bytes(b"half")
    assert count(store) == 10


def test_what_a_crash_left_half_written_is_removed_but_not_what_is_being_written(
    store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.forget_halves()  # no folder yet
    left = tmp_path / "data" / ".00000001-ab.safetensors.0011.tmp"
    real, during = os.fsync, []

    def sweep(handle: int) -> None:
        store.forget_halves()
        during.append(sorted(path.suffix for path in left.parent.iterdir()))
        real(handle)

    left.parent.mkdir()
    left.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sweep)
        store.ingest(*some(10))
    assert during[0] == [".tmp", ".tmp"]
    store.forget_halves()
    assert [path.name for path in left.parent.iterdir()] == [store.chunks()[0].name]


def test_examples_are_for_their_owner_alone(store: DataStore) -> None:
    store.ingest(*some(3))
    assert store.chunks()[0].path.stat().st_mode & 0o077 == 0


def test_what_a_model_cannot_take_is_left_out_and_told(store: DataStore) -> None:
    x, y = some(40)
    y[[3, 7]] = 77
    chunk = store.ingest(x, y, source="monday.npz").chunk
    store.ingest(*some(20, seed=1))
    with capture_logs() as logs:
        split = store.split(shape=(1, 3, 3), classes=10)
    found = np.concatenate([split.train_x, split.held_x])
    assert len(found) == 58
    assert not rows(found) & rows(x[[3, 7]])
    assert max(split.train_y.max(), split.held_y.max()) < 10
    assert [{**one, "event": "", "log_level": ""} for one in logs] == [
        {
            "event": "",
            "log_level": "",
            "file": "monday.npz",
            "id": chunk.id,
            "examples": 2,
            "reason": "labels up to 77, the model has 10 classes",
        }
    ]


def test_with_nothing_left_the_error_names_what_is_there_but_not_the_owners_file(store: DataStore) -> None:
    first = store.ingest(*some(10), source="maria.npz").chunk
    store.ingest(*some(10, seed=1))
    with pytest.raises(
        Conflict, match=r"the first of 2 files, has shape \[1, 3, 3\], the model takes \[3, 8, 8\];"
    ) as refused:
        store.split(shape=(3, 8, 8), classes=10)
    assert first.id in refused.value.message
    assert "maria" not in refused.value.message
    with pytest.raises(Conflict, match="labels up to 8, the model has 0 classes"):
        store.split(classes=0)


def test_a_file_is_removed_by_its_id_or_its_own_name(store: DataStore) -> None:
    first = store.ingest(*some(10), source="monday.npz").chunk
    second = store.ingest(*some(10, seed=1), source="tuesday 1.npz").chunk
    assert (first.source, second.source) == ("monday.npz", "tuesday_1.npz")
    assert store.remove("monday.npz") == first
    assert store.remove(second.id) == second
    assert store.chunks() == []
    for name in (second.id, "", "0", ".", "/"):
        with pytest.raises(NotFound, match="data list"):
            store.remove(name)


@pytest.mark.parametrize(
    ("ingested", "typed"),
    [
        ("tuesday 1.npz", "tuesday 1.npz"),
        ("tuesday 1.npz", "tuesday_1.npz"),
        ("my photos (2).npz", "my photos (2).npz"),
        ("b.npz", "./b.npz"),
        ("my photos (2).npz", "/home/maria/my photos (2).npz"),
        ("ü" * 80 + ".npz", "ü" * 80 + ".npz"),
    ],
)
def test_a_file_is_removed_by_what_was_typed_to_ingest_it(ingested: str, typed: str, store: DataStore) -> None:
    chunk = store.ingest(*some(10), source=ingested).chunk
    store.ingest(*some(10, seed=1))  # of no file
    assert store.remove(typed) == chunk


def test_a_name_that_two_files_have_removes_neither(store: DataStore) -> None:
    chunks = [store.ingest(*some(10, seed), source="a.npz").chunk for seed in (0, 1)]
    with pytest.raises(Conflict, match=f"{chunks[0].id}, {chunks[1].id}"):
        store.remove("a.npz")
    assert store.chunks() == chunks


def test_a_file_that_goes_while_it_is_read_is_passed_over(store: DataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = store.ingest(*some(10)).chunk
    store.ingest(*some(20, seed=1))
    before = store.chunks()
    store.remove(gone.id)
    monkeypatch.setattr(store, "chunks", lambda: before)  # listed just before it went
    assert gone.read() is None
    split = store.split()
    assert len(split.train_y) + len(split.held_y) == count(store) == 20


def test_what_is_there_is_listed_also_when_it_is_damaged(store: DataStore) -> None:
    x, _ = some(6)
    whole, damaged = store.ingest(x, np.array([1, 1, 2, 7, 7, 7])).chunk, store.ingest(*some(5, seed=1)).chunk
    damaged.path.write_bytes(b"x")
    first, second = store.contents()
    assert (first.chunk, first.labels, first.shape) == (whole, {1: 2, 2: 1, 7: 3}, (1, 3, 3))
    assert first.size_bytes == whole.path.stat().st_size
    assert (second.chunk, second.labels, second.size_bytes) == (damaged, None, 1)
    store.remove(damaged.id)
    assert [one.chunk for one in store.contents()] == [whole]


def test_of_several_files_all_are_good_or_none_is_taken(store: DataStore, tmp_path: Path) -> None:
    for name, width in (("a.npz", 3), ("b.npz", 4)):
        np.savez(tmp_path / name, x=np.ones((2, 1, width, width), np.float32), y=np.array([0, 1]))
    with pytest.raises(Malformed, match=r"b\.npz: examples have shape \[1, 4, 4\].*data remove"):
        store.ingest_files([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert store.chunks() == []
    assert [one.chunk.source for one in store.ingest_files([tmp_path / "b.npz"])] == ["b.npz"]


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
    np.save(tmp_path / "b.npy", np.array([Bomb()], dtype=object))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"\x80\x04N.")  # a pickled None
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(Malformed, match=rf"^{name}.*numpy\.savez") as refused:
            load_file(tmp_path / name)
        assert "allow" not in str(refused.value), "NumPy's advice is to load it unsafely"
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("name", "data"), [("a.npz", b"PK\x03\x04junk"), ("a.safetensors", b"x"), ("a.csv", b"1,2")])
def test_files_that_hold_something_else_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Malformed):
        load_file(tmp_path / name)


def test_whole_numbers_for_pixels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    x, y = some(4)
    np.savez(tmp_path / "a.npz", x=(x * 255).astype(np.uint8), y=y)
    with pytest.raises(Malformed, match=r"^a\.npz: x is uint8: .* x\.astype\(numpy\.float32\) / 255"):
        load_file(tmp_path / "a.npz")


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_file(tmp_path / "a.npz")
