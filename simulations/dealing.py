"""Who gets which samples of a real set: a public split for the coordinator, a part of its own for each device, and of that part
some that no device trains on, for live requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from simulations import data, partition
from simulations.data import Dataset
from simulations.packages import Say, silent
from simulations.shards import write_shard


@dataclass(frozen=True)
class DataChoice:
    set: str = "mnist-5k"
    alpha: float = 0.5
    natural: bool = False
    public_share: float = 0.1
    live_share: float = 0.2  # of each device's part: never trained on, asked about by the load generator
    minimum: int = 40  # samples a device has at least
    limit: int = 0  # take so many samples of the set; 0: all

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.minimum < 2 or self.limit < 0:
            raise ValueError("alpha is positive, minimum at least 2, limit not negative")
        if not (0 < self.public_share < 1 and 0 < self.live_share < 1):
            raise ValueError("public_share and live_share lie between 0 and 1")


@dataclass(frozen=True)
class Shares:
    """`public` and `live` are files; what devices own is held in memory until they have ingested it."""

    public: Path
    own: dict[str, Dataset]
    live: dict[str, Path]
    shape: tuple[int, ...]  # of one sample
    classes: tuple[str, ...]


def deal(names: Sequence[str], folder: Path, choice: DataChoice, *, seed: int, say: Say = silent) -> Shares:
    """The same for the same seed. Raises `ConfigError` for a split that the set does not allow, and what `data.load` raises where
    the set is not here and cannot be fetched.
    """
    return deal_from(data.load(choice.set, say=say), names, folder, choice, seed=seed)


def deal_from(samples: Dataset, names: Sequence[str], folder: Path, choice: DataChoice, *, seed: int) -> Shares:
    """`deal`, for samples that are here already."""
    rng = np.random.default_rng(seed)
    if choice.limit:
        samples = samples.take(rng.permutation(len(samples))[: choice.limit])
    public, private = partition.public_split(samples.y, choice.public_share, rng)
    public_file = folder / "public.safetensors"
    write_shard(public_file, samples.take(public))
    own, live = {}, {}
    for name, part in zip(names, _parts(samples.take(private), len(names), choice, rng), strict=True):
        mine, asked = partition.holdout(private[part], choice.live_share, rng)
        own[name] = samples.take(mine)
        live[name] = folder / f"{name}.live.safetensors"
        write_shard(live[name], samples.take(asked))
    return Shares(public_file, own, live, tuple(samples.x.shape[1:]), samples.classes)


def _parts(private: Dataset, devices: int, choice: DataChoice, rng: np.random.Generator) -> tuple[partition.Rows, ...]:
    if not choice.natural:
        return partition.dirichlet_split(private.y, devices, choice.alpha, rng, minimum=choice.minimum)
    if private.groups is None:
        raise ConfigError(f"{choice.set} does not say whose its samples are: use alpha", path="data.natural")
    return partition.natural_split(private.groups, devices)
