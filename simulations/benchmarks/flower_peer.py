"""Flower's own SuperLink and SuperNodes on this machine, running the echo app: what our rounds are measured against."""

from itertools import pairwise
from pathlib import Path

from shared.errors import ChildFailed
from simulations.flower_engine import FlowerEngine
from simulations.processes import Processes

APP = Path(__file__).with_name("flower_app")


async def seconds_a_round(processes: Processes, work: Path, *, nodes: int, parameters: int, rounds: int) -> list[float]:
    """FedAvg over `nodes` SuperNodes whose ClientApp returns its input. Raises `ChildFailed`, `DeadlineExceeded`."""
    engine, times = FlowerEngine(processes, work), work / "times"
    await engine.start()
    await engine.add_nodes([f"partition-id={index} num-partitions={nodes}" for index in range(nodes)])
    log = await engine.run(APP, f"times='{times}' rounds={rounds} nodes={nodes} parameters={parameters}")
    await engine.stop()
    ends = [float(text) for text in times.read_text().split()] if times.is_file() else []
    if len(ends) != rounds + 1:
        raise ChildFailed(f"Flower finished {max(0, len(ends) - 1)} of {rounds} rounds", detail=f"log: {log}")
    return [end - start for start, end in pairwise(ends)]
