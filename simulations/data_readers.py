"""From a package's files to plain arrays, one function a file format. Images stay uint8: `data.load` scales them.

A reader gets the files by name and returns `x`, `y`, `classes` and, where the set has them, `groups` and `test_from`;
a series returns `hours`, `values`, `sensors`. Each raises `Malformed` or `ValueError` for a file that is not what it
should be.
"""

import csv
import gzip
import io
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import Malformed
from simulations.pickled_arrays import read_arrays

Arrays = dict[str, npt.NDArray[Any]]
_DIGITS = np.array(list("0123456789"))
_EPOCH = date(1970, 1, 1).toordinal()
_WINDOW, _STEP = 100, 50  # samples at 50 Hz: 2 s, half overlapping


def _only(files: Mapping[str, bytes]) -> bytes:
    (content,) = files.values()
    return content


def labelled_rows(files: Mapping[str, bytes]) -> Arrays:
    """Gzipped CSV of 784 pixels and a label a row; sorted by class, so shuffled here, the same way each time."""
    text = gzip.decompress(_only(files)).decode("ascii")
    rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != 785:
        raise Malformed("expected rows of 784 pixels and a label")
    rows = rows[np.random.default_rng(0).permutation(len(rows))].astype(np.uint8)
    return {"x": rows[:, :-1].reshape(-1, 1, 28, 28), "y": rows[:, -1], "classes": _DIGITS}


def idx_files(names: tuple[str, ...], classes: tuple[str, ...]) -> Callable[[Mapping[str, bytes]], Arrays]:
    """Gzipped IDX files in the order train images, train labels, test images, test labels."""

    def read(files: Mapping[str, bytes]) -> Arrays:
        train_x, train_y, test_x, test_y = (_idx(gzip.decompress(files[name])) for name in names)
        x = np.concatenate([train_x, test_x])[:, None]
        y = np.concatenate([train_y, test_y])
        return {"x": x, "y": y, "classes": np.array(classes), "test_from": np.array(len(train_y))}

    return read


def _idx(content: bytes) -> npt.NDArray[np.uint8]:
    """IDX of unsigned bytes: 0, 0, type 8, number of dimensions, then each as big-endian 32 bits, then the values."""
    if content[:3] != b"\0\0\x08":
        raise Malformed("not an IDX file of bytes")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def pickled_images(files: Mapping[str, bytes]) -> Arrays:
    """Three pairs (images float32 in 256ths, labels), as a gzipped pickle: train, validation, test."""
    parts = read_arrays(gzip.decompress(_only(files)))
    images = np.concatenate([part[0] for part in parts]).reshape(-1, 1, 28, 28)
    labels = np.concatenate([part[1] for part in parts])
    x = np.rint(images * np.float32(256)).astype(np.uint8)
    return {"x": x, "y": labels, "classes": _DIGITS, "test_from": np.array(len(labels) - len(parts[-1][1]))}


def digit_sheet(files: Mapping[str, bytes]) -> Arrays:
    """One PNG of 50 rows of 100 digits 20x20; five rows a class."""
    from matplotlib.image import imread

    sheet = np.asarray(imread(io.BytesIO(_only(files)), format="png"))
    sheet = sheet if sheet.ndim == 2 else sheet[..., 0]
    if sheet.shape != (1000, 2000):
        raise Malformed(f"expected a sheet of 1000x2000 pixels, found {sheet.shape}")
    x = np.rint(sheet * 255).astype(np.uint8).reshape(50, 20, 100, 20).swapaxes(1, 2).reshape(-1, 1, 20, 20)
    order = np.random.default_rng(0).permutation(len(x))
    return {"x": x[order], "y": np.repeat(np.arange(10), 500)[order], "classes": _DIGITS}


def watch_windows(files: Mapping[str, bytes]) -> Arrays:
    """Recordings of (T, 6) with exercise and person, cut into windows (6, 1, 100). `groups` is the person.

    The file is an .npy that holds a pickled dict, hence `pickled_arrays`.
    """
    content = _only(files)
    if content[:8] != b"\x93NUMPY\x01\0":
        raise Malformed("not an .npy file of version 1")
    start = 10 + int.from_bytes(content[8:10], "little")
    record = read_arrays(content[start:])
    pieces, labels, people = [], [], []
    for signal, label, person in zip(record["X"], record["y"], record["subject"], strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW, axis=0)[::_STEP]
        pieces.append(windows.astype(np.float32))
        labels += [int(label)] * len(windows)
        people += [int(person)] * len(windows)
    x = np.concatenate(pieces)[:, :, None, :]
    return {"x": x, "y": np.array(labels), "classes": np.array(record["y_labels"]), "groups": np.array(people)}


def hourly_counts(files: Mapping[str, bytes]) -> Arrays:
    """CSV: date, hour as "6:00-6:59", year, one column a sensor; empty where nothing was counted."""
    lines = csv.reader(io.StringIO(_only(files).decode("utf-8")))
    header = next(lines)
    if header[:3] != ["date", "hour", "year"]:
        raise Malformed("expected the columns date, hour, year and one a sensor")
    hours, values = [], []
    for row in lines:
        day = date.fromisoformat(row[0]).toordinal() - _EPOCH
        hours.append(day * 24 + int(row[1].split(":")[0]))
        values.append([float(cell) if cell else np.nan for cell in row[3:]])
    order = np.argsort(hours, kind="stable")
    return {
        "hours": np.array(hours, dtype=np.int64)[order],
        "values": np.array(values, dtype=np.float32)[order],
        "sensors": np.array(header[3:]),
    }
