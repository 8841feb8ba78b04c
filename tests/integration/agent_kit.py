"""One real agent against the coordinator's real front: sockets, TLS, signed releases of a small linear model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from coordinator.fleet.device import Device
from coordinator.fleet.registry import EnrolmentRequest
from coordinator.releases.metadata import Pen, Places
from coordinator.releases.repository import Repository
from edge_agent.agent import Agent
from edge_agent.app import build_agent, worker_settings
from edge_agent.config import AgentConfig, Home
from edge_agent.inference.inline import InlineInference
from edge_agent.link.credentials import Membership, store_membership, store_pair
from edge_agent.storage import DataStore
from edge_agent.trainer.inline import InlineTrainer
from shared.bundle import Bundle, Report, inspect_bundle, write_bundle
from shared.ids import CommandId, RolloutId, new_command_id, new_rollout_id
from shared.learning.measure import choose_probe, probe_candidates
from shared.learning.spec import InputSchema, ModelSpec
from shared.session import Acknowledged, Event, Gate, Hello, Install, InstallReport, TaskResult, Withdraw
from shared.signing.certificates import generate_key, make_csr
from shared.signing.identity import DeviceIdentity
from shared.signing.manifest import Manifest
from shared.signing.receipts import Receipt
from tests.integration.front import Front, running

MODEL = "lines"
SCHEMA = InputSchema((1, 4, 4), ("a", "b", "c"))
GATE = Gate(min_answers=8, requantize=False, accuracy_budget=0.05)
FAST = AgentConfig(
    metrics_every_s=0.1, reconnect_min_s=0.05, reconnect_max_s=0.2, barred_retry_s=0.3, drain_s=2.0, shadow_wait_s=1.0
)
_TRUTH = np.random.default_rng(5).normal(size=(3, 16)).astype(np.float32)


def examples(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Examples that the true weights answer right."""
    x = np.random.default_rng(1).random((count, *SCHEMA.shape)).astype(np.float32)
    return x, (x.reshape(count, -1) @ _TRUTH.T).argmax(axis=1)


def bundle(scale: float = 1.0, *, ruined: bool = False) -> Bundle:
    """A bundle that answers right, or wrong on purpose. Another `scale` makes other bytes."""
    weight = (-_TRUTH if ruined else _TRUTH) * np.float32(scale)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("Gemm", ["flat", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SCHEMA.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    candidates = probe_candidates(SCHEMA)
    probe = choose_probe((candidates.reshape(len(candidates), -1) @ weight.T).astype(np.float32))
    return Bundle(ModelSpec("linear", SCHEMA), {"weight": weight}, data, Report(probe=probe, weight_bits=8))


@dataclass
class Rollout:
    """What an order was about, to find its receipt."""

    id: RolloutId
    command: CommandId
    release: int


class Kit:
    """A coordinator's front with signed releases, and one enrolled device whose agent may be started many times."""

    def __init__(self, front: Front, folder: Path) -> None:
        self.front = front
        self.home = Home(folder / "a")
        self.repository = Repository.init(Pen(Places(folder / "metadata", folder / "keys")), front.clock.now())
        self.folder = folder
        self.device = self._enrol()

    def _enrol(self) -> Device:
        self.home.prepare()
        key = generate_key()
        request = EnrolmentRequest(self.front.token(), make_csr(key, "cam-1"), "cam-1", {}, "{}")
        device = self.front.registry.enrol(request)
        ca_der = self.front.authority.certificate_der
        store_pair(self.home.identity, DeviceIdentity(device.id, key, device.certificate_der), ca_der)
        membership = Membership(device.id, "cam-1", f"localhost:{self.front.fleet_port}")
        store_membership(self.home.identity, membership, ca_der, self.repository.first_root)
        return device

    def ingest(self, count: int = 200) -> None:
        DataStore(self.home.data).ingest(*examples(count))

    def publish(self, release: int, content: Bundle) -> Manifest:
        folder = self.folder / f"bundle-{release}"
        write_bundle(folder, content)
        files = inspect_bundle(folder)
        for name in files:
            self.front.lasting.write((folder / name).read_bytes())
        manifest = Manifest(MODEL, release, files, created_at=1.0)
        self.front.lasting.write(manifest.to_bytes())
        self.repository.publish(manifest, self.front.clock.now())
        return manifest

    def install(self, release: int, gate: Gate = GATE) -> Rollout:
        """Order the attached device to install a release."""
        metadata = self.repository.bundle_of_metadata()
        return self.order(release, lambda rollout: Install(rollout, MODEL, release, metadata, gate))

    def order(self, release: int, make: Callable[[RolloutId], Install | Withdraw]) -> Rollout:
        rollout = Rollout(new_rollout_id(), new_command_id(), release)
        self.front.hub.send(self.device.id, make(rollout.id), command_id=rollout.command)
        return rollout

    def withdraw(self, release: int, *, signed: bool = True) -> Rollout:
        if signed:
            self.repository.withdraw(MODEL, release, self.front.clock.now())
        metadata = self.repository.bundle_of_metadata()
        return self.order(release, lambda rollout: Withdraw(rollout, MODEL, release, metadata))

    async def attached(self) -> None:
        await until(lambda: self.device.id in self.front.hub.connected())

    async def hello(self) -> Hello:
        """What the device says first; listeners hear of it a little after it is connected."""
        _, found = await self._event(lambda event: isinstance(event, Hello), 20.0)
        assert isinstance(found, Hello)
        return found

    async def receipt(self, rollout: Rollout, *, acknowledge: bool = True, timeout_s: float = 20.0) -> Receipt:
        """The device's word about an order, acknowledged unless told otherwise."""
        event_id, report = await self._event(
            lambda event: isinstance(event, InstallReport) and event.command_id == rollout.command, timeout_s
        )
        assert isinstance(report, InstallReport)
        if acknowledge:
            self.acknowledge(event_id)
        return Receipt.from_bytes(report.receipt_json)

    async def result(self, task_id: str, *, timeout_s: float = 30.0) -> TaskResult:
        event_id, found = await self._event(
            lambda event: isinstance(event, TaskResult) and event.task_id == task_id, timeout_s
        )
        assert isinstance(found, TaskResult)
        self.acknowledge(event_id)
        return found

    def acknowledge(self, event_id: str) -> None:
        self.front.hub.send(self.device.id, Acknowledged(event_id))

    async def _event(self, wanted: Callable[[object], bool], timeout_s: float) -> tuple[str, Event]:
        def find() -> tuple[str, object] | None:
            return next(((kind, what) for kind, _, what in self.front.recorder.events if wanted(what)), None)

        await until(lambda: find() is not None, timeout_s)
        found = find()
        assert found is not None
        return found[0], found[1]  # type: ignore[return-value]  # checked by `wanted`

    @asynccontextmanager
    async def agent(self, config: AgentConfig = FAST, *, inline: bool = True) -> AsyncIterator[Agent]:
        """A running agent, stopped at the end; what ended it otherwise is raised."""
        agent = build_agent(
            self.home,
            config,
            trainer=InlineTrainer(worker_settings(self.home, config)) if inline else None,
            inference=InlineInference() if inline else None,
        )
        task = asyncio.create_task(agent.run())
        ready = asyncio.create_task(agent.ready.wait())
        try:
            await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
            if task.done():
                task.result()
            yield agent
        finally:
            ready.cancel()
            agent.stop()
            await asyncio.wait_for(task, 30)


@asynccontextmanager
async def kit(folder: Path, *, heartbeat_s: float = 2.0) -> AsyncIterator[Kit]:
    async with running(folder / "front", heartbeat_s=heartbeat_s) as front:
        yield Kit(front, folder)


@asynccontextmanager
async def serving(folder: Path, *later: Bundle, inline: bool = True) -> AsyncIterator[tuple[Kit, Agent]]:
    """An agent with examples that has proven release 1; `later` are releases 2, 3, …, to be ordered."""
    async with kit(folder) as k:
        k.ingest()
        for release, content in enumerate((bundle(), *later), start=1):
            k.publish(release, content)
        async with k.agent(inline=inline) as agent:
            await k.attached()
            await k.receipt(k.install(1))
            yield k, agent


async def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something holds; fails after `timeout_s`."""

    async def ask() -> bool:
        return holds()

    await until_soon(ask, timeout_s)


async def until_soon(holds: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """`until`, for what has to be awaited."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.01)


def agent_serves(agent: Agent, release: int) -> Callable[[], Awaitable[bool]]:
    """Whether the agent says that it serves this release of its one model."""

    async def serves() -> bool:
        return [one["release"] for one in (await agent.status())["models"]] == [release]

    return serves


def pid_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
