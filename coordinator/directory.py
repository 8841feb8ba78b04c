"""The fleet as rounds and releases see it."""

import itertools
import json

from coordinator.fleet.device import Device
from coordinator.fleet.registry import Registry
from coordinator.fleet.states import DeviceState
from coordinator.releases.release import DeviceRef as ReleaseDevice
from coordinator.rounds.round import DeviceRef as RoundDevice
from shared.errors import Malformed
from shared.ids import parse_name

MAX_APPS = 64  # of one device


class FleetDirectory:
    """Implements the `Directory` of rounds; `for_releases` that of releases, whose devices have no node ids."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.for_releases = ReleaseDirectory(self._registry)

    def members(self, cohort: str) -> list[RoundDevice]:
        return [
            RoundDevice(device.id, device.node_id, device.name, client_apps(device.profile_json))
            for device in _active(self._registry, cohort)
        ]


class ReleaseDirectory:
    """Implements `coordinator.releases.ports.DeviceDirectory`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def members(self, cohort: str) -> list[ReleaseDevice]:
        return [ReleaseDevice(device.id, device.name, device.labels) for device in _active(self._registry, cohort)]


def client_apps(profile_json: str) -> frozenset[str] | None:
    """What the device's profile lists, the first `MAX_APPS` names that a job can give; None for an agent that lists none."""
    listed = json.loads(profile_json or "{}").get("client_apps")  # the registry takes JSON objects alone
    if not isinstance(listed, list):
        return None
    return frozenset(itertools.islice(filter(_is_name, listed), MAX_APPS))


def _is_name(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_name(value))
    except Malformed:
        return False


def _active(registry: Registry, cohort: str) -> list[Device]:
    return [device for device in registry.devices(cohort) if device.state is DeviceState.ACTIVE]
