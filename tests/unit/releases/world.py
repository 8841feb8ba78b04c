"""A coordinator's release side with a simulated fleet."""

from pathlib import Path
from typing import Any

from coordinator.releases.memory import MemoryReleaseStore
from coordinator.releases.repository import Repository
from coordinator.releases.rollouts import Fleet as Links
from coordinator.releases.rollouts import RolloutService
from coordinator.releases.service import ReleaseService
from coordinator.releases.states import DeviceState, RolloutState
from shared.blobs import MemoryBlobs
from shared.clock import ManualClock
from shared.errors import StorageFull
from shared.ids import RolloutId
from tests.unit.releases.factories import NOW, Device, Fleet, a_bundle, a_pen, a_receipt, inspect

ALL_AT_ONCE = "stages = [1.0]"  # a plan


class World:
    """A coordinator's release side with a fleet of four. Releases 1 and 2 are published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = Fleet()
        self.store = MemoryReleaseStore()
        self.clock = ManualClock(NOW)
        self.blobs = MemoryBlobs()
        Repository.init(a_pen(folder), NOW)
        self.full = False
        self.restart()
        for number in (1, 2):
            self.releases.publish(a_bundle(folder / f"bundle-{number}", str(number)), "digits")

    def restart(self) -> None:
        """As after SIGKILL: only what was committed is left."""
        repository = Repository(a_pen(self.folder, self._write))
        self.releases = ReleaseService(self.store, repository, self.blobs, inspect, self.clock)
        links = Links(self.fleet, self.fleet, self.fleet.verifier)
        self.rollouts = RolloutService(self.store, self.releases, links, self.clock)
        self.fleet.listeners = [self.rollouts]

    def _write(self, path: Path, data: bytes) -> None:
        if self.full:
            raise StorageFull("no space left")
        path.write_bytes(data)

    def start(self, number: int = 1, plan: str = "") -> RolloutId:
        return self.rollouts.start("digits", number, plan, "", "ann").id

    def report(self, rollout: RolloutId, device: Device, **changes: Any) -> None:
        number = self.store.rollout(rollout).release
        receipt = a_receipt(self.releases.release("digits", number), **changes)
        self.rollouts.received(device.id, "evt-1", device.report(receipt, rollout))

    def offered(self, rollout: RolloutId) -> list[Device]:
        return [self.fleet.devices[row.device] for row in self.rows(rollout, DeviceState.OFFERED)]

    def prove_all(self, rollout: RolloutId) -> None:
        while waiting := self.offered(rollout):
            for device in waiting:
                self.report(rollout, device)

    def rows(self, rollout: RolloutId, *states: DeviceState) -> list[Any]:
        return [row for row in self.store.rollout(rollout).devices if row.state in states]

    def states(self, rollout: RolloutId) -> set[DeviceState]:
        return {row.state for row in self.store.rollout(rollout).devices}

    def state(self, rollout: RolloutId) -> RolloutState:
        return self.store.rollout(rollout).state

    def row(self, rollout: RolloutId, device: Device) -> Any:
        return self.store.rollout(rollout).find(device.id)

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.rollouts.tick()

    @property
    def devices(self) -> list[Device]:
        return list(self.fleet.devices.values())
