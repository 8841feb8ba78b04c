"""What the demo needs besides the fleet: real digits dealt to devices, a first model, and a ruined one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from coordinator.builder import Builder, Initial, MakeBundle
from coordinator.rounds.ports import ModelState
from shared.settings import Scalar
from simulations import data, partition
from simulations.data import Dataset
from simulations.shards import write_shard

PUBLIC_SHARE = 0.08  # of each class: what the coordinator may see
LIVE_SHARE = 0.2  # of each device's part: never trained on, asked about by the load generator
FIRST_EPOCHS = 3  # the first model is deliberately unfinished
_ALPHA = 0.5
_MINIMUM = 120


@dataclass(frozen=True)
class Shares:
    """Who has which digits. `public` is a file; the others are held in memory until they are ingested."""

    public: Path
    own: dict[str, Dataset]
    live: dict[str, Path]


def deal(names: list[str], folder: Path, *, seed: int, samples: int = 0) -> Shares:
    """Non-IID parts of mnist-5k (Dirichlet 0.5), a small public split, and live digits that no device trains on.

    Raises what `data.load` raises where the set is not here and cannot be fetched.
    """
    rng = np.random.default_rng(seed)
    digits = data.load("mnist-5k")
    if samples:
        digits = digits.take(rng.permutation(len(digits.y))[:samples])
    public, private = partition.public_split(digits.y, PUBLIC_SHARE, rng)
    public_file = folder / "public.safetensors"
    write_shard(public_file, digits.take(public))
    parts = partition.dirichlet_split(digits.y[private], len(names), _ALPHA, rng, minimum=_MINIMUM)
    own, live = {}, {}
    for name, part in zip(names, parts, strict=True):
        mine, asked = partition.holdout(private[part], LIVE_SHARE, rng)
        own[name] = digits.take(mine)
        live[name] = folder / f"{name}.live.safetensors"
        write_shard(live[name], digits.take(asked))
    return Shares(public_file, own, live)


async def first_bundle(public: Path, folder: Path) -> tuple[Path, ModelState]:
    """A model trained briefly on the public split alone, as a bundle. Raises `ChildFailed`."""
    builder = Builder(folder)
    arguments: dict[str, Scalar] = {"shape": "1x28x28", "classes": 10}
    trained = await builder.initial(Initial("cnn-small", arguments, str(public), FIRST_EPOCHS, lr=0.02))
    bundle = folder / "bundle-first"
    await builder.bundle(_ask(trained.state, public, bundle, "trained on the public split"), trained.state.arrays)
    return bundle, trained.state


async def ruined_bundle(state: ModelState, public: Path, folder: Path, *, seed: int) -> Path:
    """The same network with every tensor's values shuffled: whole, signed, serving, and useless."""
    rng = np.random.default_rng(seed)
    ruined = ModelState(
        state.model_json, save({name: _shuffled(value, rng) for name, value in load(state.arrays).items()})
    )
    bundle = folder / "bundle-ruined"
    await Builder(folder).bundle(_ask(ruined, public, bundle, "ruined on purpose"), ruined.arrays)
    return bundle


def _ask(state: ModelState, public: Path, out: Path, notes: str) -> MakeBundle:
    return MakeBundle(state.model_json, str(public), str(out), {"notes": notes}, recovery_batches=0)


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(values.ravel()).reshape(values.shape)
