"""Who holds which samples: splits that are complete, disjoint and reproducible from a seeded generator."""

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError

Rows = npt.NDArray[np.int64]


def public_split(labels: npt.NDArray[np.int64], share: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows that the coordinator may see (`share` of each class, at least one of each), and the rest, both shuffled.

    Raises `ConfigError` unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ConfigError("the public share lies between 0 and 1", path="public_share")
    public: list[Rows] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        public.append(rows[: max(1, round(share * len(rows)))])
    chosen = np.concatenate(public)
    rest = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return rng.permutation(chosen), rng.permutation(rest)


def dirichlet_split(
    labels: npt.NDArray[np.int64], devices: int, alpha: float, rng: np.random.Generator, *, minimum: int = 1
) -> tuple[Rows, ...]:
    """Rows for each device: each class is dealt in shares drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv
    1909.06335).

    A small alpha gives devices few classes. Devices left with fewer than `minimum` rows get some, drawn at random,
    from the one that has most. Raises `ConfigError` when there are not enough rows or a value is impossible.
    """
    if devices < 1 or minimum < 0:
        raise ConfigError("a split has at least one device", path="devices")
    if not alpha > 0:
        raise ConfigError("the Dirichlet parameter is positive", path="alpha")
    if devices * minimum > len(labels):
        raise ConfigError(f"{len(labels)} samples cannot give {devices} devices {minimum} each", path="minimum")
    parts: list[list[Rows]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    held = [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]
    _level_up(held, minimum, rng)
    return tuple(rng.permutation(rows) for rows in held)


def _level_up(held: list[Rows], minimum: int, rng: np.random.Generator) -> None:
    for device in range(len(held)):
        while len(held[device]) < minimum:
            richest = max(range(len(held)), key=lambda other: len(held[other]))
            gift = min(minimum - len(held[device]), len(held[richest]) - minimum)
            rows = rng.permutation(held[richest])
            held[device] = np.concatenate([held[device], rows[:gift]])
            held[richest] = rows[gift:]


def natural_split(groups: npt.NDArray[np.int64], devices: int) -> tuple[Rows, ...]:
    """Whole groups (people, sensors) to devices, the largest first to the device that has least.

    Raises `ConfigError` when there are fewer groups than devices.
    """
    names, sizes = np.unique(groups, return_counts=True)
    if not 1 <= devices <= len(names):
        raise ConfigError(f"{len(names)} groups can be split over 1 to {len(names)} devices", path="devices")
    held: list[list[int]] = [[] for _ in range(devices)]
    load = [0] * devices
    for place in np.argsort(-sizes, kind="stable"):
        device = load.index(min(load))
        held[device].append(int(names[place]))
        load[device] += int(sizes[place])
    return tuple(np.flatnonzero(np.isin(groups, mine)) for mine in held)


def holdout(rows: Rows, share: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """(the rest, held out) of one device's rows; at least one row is held out, and one kept, when there are two."""
    if not 0 < share < 1:
        raise ConfigError("the held-out share lies between 0 and 1", path="holdout_share")
    if len(rows) < 2:
        return rows, rows[:0]
    shuffled = rng.permutation(rows)
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    return shuffled[count:], shuffled[:count]
