"""What a job reads on the coordinator's machine: paths in its file, and what the files hold."""

import os
import re
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy
from safetensors.numpy import save

from coordinator.rounds.inputs import PUBLIC_DATA, check_public, read_arrays, require_fit, with_whole_paths
from shared.errors import ConfigError
from shared.learning.examples import Outline
from shared.learning.spec import InputSchema
from simulations.jobfile import to_toml

FOLDER = Path("/srv/jobs")
SCHEMA = InputSchema((1, 2, 2), ("a", "b", "c"))
WRITTEN: dict[str, tuple[str, str]] = {
    "in a table": ('[public]\ndata = "p.npz"  # ours\n', '[public]\ndata = "/srv/jobs/p.npz"  # ours\n'),
    "in an inline table": ('public = { data = "p.npz" }', 'public = { data = "/srv/jobs/p.npz" }'),
    "with a dot": ('public.data = "p.npz"', 'public.data = "/srv/jobs/p.npz"'),
    "between single quotes": ("public.data = 'p.npz'", 'public.data = "/srv/jobs/p.npz"'),
    "from a folder above": ('public.data = "../p.npz"', 'public.data = "/srv/p.npz"'),
    "beside the same word": (
        'name = "x" # "x"\nstart.arrays_file = "x"\n',
        'name = "x" # "x"\nstart.arrays_file = "/srv/jobs/x"\n',
    ),
    "both at once": (
        'start.arrays_file = "x"\npublic.data = "x"\n',
        'start.arrays_file = "/srv/jobs/x"\npublic.data = "/srv/jobs/x"\n',
    ),
    "beside a value that is not a number": (
        'train.lr = nan\npublic.data = "x"',
        'train.lr = nan\npublic.data = "/srv/jobs/x"',
    ),
}
AS_IT_WAS: dict[str, str] = {
    "a whole path": 'public.data = "/data/p.npz"',
    "no path": 'name = "x"',
    "an empty path": 'public.data = ""',
    "a path that is no text": "public.data = 7",
    "a table that is none": 'public = "x"',
    "no TOML": "public = ",
}


@pytest.mark.parametrize(("text", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_a_relative_path_is_meant_from_the_job_files_folder_and_all_else_stays(text: str, expected: str) -> None:
    assert with_whole_paths(text, FOLDER) == expected


@pytest.mark.parametrize("text", AS_IT_WAS.values(), ids=AS_IT_WAS)
def test_a_file_without_relative_paths_stays_as_it_was(text: str) -> None:
    assert with_whole_paths(text, FOLDER) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), min_size=1))
def test_whatever_the_path_is_the_file_says_it_whole(path: str) -> None:
    found = tomllib.loads(with_whole_paths(to_toml({"name": path, "public": {"data": path}}), FOLDER))
    whole = path if Path(path).is_absolute() else os.path.abspath(FOLDER / path)
    assert found == {"name": path, "public": {"data": whole}}


def test_a_path_that_is_written_in_escapes_must_be_written_whole() -> None:
    with pytest.raises(ConfigError, match=r"job.public.data: write the whole path, /srv/jobs/aé"):
        with_whole_paths('public.data = "a\\u00e9"', FOLDER)


# ---- what the files hold


def examples(file: Path, x: object, y: object) -> Path:
    np.savez(file, x=np.asarray(x), y=np.asarray(y))
    return file


def cut(folder: Path) -> Path:
    file = examples(folder / "p.npz", np.zeros((4, 1, 2, 2), np.float32), [0, 1, 2, 0])
    file.write_bytes(file.read_bytes()[:200])
    return file


def link(folder: Path) -> Path:
    (folder / "p.npz").symlink_to(folder / "gone.npz")
    return folder / "p.npz"


def bomb(folder: Path) -> Path:
    """Headers alone: whoever began to unpack it would say that it is cut."""
    with zipfile.ZipFile(folder / "p.npz", "w") as archive:
        for name, shape, kind in (("x", (400_000, 1_000, 2), "<f4"), ("y", (400_000,), "<i8")):
            with archive.open(f"{name}.npy", "w") as file:
                npy.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return folder / "p.npz"


def empty(folder: Path) -> Path:
    """As the files of /proc say they are."""
    (folder / "p.npz").touch()
    return folder / "p.npz"


PICTURES = np.zeros((4, 1, 2, 2), np.float32)
USELESS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "p.npz", "there is no file .*p.npz on the coordinator's machine"),
    "a link to nothing": (link, "there is no file"),
    "a folder": (lambda folder: folder, "there is no file"),
    "a relative path": (lambda folder: Path("p.npz"), "write the whole path of a file on the coordinator's machine"),
    "a file that was cut": (cut, "p.npz"),
    "no labels": (lambda folder: examples(folder / "p.npz", PICTURES, [0.5] * 4), "integer label"),
    "too few labels": (lambda folder: examples(folder / "p.npz", PICTURES, [0, 1]), "x holds one float array"),
    "values that are not finite": (lambda folder: examples(folder / "p.npz", PICTURES + np.nan, [0] * 4), "NaN"),
    "more than fits into memory": (bomb, "p.npz: its examples take 3.2 GB unpacked: at most 1.1 GB"),
    "an empty file": (empty, "p.npz is empty"),
    "labels below zero": (lambda folder: examples(folder / "p.npz", PICTURES, [-1] * 4), "labels"),
}


@pytest.mark.parametrize(("make", "says"), USELESS.values(), ids=USELESS)
def test_public_data_that_is_none_is_refused_with_the_key(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_public(str(make(tmp_path)))
    assert caught.value.path == PUBLIC_DATA


@pytest.mark.parametrize(
    ("shape", "labels"), [((1, 2, 3), 3), ((4,), 3), ((1, 2, 2), 4)], ids=["wider", "flat", "a class too many"]
)
def test_public_data_that_the_model_does_not_take_is_refused(shape: tuple[int, ...], labels: int) -> None:
    found = Outline(shape, labels - 1)
    with pytest.raises(ConfigError, match=re.escape("the model takes [1, 2, 2] and 3 classes")):
        require_fit(found, SCHEMA, "p.npz", where=PUBLIC_DATA)


def test_public_data_with_fewer_labels_than_classes_fits(tmp_path: Path) -> None:
    found = check_public(str(examples(tmp_path / "p.npz", PICTURES, [0, 1, 0, 1])))
    require_fit(found, SCHEMA, "p.npz")


@pytest.mark.parametrize("name", ["gone", ".", "relative", "/dev/zero", "/etc/passwd", "/proc/self/status"])
def test_arrays_are_read_from_a_whole_path_of_a_file_alone(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"job.start.arrays_file"):
        read_arrays(name if name == "relative" else str(tmp_path / name))


ARRAYS = save({"w": np.ones((2, 3), np.float32)})
NO_ARRAYS = {
    "another file": b"root:x:0:0:root:/root:/bin/sh\n",
    "cut": ARRAYS[:-1],
    "longer than it says": ARRAYS + b"x",
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a header that is no object": (2).to_bytes(8, "little") + b"[]",
    "nested without end": (2_000_000).to_bytes(8, "little") + b"[" * 2_000_000,
    "nothing": b"",
}


@pytest.mark.parametrize("data", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_is_no_safetensors_file_is_not_read(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(data)
    monkeypatch.delattr(Path, "read_bytes")
    with pytest.raises(ConfigError, match=r"job.start.arrays_file: .*w.safetensors"):
        read_arrays(str(file))


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(ARRAYS)
    assert read_arrays(str(file)) == ARRAYS


def test_a_link_to_what_the_kernel_makes_up_is_not_read(tmp_path: Path) -> None:
    link = tmp_path / "w.safetensors"
    link.symlink_to("/proc/self/status")
    with pytest.raises(ConfigError, match="empty"):
        read_arrays(str(link))
