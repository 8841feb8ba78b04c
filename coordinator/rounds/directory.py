"""Who is in a cohort, from the fleet's registry."""

from coordinator.fleet.cohorts import Cohort
from coordinator.fleet.ports import FleetStore
from coordinator.fleet.states import DeviceState
from coordinator.rounds.round import DeviceRef


class FleetDirectory:
    """Implements `coordinator.rounds.ports.Directory`."""

    def __init__(self, fleet: FleetStore) -> None:
        self._fleet = fleet

    def members(self, cohort: str) -> list[DeviceRef]:
        chosen = Cohort.parse(cohort)
        active = [device for device in self._fleet.devices() if device.state is DeviceState.ACTIVE]
        return [DeviceRef(device.id, device.node_id, device.name) for device in chosen.members(active)]
