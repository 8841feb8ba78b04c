"""Bytes that each device moved, for the round's table."""

import threading
from collections import defaultdict

from shared.ids import DeviceId


class TrafficMeter:
    """Counts bytes on the wire since the last `take`: tasks, their results, and blobs (after compression). Safe to call from any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._down: dict[DeviceId, int] = defaultdict(int)
        self._up: dict[DeviceId, int] = defaultdict(int)

    def sent(self, device: DeviceId, size: int) -> None:
        with self._lock:
            self._down[device] += size

    def received(self, device: DeviceId, size: int) -> None:
        with self._lock:
            self._up[device] += size

    def take(self, device: DeviceId) -> tuple[int, int]:
        """(down, up) since the last call for this device, seen from the device."""
        with self._lock:
            return self._down.pop(device, 0), self._up.pop(device, 0)
