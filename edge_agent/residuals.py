"""What rounding and subsampling took from a run's updates, to be added to its next (error feedback).

Whoever masks an update does not know yet whether it will be in a sum, nor whether that sum will be used. So a device keeps what it
owes if it is, under the round's id, beside what it owes if not; and who asks for the next update says in `counted_round` which
round of the run was the last that was used and counted this device.

Where that is unknown ("": there was none, or the server has lost it) nothing is owed. What that drops is zero on average, whatever
became of the round, for rounding takes nothing on average; where clipping or subsampling took something, a part of one update never
comes, as if the device had dropped out with it. To guess could add it twice, or add a part of an update that nobody used.
"""

from flwr.app import Array, ArrayRecord, Context

from shared.flower import record_to_numpy
from shared.secagg.messages import RECORD
from shared.secagg.schema import Arrays

LEFT = f"{RECORD}.left."  # and a run's id and a round's: what is owed if this is the last round that counts
MOST_RUNS = 4


def owed(counted_round: str, base: Arrays, context: Context) -> Arrays:
    """What is owed of arrays that still have the shape that they had."""
    record = context.state.get(_slot(context, counted_round))
    if not counted_round or not isinstance(record, ArrayRecord):
        return {}
    found = record_to_numpy(record)
    return {name: array for name, array in found.items() if name in base and base[name].shape == array.shape}


def keep(counted_round: str, round_id: str, left: Arrays, context: Context) -> None:
    """Of this run: what is owed if round `round_id` counts, and if not, what is owed now. Of few runs."""
    before = context.state.get(_slot(context, counted_round)) if counted_round else None
    names = [name for name in context.state if name.startswith(LEFT)]
    others = dict.fromkeys(_run(name) for name in names if _run(name) != str(context.run_id))  # the oldest first
    kept = list(others)[-(MOST_RUNS - 1) :]
    for name in names:
        if _run(name) not in kept:
            del context.state[name]
    if before is not None:
        context.state[_slot(context, counted_round)] = before
    if left:
        context.state[_slot(context, round_id)] = ArrayRecord({name: Array(array) for name, array in left.items()})


def _slot(context: Context, round_id: str) -> str:
    return f"{LEFT}{context.run_id}.{round_id}"


def _run(name: str) -> str:
    return name.removeprefix(LEFT).partition(".")[0]
