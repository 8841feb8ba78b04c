"""Small fleets of real processes, on examples made up here: nothing is fetched."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from shared.files import write_atomic
from simulations import data
from simulations.commands import Event, Job, Round
from simulations.data import Dataset
from simulations.fleet import Fleet
from simulations.jobfile import to_toml

CLASSES = tuple("0123456789")


def prototypes(count: int, *, seed: int = 0) -> Dataset:
    """Ten blurred shapes of 28x28, each with noise of its own: easy to tell apart, and different on every row."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(99).random((10, 1, 28, 28)) > 0.8
    labels = rng.permutation(np.arange(count) % 10)
    x = 0.6 * shapes[labels] + 0.4 * rng.random((count, 1, 28, 28))
    return Dataset(x.astype(np.float32), labels.astype(np.int64), CLASSES)


def pretend_digits(folder: Path, count: int = 2000) -> dict[str, str]:
    """Prototypes where `simulate` looks for mnist-5k; returns the environment that makes it look there."""
    path = data.arrays_path(data.source("mnist-5k"), folder)
    path.parent.mkdir(parents=True)
    made = prototypes(count)
    with path.open("wb") as file:
        np.savez(file, x=(made.x * 255).astype(np.uint8), y=made.y.astype(np.uint8), classes=np.array(made.classes))
    return {"SHOAL_DATA_DIR": str(folder)}


def softmax_job(root: Path, name: str, shape: tuple[int, int], **tables: object) -> Path:
    """A job file of the app "softmax" from zeros of (classes, features)."""
    start = root / "start.safetensors"
    write_atomic(start, save({"weight": np.zeros(shape, np.float32), "bias": np.zeros(shape[0], np.float32)}))
    file = root / f"{name}.toml"
    content = {"name": name, "client_app": "softmax", "start": {"arrays_file": str(start)}, **tables}
    write_atomic(file, to_toml(content).encode())
    return file


async def run_job(
    fleet: Fleet, file: Path, seen: Callable[[Event], None] | None = None
) -> tuple[Job, tuple[Round, ...]]:
    """Submit and follow to the end."""
    submitted = await fleet.coordinator.submit(file)

    async def follow() -> None:
        async for event in fleet.coordinator.watch_job(submitted.id):
            if seen is not None:
                seen(event)

    await fleet.watching(follow())
    return await fleet.coordinator.job(submitted.id), await fleet.coordinator.rounds(submitted.id)


def outcomes(one: Round) -> Mapping[str, str]:
    """What became of each device of a round."""
    return {device.name: device.outcome for device in one.devices}
