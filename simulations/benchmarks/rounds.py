"""Seconds a round: our fleet, plain and summed in secret, beside Flower's own SuperLink and SuperNodes in the same run.

Four agents, one million float32 parameters, a ClientApp that returns its input, ten rounds: what is left is the system's own cost.
Equal plain updates are equal blobs, and our store takes one of them for all; so plain rounds are measured again with updates that
differ from device to device, as real ones do. In secret they always do.

\b
python simulations/benchmarks/rounds.py               about three minutes, two of them Flower's
python simulations/benchmarks/rounds.py --rounds 3
"""

import asyncio
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save

from shared.errors import ChildFailed
from shared.files import write_atomic
from simulations.benchmarks import flower_peer
from simulations.benchmarks.harness import Figure, figure, publish
from simulations.commands import Round
from simulations.fleet import Fleet, workplace
from simulations.jobfile import to_toml
from simulations.processes import Processes

NODES = 4
PARAMETERS = 1_000_000
ROUNDS = 10
SPREAD = 0.02  # how far updates differ; a mean of ten rounds stays finite


@dataclass(frozen=True)
class Way:
    """A way to run rounds, and how many times quicker than Flower's it shall be."""

    name: str
    secure: bool
    spread: float
    aim: float


WAYS = (
    Way("plain", secure=False, spread=0.0, aim=100.0),
    Way("plain, every update different", secure=False, spread=SPREAD, aim=100.0),
    Way("summed in secret", secure=True, spread=0.0, aim=30.0),
)


async def fleet_rounds(root: Path, way: Way, rounds: int) -> list[Round]:
    """Committed rounds of an echo job on a fleet of our own. Raises `ChildFailed` when the job does not complete."""
    arrays = root / "arrays.safetensors"
    values = np.random.default_rng(0).standard_normal(PARAMETERS).astype(np.float32)
    await asyncio.to_thread(write_atomic, arrays, save({"weights": values}))
    job = root / "job.toml"
    content = {
        "name": "echo",
        "client_app": "echo",
        "rounds": rounds,
        "start": {"arrays_file": str(arrays)},
        "selection": {"min_devices": NODES, "quorum": 1.0},
        "secure": {"enabled": way.secure},
        "train": {"spread": way.spread},
    }
    await asyncio.to_thread(write_atomic, job, to_toml(content).encode())
    async with Fleet(root, [f"agent-{number}" for number in range(1, NODES + 1)]) as fleet:
        await fleet.start_coordinator()
        await fleet.enrol()
        await fleet.start_agents()
        submitted = await fleet.coordinator.submit(job)
        async for _ in fleet.coordinator.watch_job(submitted.id):
            fleet.check()
        ended = await fleet.coordinator.job(submitted.id)
        if ended.state != "completed":
            raise ChildFailed(f"the job ended {ended.state}: {ended.reason}", detail=f"logs: {fleet.processes.logs}")
        found = await fleet.coordinator.rounds(submitted.id)
    return [one for one in found if one.state == "COMMITTED"]


def seconds(rounds: list[Round]) -> list[float]:
    """From one round's end to the next one's, as Flower's are measured; the first counts from its own start."""
    ends = [rounds[0].started_at, *(one.ended_at for one in rounds)]
    return [later - earlier for earlier, later in pairwise(ends)]


async def measure(rounds: int) -> list[Figure]:
    with workplace() as root:
        async with Processes(root / "logs") as processes:
            click.echo(f"Flower's SuperLink and {NODES} SuperNodes, {rounds} rounds of about 10 s")
            peer = await flower_peer.seconds_a_round(
                processes, root / "flower", nodes=NODES, parameters=PARAMETERS, rounds=rounds
            )
    flower = ("Flower SuperLink", statistics.median(peer))
    figures = []
    for way in WAYS:
        click.echo(f"our fleet, {way.name}")
        with workplace() as root:
            found = await fleet_rounds(root, way, rounds)
        figures.append(figure(f"a round, {way.name}", statistics.median(seconds(found)), "s", peer=flower, aim=way.aim))
        sent = statistics.median(one.bytes_up / len(one.devices) for one in found)
        figures.append(figure(f"bytes up a device, {way.name}", sent / 1e6, "MB"))
    return figures


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(min=2), help="Rounds each way.")
def main(rounds: int) -> None:
    publish("rounds", asyncio.run(measure(rounds)))


if __name__ == "__main__":
    main()
