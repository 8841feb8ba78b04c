"""Files of examples by their headers and in pieces: the same verdict as reading them whole, in little memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from shared.errors import Malformed
from shared.learning.examples import Outline, load_file, outline_of_file
from shared.learning.headers import MAX_HEADER, check_safetensors

ROOM = 1 << 30
X, Y = np.random.default_rng(0).random((6, 1, 3, 3), dtype=np.float32), np.arange(6)


def write(file: Path, x: np.ndarray, y: np.ndarray) -> Path:
    if file.suffix == ".npz":
        np.savez_compressed(file, x=x, y=y)
    else:
        file.write_bytes(save({"x": x, "y": y}, {"made by": "a test"}))
    return file


GOOD = {
    "as they are kept": (X, Y),
    "half floats and small labels": (X.astype(np.float16), Y.astype(np.uint8)),
    "doubles": (X.astype(np.float64), Y.astype(np.int32)),
    "a row each": (X.reshape(6, 9), Y),
}
BAD = {
    "no examples": (X[:0], Y[:0]),
    "fewer labels than examples": (X, Y[:5]),
    "labels that are fractions": (X, Y.astype(np.float32)),
    "labels in a square": (X, Y.reshape(2, 3)),
    "a negative label": (X, -1 - Y),
    "an enormous label": (X, Y + 10**9),
    "NaN": (np.where(X > 0.5, np.nan, X), Y),
    "bytes for pixels": ((X * 255).astype(np.uint8), Y),
    "a value beyond float32": (X.astype(np.float64) * 1e300, Y),
    "empty examples": (np.zeros((6, 0), np.float32), Y),
}


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize(("x", "y"), GOOD.values(), ids=GOOD)
def test_good_examples_have_an_outline(name: str, x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    file = write(tmp_path / name, x, y)
    assert outline_of_file(file, max_bytes=ROOM) == Outline(x.shape[1:], 5)
    assert load_file(file)[0].shape == x.shape


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize(("x", "y"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_examples_are_refused_in_the_words_of_who_reads_them_whole(
    name: str, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    file = write(tmp_path / name, x, y)
    with pytest.raises(Malformed, match=f"^{name}: ") as whole:
        load_file(file)
    with pytest.raises(Malformed) as outlined:
        outline_of_file(file, max_bytes=ROOM)
    assert str(outlined.value) == str(whole.value)


def test_a_small_file_that_unpacks_to_much_takes_little_memory(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", np.zeros((64, 1, 512, 512), np.float32), np.zeros(64, np.int64))
    assert file.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        assert outline_of_file(file, max_bytes=ROOM).shape == (1, 512, 512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20, "it unpacks to 64 MiB"


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_examples_of_more_than_the_limit_are_refused_with_both_figures(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, np.zeros((100, 1, 500, 500), np.float32), np.zeros(100, np.int64))
    with pytest.raises(Malformed, match=r"^a\.\w+: its examples take 0\.1 GB unpacked: at most 0\.0 GB"):
        outline_of_file(file, max_bytes=1 << 20)


def test_a_pickle_in_an_archive_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", X.astype(object), Y)
    with pytest.raises(Malformed, match="pickled"):
        outline_of_file(file, max_bytes=ROOM)


def test_arrays_that_end_before_their_header_says_are_refused(tmp_path: Path) -> None:
    whole = save({"x": X, "y": Y})
    lying = whole.replace(b"[6,1,3,3]", b"[6,9,3,3]")
    (tmp_path / "a.safetensors").write_bytes(lying)
    with pytest.raises(Malformed, match="ends before its header says"):
        outline_of_file(tmp_path / "a.safetensors", max_bytes=ROOM)


@pytest.mark.parametrize("data", [b"", b"\x02", b"{}" * 8, MAX_HEADER.to_bytes(8, "little") + b"{}"])
def test_what_has_no_header_is_no_safetensors_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Malformed, match="not a safetensors file"):
        check_safetensors(tmp_path / "a")
