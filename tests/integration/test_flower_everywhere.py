"""One ServerApp and one ClientApp (`simulations/examples/secure_flower`), summed in secret wherever Flower's apps run: our fleet,
Flower's simulation engine on Ray, Flower's own SuperLink. What a strategy makes of the sums is what it makes of plain
updates, as near as the rounding allows.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file

from coordinator.rounds.closing import Policy
from coordinator.rounds.grid import Ask, Fleet, FleetGrid
from coordinator.rounds.plan import Selection
from coordinator.rounds.round import DeviceRef
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.flower_node import VARIABLE, read_identity
from edge_agent.secure_mod import make_secure_mod
from shared.blobs import MemoryBlobs
from shared.clock import SystemClock
from shared.flower import assume_identity
from shared.ids import DeviceId, JobId, NodeId
from shared.secagg.terms import Settings
from simulations.examples.secure_flower.secure_flower import client_app, server_app
from simulations.fleet import workplace
from simulations.flower_engine import FlowerEngine, make_identities
from simulations.local_grid import Node
from simulations.processes import Processes
from tests.memory_fleet import MemoryAgent, MemorySessions
from tests.protocol.secagg.appgrid import RUN_ID, AppGrid
from tests.protocol.secagg.exchanges import mean_bounds, watch_settings

APP = Path(server_app.__file__).parents[1]
GROUP, ROUND = ["keys", "shares"], ["masked", "confirmed", "unmasked"]
GROWTH = {"fedavg": 1.0, "fedavgm": 3.0, "fedadam": 2.0}  # how much a strategy may make of an error in a mean
FLOAT32 = 1e-6  # what arithmetic may move, in Euclidean norm
Arrays = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    old = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    assume_identity(run_id=RUN_ID)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = old


@dataclass(frozen=True)
class Scene:
    """The app's run over some devices, each with the examples of its partition, and their identities under `work`."""

    work: Path
    strategies: tuple[str, ...]
    rounds: int
    partitions: tuple[int, ...]

    def __post_init__(self) -> None:
        make_identities(self.identities, [str(item) for item in self.partitions], SystemClock().now())

    @property
    def identities(self) -> Path:
        return self.work / "identities"

    @property
    def weight(self) -> int:
        return sum(len(client_app.examples(context)[0]) for context in self.contexts())

    def config(self) -> dict[str, Any]:
        """The run's settings, bits and all, as `flwr run` would merge them."""
        authority = str(self.identities / "authority.der")
        numbers = {"rounds": self.rounds, "nodes": len(self.partitions), "bits": 16}
        return {"strategies": ",".join(self.strategies), "authority": authority, "out": str(self.work), **numbers}

    def config_text(self) -> str:
        return " ".join(f"{key}={json.dumps(value)}" for key, value in self.config().items())

    def contexts(self) -> list[Context]:
        return [Context(RUN_ID, item, {"partition-id": item}, RecordDict(), {}) for item in self.partitions]

    def local(self, *, secure: bool) -> AppGrid:
        """The same devices in this process, with or without the mod."""
        nodes = {}
        for context in self.contexts():
            folder = self.identities / str(context.node_id)
            mods = [make_secure_mod(*read_identity(folder))] if secure else []
            nodes[context.node_id] = Node(client_app.build(mods), context)
        return AppGrid(nodes)


def start(name: str, grid: Grid, scene: Scene, arrays: ArrayRecord) -> ArrayRecord:
    strategy = server_app.strategy(name, len(scene.partitions))
    return strategy.start(grid, arrays, num_rounds=scene.rounds).arrays


def settings_of(scene: Scene) -> list[Settings]:
    """What each of the run's exchanges goes by: the same run, in this process. What is learnt of sizes is exact to 9 digits."""
    inner = scene.local(secure=True)
    used = watch_settings(inner, min(inner.nodes))
    verifier = read_identity(scene.identities / str(scene.partitions[0]))[1]
    grid, arrays = SecureGrid(inner, server_app.secure_config(16), verifier), server_app.start_arrays()
    for name in scene.strategies:
        arrays = start(name, grid, scene, arrays)
    return used


def assert_as_plain(scene: Scene) -> None:
    """What each strategy came to, against the same strategy over the same devices in plain sight, from where it began."""
    used, began = settings_of(scene), server_app.start_arrays()
    count = len(scene.partitions)
    for place, name in enumerate(scene.strategies):
        plain = start(name, scene.local(secure=False), scene, began)
        found = load_file(scene.work / f"{name}.safetensors")
        went_by = used[place * scene.rounds :][: scene.rounds]
        shapes = {key: array.numpy() for key, array in began.items()}
        bounds = [mean_bounds(item, shapes, count, count, scene.weight) for item in went_by]
        for key, expected in plain.items():
            off = float(np.linalg.norm(found[key] - expected.numpy()))
            moved = float(np.linalg.norm(expected.numpy() - began[key].numpy()))
            assert off <= GROWTH[name] * sum(bound[key] for bound in bounds) + FLOAT32, (name, key)
            assert off < 0.01 * moved, (name, key)
            if went_by[-1].unit_weight:  # not a first exchange, whose rounding float32 does not show
                assert off > FLOAT32 / 10, (name, key)
        began = ArrayRecord({key: Array(value) for key, value in found.items()})


def assert_all_counted(scene: Scene, making: list[str]) -> None:
    """Everybody in every exchange, and one group for all of them: its keys outlived every phase and every round."""
    exchanges = json.loads((scene.work / "exchanges.json").read_text())
    count = len(scene.strategies) * scene.rounds
    assert [item["phases"] for item in exchanges] == [[*making, *ROUND], *[ROUND] * (count - 1)]
    assert [sorted(item["fates"].values()) for item in exchanges] == [["counted"] * len(scene.partitions)] * count
    assert {item["weight"] for item in exchanges} == {scene.weight}


# ---- our fleet


def test_on_our_fleet(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("fedavg", "fedadam", "fedavgm"), 2, (1, 2, 3, 4))
    sessions, lasting, inbox = MemorySessions(), MemoryBlobs(), MemoryBlobs()
    agents = []
    for node in scene.partitions:
        ref = DeviceRef(DeviceId(f"device-{node}"), NodeId(node), f"device-{node}")
        app = client_app.build([make_secure_mod(*read_identity(scene.identities / str(node)))])
        agents.append(MemoryAgent(ref, sessions, lasting, inbox, app, run_config=scene.config()))

    class Everybody:
        def members(self, cohort: str) -> list[DeviceRef]:
            return [agent.ref for agent in agents]

    clock = SystemClock()
    fleet = Fleet.open(sessions, Everybody(), lasting=lasting, inbox=inbox, clock=clock, reconnect_grace_s=1.0)
    ask = Ask(JobId("job-1"), RUN_ID, 1, "", True, Selection(min_devices=4, wait_for_devices_s=30.0), Policy(60.0))
    try:
        for agent in agents:
            agent.attach()
        server_app.app(FleetGrid(fleet, ask), Context(RUN_ID, 0, {}, RecordDict(), scene.config()))
    finally:
        for agent in agents:
            agent.close()
    assert_all_counted(scene, GROUP)
    assert_as_plain(scene)


# ---- Flower's engines


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_on_flowers_simulation_engine_on_ray_with_50_virtual_clients() -> None:
    """Two actors serve all clients in turn, so whose keys are whose is up to `Context.state`. The group's graph is drawn by lot."""
    with workplace() as work:
        scene = Scene(work, ("fedavg", "fedadam"), 2, tuple(range(50)))
        environment = {VARIABLE: str(scene.identities), "RAY_TMPDIR": str(work)}
        async with Processes(work / "logs") as processes:
            engine = FlowerEngine(processes, work / "flower", environment)
            await engine.start(simulation=True)
            federation = "num-supernodes=50 client-resources-num-cpus=1"
            await engine.run(APP, scene.config_text(), federation=federation)
        assert_all_counted(scene, ["keys", "coins", "shares"])
        assert_as_plain(scene)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_on_flowers_own_superlink_with_4_supernodes() -> None:
    """A process for each message, so keys rest in what the SuperNode keeps between them."""
    with workplace() as work:
        scene = Scene(work, ("fedavg", "fedadam"), 1, (0, 1, 2, 3))
        nodes = [f'partition-id={item} identity="{scene.identities / str(item)}"' for item in scene.partitions]
        async with Processes(work / "logs") as processes:
            engine = FlowerEngine(processes, work / "flower")
            await engine.start()
            await engine.add_nodes(nodes)
            await engine.run(APP, scene.config_text())
        assert_all_counted(scene, GROUP)
        assert_as_plain(scene)
