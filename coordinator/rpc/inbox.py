"""What each device has in the inbox, and for how long: none fills the coordinator's memory or disk with what nobody reads."""

from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import Overloaded
from shared.ids import DeviceId, Digest

MAX_BLOBS = 16  # of one device at once: an honest one has the answers to a few tasks there
KEPT_S = 3600.0  # since its last byte came; an update is read within seconds of its arrival
_Here = Callable[[DeviceId, Digest], bool]


@dataclass
class _Held:
    size: int
    at: float


class Ledger:
    """Of announced sizes, by device. For one thread. `now` is any clock that only goes forward, in seconds."""

    def __init__(self, *, max_bytes: int, max_blobs: int = MAX_BLOBS, kept_s: float = KEPT_S) -> None:
        self._max_bytes = max_bytes
        self._max_blobs = max_blobs
        self._kept_s = kept_s
        self._held: dict[DeviceId, dict[Digest, _Held]] = {}
        self._looked_at = 0.0

    def admit(self, device: DeviceId, digest: Digest, size: int, now: float, here: _Here) -> None:
        """Take note that a device is about to send a blob. `here` says what is still in the inbox.

        Raises `Overloaded` when it has too much there already.
        """
        held = {
            other: item for other, item in self._held.get(device, {}).items() if other != digest and here(device, other)
        }
        taken = sum(item.size for item in held.values())
        if len(held) >= self._max_blobs or taken + size > self._max_bytes:
            raise Overloaded(
                f"this device has {len(held)} updates of {taken} bytes in the inbox, and {self._max_bytes} bytes are allowed: "
                "wait until they are read"
            )
        self._held[device] = {**held, digest: _Held(size, now)}

    def grew(self, device: DeviceId, digest: Digest, now: float) -> None:
        if (item := self._held.get(device, {}).get(digest)) is not None:
            item.at = now

    def stale(self, now: float) -> tuple[list[tuple[DeviceId, Digest]], set[Digest]]:
        """What nobody will ask for any more: arrivals by device, and blobs that no other device sent since. Forgets them."""
        if now - self._looked_at < self._kept_s / 10:
            return [], set()
        self._looked_at = now
        old = [
            (device, digest)
            for device, held in self._held.items()
            for digest, item in held.items()
            if now - item.at >= self._kept_s
        ]
        for device, digest in old:
            del self._held[device][digest]
        self._held = {device: held for device, held in self._held.items() if held}
        needed = {digest for held in self._held.values() for digest in held}
        return old, {digest for _, digest in old} - needed
