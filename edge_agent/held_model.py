"""The model that a device was last given for a group's rounds, and what a message makes of it (`shared.broadcast`)."""

from flwr.app import Array, ArrayRecord, Context, RecordDict

from shared.broadcast import DELTA_RECORD, DELTA_TYPE, Delta, Form, apply
from shared.errors import Malformed, ProtocolError
from shared.flower import record_to_numpy, unpack_bytes
from shared.secagg.fields import Fields, Reader
from shared.secagg.messages import RECORD

HELD = f"{RECORD}.held."  # and a run's id and a group's
MOST_MODELS = 4


def resolve(content: RecordDict, fields: Fields, group: str, context: Context) -> RecordDict:
    """`content` with the whole model. Raises `ProtocolError` where it builds on one that this device does not hold, `Malformed`."""
    if "model" not in fields:
        return content
    read = Reader(fields, "what is said of the model")
    form, name = read.text("model"), read.text("model_name")
    if form == Form.WHOLE:
        if not isinstance(content.get(name), ArrayRecord):
            raise Malformed("the model is not where the message says")
        return content
    held = context.state.get(f"{HELD}{group}")
    if not isinstance(held, ArrayRecord):
        raise ProtocolError("this device does not hold the model that changed: it was restarted, or never had it")
    if form == Form.HELD:
        return RecordDict({**content, name: held})
    delta = content.get(DELTA_RECORD)
    if form != Form.CHANGED or not isinstance(delta, ArrayRecord) or list(delta) != [DELTA_RECORD]:
        raise Malformed("a message in place of a model holds no delta")
    data = unpack_bytes(delta[DELTA_RECORD], DELTA_TYPE)
    moved = apply(record_to_numpy(held), Delta(tuple(read.numbers("model_steps")), data))
    rest = {key: record for key, record in content.items() if key != DELTA_RECORD}
    return RecordDict({**rest, name: ArrayRecord({key: Array(array) for key, array in moved.items()})})


def keep(content: RecordDict, fields: Fields, group: str, context: Context) -> None:
    """Of a content that all devices agree on: the model, for the next message to build on. One a run, and of few runs."""
    if "model" in fields:
        run, _, _ = group.partition(".")
        for name in [name for name in context.state if name.startswith(f"{HELD}{run}.")]:
            del context.state[name]
        for name in [name for name in context.state if name.startswith(HELD)][: -(MOST_MODELS - 1)]:
            del context.state[name]
        context.state[f"{HELD}{group}"] = content[Reader(fields, "what is said of the model").text("model_name")]


def forget(group: str, context: Context) -> None:
    context.state.pop(f"{HELD}{group}", None)
