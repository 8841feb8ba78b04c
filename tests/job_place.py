"""A coordinator's jobs around a fleet in memory: what the tests of jobs start, break and start again."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from sqlalchemy import Engine, insert

from coordinator.rounds.grid import Fleet
from coordinator.rounds.loop import Workshop
from coordinator.rounds.memory import MemoryJobStore
from coordinator.rounds.ports import JobStore, ModelState, NullTraffic, Traffic
from coordinator.rounds.round import Event, Job, Outcome, RoundRow
from coordinator.rounds.service import JobService
from coordinator.rounds.shelf import Shelf
from coordinator.rounds.states import RoundState
from coordinator.store.engine import transaction
from coordinator.store.tables import devices
from shared.clock import SystemClock
from shared.errors import NotFound
from shared.flower import to_numpy
from shared.learning.spec import PruneStep, new_spec
from shared.settings import Scalar
from tests.memory_fleet import MemoryFleet
from tests.protocol.secagg.appgrid import START

OPTIONS = {
    "fedprox": "options = { proximal_mu = 0.5 }",
    "fedavgm": "options = { server_momentum = 0.9 }",
    **dict.fromkeys(
        ("fedadam", "fedyogi", "fedadagrad"), "options = { tau = 0.1 }"
    ),  # eta / tau: what an error becomes
    "krum": "options = { num_malicious_nodes = 1 }",
    "fedtrimmedavg": "options = { beta = 0.25 }",
}
SPEC = new_spec("cnn-small", {"shape": "1x2x2", "classes": 3})  # what the model "digits" takes
SMALLER = SPEC.pruned((PruneStep("0", outputs=True, channels=(2,)),))


@dataclass
class Models:
    """A builder and a publisher that halve the first array's rows and count releases."""

    published: list[tuple[str, ModelState, Mapping[str, str | int]]] = field(default_factory=list)
    before: Callable[[str], None] = lambda step: None

    def initial(self, factory: str, arguments: Mapping[str, Scalar]) -> ModelState:
        return ModelState(new_spec(factory, arguments).to_json(), save(dict(START)))

    def start(self, model: str, release: int) -> ModelState:
        if model != "digits":
            raise NotFound(f"no model {model}")
        return ModelState(SPEC.to_json(), save(dict(START)))

    def prune(self, state: ModelState, ratio: float, public_data: str) -> ModelState:
        self.before("prune")
        arrays = load(state.arrays)
        return ModelState(SMALLER.to_json(), save({**arrays, "w": arrays["w"][:2].copy()}))

    def kill(self) -> None:
        self.before("kill")

    def publish(self, model: str, state: ModelState, public_data: str, lineage: Mapping[str, str | int]) -> int:
        self.before("publish")
        known = [made for _, _, made in self.published]
        if lineage not in known:
            self.published.append((model, state, lineage))
        return 7 + [made for _, _, made in self.published].index(lineage)


@dataclass
class Place:
    """A coordinator around a fleet. `start_service` may be called again, as after a crash."""

    fleet: MemoryFleet
    store: JobStore
    folder: Path
    models: Models = field(default_factory=Models)
    traffic: Traffic = field(default_factory=NullTraffic)
    services: list[JobService] = field(default_factory=list)

    def start_service(self, store: JobStore | None = None) -> JobService:
        clock = SystemClock()
        fleet = Fleet.open(
            self.fleet.sessions,
            self.fleet,
            lasting=self.fleet.lasting,
            inbox=self.fleet.inbox,
            clock=clock,
            reconnect_grace_s=0.2,
        )
        service = JobService(
            store or self.store,
            fleet,
            Workshop(self.models, self.models),
            traffic=self.traffic,
            verifier=self.fleet.authority,
            clock=clock,
            pause_s=0.0,
        )
        self.services.append(service)
        return service

    def toml(
        self, strategy: str = "fedavg", *, rounds: int = 3, secure: bool = False, more: str = "", top: str = ""
    ) -> str:
        arrays = self.folder / "start.safetensors"
        arrays.write_bytes(save(dict(START)))
        start = "" if "model" in top else f'[start]\narrays_file = "{arrays}"\n'
        selection = "" if "[selection]" in more else f"[selection]\nmin_devices = {self.fleet.size}\nquorum = 0.5\n"
        return (
            f'name = "test"\nclient_app = "numbers"\nrounds = {rounds}\n{top}\n{start}'
            f'[strategy]\nname = "{strategy}"\n{OPTIONS.get(strategy, "")}\n{selection}'
            f"[secure]\nenabled = {str(secure).lower()}\n{more}\n"
        )

    def public(self, shape: tuple[int, ...] = (1, 2, 2), labels: int = 3) -> Path:
        """A file of ten labelled examples; the model "digits" takes them as they are by default."""
        file = self.folder / "public.npz"
        np.savez(file, x=np.zeros((10, *shape), np.float32), y=np.arange(10) % labels)
        return file

    def run(self, toml: str, key: str = "") -> Job:
        service = self.start_service()
        return service.wait(service.submit(toml, key).id, 60.0)

    def arrays(self, job: Job) -> dict[str, np.ndarray[Any, Any]]:
        record = Shelf(self.fleet.lasting, self.store).load(job).arrays
        return {name: to_numpy(array) for name, array in record.items()}

    def committed(self, job: Job) -> list[RoundRow]:
        return [row for row in self.store.rounds(job.id) if row.state is RoundState.COMMITTED]

    def losses(self, job: Job) -> list[str]:
        """Whatever was not counted in a committed round, and why."""
        rows = [(row.round, device) for row in self.committed(job) for device in row.devices]
        return [
            f"{number}: {one.device} {one.outcome}: {one.reason}"
            for number, one in rows
            if one.outcome is not Outcome.COUNTED
        ]

    def kinds(self, job: Job) -> list[str]:
        return [event.kind for event in self.store.events(job.id)]

    def close(self) -> None:
        for service in self.services:
            service.close()
        self.fleet.close()


class Places(contextlib.ExitStack):
    """Makes places; all that runs in them ends with the test, also with one that fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def make(self, fleet: MemoryFleet | None = None, *, folder: str = "", attach: bool = True) -> Place:
        """Around four devices if no fleet is given, all of them attached unless `attach` says no."""
        (self._folder / folder).mkdir(exist_ok=True)
        place = Place(fleet or MemoryFleet(), MemoryJobStore(), self._folder / folder)
        self.callback(place.close)
        if attach:
            place.fleet.attach_all()
        return place


class FaultyStore:
    """A store that raises `error` once, instead of doing what `fail_at` says: (method, round, the event's kind)."""

    def __init__(self, inner: JobStore, fail_at: tuple[str, int, str], error: Exception) -> None:
        self._inner = inner
        self._fail_at = fail_at
        self._error = error
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*args: Any, **options: Any) -> Any:
            event = next((item for item in args if isinstance(item, Event)), None)
            kind = event.kind if event and name in ("advance", "change") else ""
            if event and not self.failures and self._fail_at == (name, event.round, kind):
                self.failures += 1
                raise self._error
            return method(*args, **options)

        return call


def add_devices(engine: Engine, fleet: MemoryFleet) -> None:
    """Rows that the outcomes of rounds refer to."""
    rows = [
        {
            "id": agent.ref.id,
            "node_id": node,
            "name": agent.ref.name,
            "state": "active",
            "labels": {},
            "profile_json": "{}",
            "public_key_sha256": f"{node:064x}",
            "certificate_der": b"",
            "certificate_expires_at": 0.0,
            "csr_der": b"",
            "enrolled_at": 0.0,
            "last_seen_at": 0.0,
            "agent_version": "",
            "reason": "",
        }
        for node, agent in fleet.agents.items()
    ]
    with transaction(engine) as connection:
        connection.execute(insert(devices), rows)
