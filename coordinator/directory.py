"""The fleet as rounds and releases see it."""

from coordinator.fleet.device import Device
from coordinator.fleet.registry import Registry
from coordinator.fleet.states import DeviceState
from coordinator.releases.release import DeviceRef as ReleaseDevice
from coordinator.rounds.round import DeviceRef as RoundDevice


class FleetDirectory:
    """Implements the `Directory` of rounds; `for_releases` that of releases, whose devices have no node ids."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.for_releases = ReleaseDirectory(self._registry)

    def members(self, cohort: str) -> list[RoundDevice]:
        return [RoundDevice(device.id, device.node_id, device.name) for device in _active(self._registry, cohort)]


class ReleaseDirectory:
    """Implements `coordinator.releases.ports.DeviceDirectory`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def members(self, cohort: str) -> list[ReleaseDevice]:
        return [ReleaseDevice(device.id, device.name, device.labels) for device in _active(self._registry, cohort)]


def _active(registry: Registry, cohort: str) -> list[Device]:
    return [device for device in registry.devices(cohort) if device.state is DeviceState.ACTIVE]
