"""What devices were last given, so that the next exchange may send only what changed since.

Devices train from the model that deltas have brought them to (`given`), the server goes on from its own: what a delta lacks is in
the next one, and the mean change is added to the server's. A device is sent a delta only if it is known to hold the version before.
"""

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, RecordDict

from shared.broadcast import DELTA_RECORD, DELTA_TYPE, Arrays, Delta, Form, apply, difference
from shared.flower import pack_bytes, record_to_numpy
from shared.secagg.fields import Fields


@dataclass(frozen=True)
class Broadcast:
    """A model on its way, as the record `name` of messages. `source` is the server's own; `given`, and `whole` encoded, what
    devices have once they have it.
    """

    name: str
    version: int
    source: ArrayRecord
    given: Arrays
    whole: ArrayRecord
    delta: Delta | None = None  # to the version before
    change: ArrayRecord | None = None  # and as it is sent

    def whole_of(self, content: RecordDict) -> RecordDict:
        """`content` as every device has it in the end."""
        return RecordDict({**content, self.name: self.whole})

    def for_holder(self, content: RecordDict, held: int) -> tuple[RecordDict, Fields]:
        """`content` as a device needs it that holds version `held` (0: none), and the fields that say so."""
        rest = RecordDict({name: record for name, record in content.items() if name != self.name})
        if held == self.version:
            return rest, {"model": str(Form.HELD), "model_name": self.name}
        if held == self.version - 1 and self.delta is not None and self.change is not None:
            steps = {"model_steps": list(self.delta.steps)}
            return RecordDict({**rest, DELTA_RECORD: self.change}), {
                "model": str(Form.CHANGED),
                "model_name": self.name,
                **steps,
            }
        return self.whole_of(content), {"model": str(Form.WHOLE), "model_name": self.name}


def next_broadcast(name: str, source: ArrayRecord, before: Broadcast | None) -> Broadcast:
    """The version after `before`; `before` itself if the server's model is the same."""
    if before is None or before.name != name:
        return _whole(name, source, 1 if before is None else before.version + 2)
    if source is before.source or source == before.source:
        return before
    delta = difference(record_to_numpy(source), before.given)
    if delta is None:
        return _whole(name, source, before.version + 1)
    given = apply(before.given, delta)
    whole = ArrayRecord({key: Array(array) for key, array in given.items()})
    change = ArrayRecord({DELTA_RECORD: pack_bytes(delta.data, DELTA_TYPE)})
    return Broadcast(name, before.version + 1, source, given, whole, delta, change)


def _whole(name: str, source: ArrayRecord, version: int) -> Broadcast:
    return Broadcast(name, version, source, record_to_numpy(source), source)
