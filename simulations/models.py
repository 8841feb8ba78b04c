"""Models that a simulation starts from: a first one, a ruined one, and plain arrays for apps that need no network."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from coordinator.builder import Builder, Initial, MakeBundle
from coordinator.rounds.ports import ModelState
from shared.settings import Scalar
from simulations.dealing import Shares

FIRST_EPOCHS = 3  # the first model is deliberately unfinished
_ECHOED = 1000  # float32 values


async def first_bundle(shares: Shares, folder: Path) -> tuple[Path, ModelState]:
    """A small network trained briefly on the public split alone, as a bundle. Raises `ChildFailed`."""
    builder = Builder(folder)
    shape = "x".join(map(str, shares.shape))
    arguments: dict[str, Scalar] = {"shape": shape, "classes": ",".join(shares.classes)}
    trained = await builder.initial(Initial("cnn-small", arguments, str(shares.public), FIRST_EPOCHS, lr=0.02))
    bundle = folder / "bundle-first"
    ask = _ask(trained.state, shares.public, bundle, "trained on the public split")
    await builder.bundle(ask, trained.state.arrays)
    return bundle, trained.state


async def ruined_bundle(state: ModelState, shares: Shares, folder: Path, *, seed: int) -> Path:
    """The same network with every tensor's values shuffled: whole, signed, serving, and useless."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.permutation(value.ravel()).reshape(value.shape) for name, value in load(state.arrays).items()}
    ruined = ModelState(state.model_json, save(arrays))
    bundle = folder / "bundle-ruined"
    await Builder(folder).bundle(_ask(ruined, shares.public, bundle, "ruined on purpose"), ruined.arrays)
    return bundle


def plain_arrays(client_app: str, shares: Shares) -> bytes | None:
    """What a job of this app starts from when it needs no network, as safetensors; None: it trains one."""
    match client_app:
        case "softmax":
            features, classes = int(np.prod(shares.shape)), len(shares.classes)
            return save({"weight": np.zeros((classes, features), np.float32), "bias": np.zeros(classes, np.float32)})
        case "echo":
            return save({"values": np.linspace(-1, 1, _ECHOED, dtype=np.float32)})
        case _:
            return None


def _ask(state: ModelState, public: Path, out: Path, notes: str) -> MakeBundle:
    return MakeBundle(state.model_json, str(public), str(out), {"notes": notes}, recovery_batches=0)
