"""The life of a loaded model, as a table, and the two slots of one model name. Pure values.

LOADING → WARM → LIVE → DRAINING → CLOSED          WARM: loaded and warmed, answers only to its explicit version
   └→ FAILED                                       DRAINING: was live, kept warm so that going back is instant
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from shared import tables
from shared.errors import Conflict, NotFound

CAPACITY = 2


class State(StrEnum):
    LOADING = "loading"
    WARM = "warm"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


class Event(StrEnum):
    LOADED = "loaded"
    REFUSED = "refused"  # wrong digest, not a graph, no finite answer
    PROMOTED = "promoted"
    SUCCEEDED = "succeeded"  # another version took over and this one stands by
    WITHDRAWN = "withdrawn"  # the version before it came back
    RELEASED = "released"
    REMOVED = "removed"  # the whole model goes


TABLE: dict[State, dict[Event, State]] = {
    State.LOADING: {Event.LOADED: State.WARM, Event.REFUSED: State.FAILED},
    State.WARM: {Event.PROMOTED: State.LIVE, Event.RELEASED: State.CLOSED, Event.REMOVED: State.CLOSED},
    State.LIVE: {
        Event.SUCCEEDED: State.DRAINING,
        Event.WITHDRAWN: State.WARM,
        Event.REMOVED: State.CLOSED,
    },
    State.DRAINING: {Event.PROMOTED: State.LIVE, Event.RELEASED: State.CLOSED, Event.REMOVED: State.CLOSED},
    State.FAILED: {Event.RELEASED: State.CLOSED, Event.REMOVED: State.CLOSED},
    State.CLOSED: {},
}
ANSWERING = frozenset({State.WARM, State.LIVE, State.DRAINING})


def advance(state: State, event: Event) -> State:
    """Raises `Conflict` for an event that the table does not allow in `state`."""
    return tables.advance(TABLE, state, event, Conflict, "a {state} version cannot be {event}")


@dataclass(frozen=True)
class Slot:
    """One version of a model. `since`: when it entered `state`, in seconds."""

    version: int
    digest: str
    since: float
    state: State = State.LOADING
    reason: str = ""

    def after(self, event: Event, now: float) -> "Slot":
        return replace(self, state=advance(self.state, event), since=now)


@dataclass(frozen=True)
class ModelSlots:
    """The versions of one model. At most one is live and at most two hold memory. Every method returns the next
    value or raises and changes nothing."""

    model: str
    slots: tuple[Slot, ...] = field(default=())

    @property
    def live(self) -> Slot | None:
        return next((slot for slot in self.slots if slot.state is State.LIVE), None)

    @property
    def standby(self) -> Slot | None:
        """The version that was live before, still warm."""
        return next((slot for slot in self.slots if slot.state is State.DRAINING), None)

    def get(self, version: int) -> Slot:
        """Raises `NotFound`."""
        for slot in self.slots:
            if slot.version == version:
                return slot
        raise NotFound(f"model {self.model!r} has no version {version} loaded")

    def opened(self, version: int, digest: str, now: float) -> "ModelSlots":
        """A slot for a version to load into; failed ones make room. Raises `Conflict` when both are taken."""
        held = tuple(slot for slot in self.slots if slot.state is not State.FAILED)
        if any(slot.version == version for slot in held):
            raise Conflict(f"version {version} of {self.model!r} is already {self.get(version).state}")
        if len(held) >= CAPACITY:
            versions = ", ".join(f"{slot.version} ({slot.state})" for slot in held)
            raise Conflict(f"both slots of {self.model!r} are taken by {versions}: release one first")
        return replace(self, slots=(*held, Slot(version, digest, now)))

    def loaded(self, version: int, now: float) -> "ModelSlots":
        return self._replaced(self.get(version).after(Event.LOADED, now))

    def refused(self, version: int, reason: str, now: float) -> "ModelSlots":
        return self._replaced(replace(self.get(version).after(Event.REFUSED, now), reason=reason))

    def swapped(self, version: int, now: float) -> "ModelSlots":
        """`version` becomes live and the live one stands by. The live version again: no change."""
        promoted = self.get(version)
        if promoted.state is State.LIVE:
            return self
        return self._promoted(promoted, Event.SUCCEEDED, now)

    def reverted(self, now: float) -> "ModelSlots":
        """The version that stands by becomes live, and the live one a mere candidate. Raises `Conflict`."""
        if self.standby is None:
            raise Conflict(f"model {self.model!r} has no earlier version to go back to")
        return self._promoted(self.standby, Event.WITHDRAWN, now)

    def released(self, version: int, now: float) -> "ModelSlots":
        """Raises `Conflict` for the live or a loading version, `NotFound`."""
        self.get(version).after(Event.RELEASED, now)
        return replace(self, slots=tuple(slot for slot in self.slots if slot.version != version))

    def removed(self, now: float) -> "ModelSlots":
        """Raises `Conflict` while a version is loading."""
        for slot in self.slots:
            slot.after(Event.REMOVED, now)
        return replace(self, slots=())

    def _promoted(self, promoted: Slot, demotion: Event, now: float) -> "ModelSlots":
        after = self._replaced(promoted.after(Event.PROMOTED, now))
        return after if self.live is None else after._replaced(self.live.after(demotion, now))

    def _replaced(self, changed: Slot) -> "ModelSlots":
        slots = tuple(changed if slot.version == changed.version else slot for slot in self.slots)
        return replace(self, slots=slots)
