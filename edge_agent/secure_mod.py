"""The client half of secure aggregation, as a Flower mod: the app trains as ever, and only a masked vector leaves.

Every phase is an ordinary train or evaluate message with a `ConfigRecord` named `shoal.secagg`. Only the masked phase
reaches the app, with that record taken out; its reply, arrays and metrics alike, goes into the masked vector or nowhere.
It reaches the app only if everything in it is what the members of the round signed that they expect (`Terms.inputs_digest`).
A message without the record is refused unless the policy allows plain work. A refusal is an error reply with code
`REFUSED`; the app's own exceptions pass through.

Between phases the client's keys rest in `context.state`, one record a round, because Flower may start a process for each
message. They are gone when the shares are revealed, when the app fails, and when `kept_rounds` newer rounds have begun. On
Flower's own SuperNode that state also lies in the SuperNode's memory: who reads it reads this device's round keys, and the
shares it holds for its peers.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from shared.errors import DigestMismatch, FalseShares, Malformed, ProtocolError, ShoalError, Unsupported, UpdateRejected
from shared.flower import REFUSED, inputs_digest, pack_words, reply_error, reply_with, to_numpy, with_content
from shared.secagg.client import Client, Policy
from shared.secagg.fields import Fields, Reader
from shared.secagg.keys import Identity, Verifier
from shared.secagg.masks import Words
from shared.secagg.messages import RECORD, VECTOR_RECORD, WORDS_TYPE, Complaint, Inbox, Phase, Roster, UnmaskRequest
from shared.secagg.quantize import Arrays, encode
from shared.secagg.shamir import Entropy
from shared.secagg.terms import Settings, Terms

Next = Callable[[Message, Context], Message]
SECURED = ("train", "evaluate")


@dataclass(frozen=True)
class ModPolicy:
    """`allow_plain` lets train and evaluate messages without secure aggregation through to the app."""

    client: Policy = field(default_factory=Policy)
    allow_plain: bool = False
    kept_rounds: int = 8


class SecureMod:
    """Flower mod. One object may serve many rounds and runs: it holds no state of its own. `client_app` is the app behind it."""

    def __init__(
        self, identity: Identity, verifier: Verifier, policy: ModPolicy, entropy: Entropy, client_app: str = ""
    ) -> None:
        self._identity = identity
        self._verifier = verifier
        self._policy = policy
        self._entropy = entropy
        self._client_app = client_app

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        if _category(message) not in SECURED:
            return call_next(message, context)
        if RECORD not in message.content:
            if self._policy.allow_plain:
                return call_next(message, context)
            return reply_error(message, REFUSED, "this device trains and evaluates with secure aggregation only")
        try:
            return self._answer(message, context, call_next)
        except ShoalError as error:
            return reply_error(message, REFUSED, str(error))

    def _answer(self, message: Message, context: Context, call_next: Next) -> Message:
        record = message.content[RECORD]
        if not isinstance(record, ConfigRecord):
            raise Malformed(f"the record {RECORD!r} is not a ConfigRecord")
        fields: Fields = dict(record)
        read = Reader(fields, "a secure aggregation message")
        round_id = read.text("round_id")
        match read.text("phase"):
            case Phase.KEYS:
                return _reply(message, Phase.KEYS, self._keys(fields, context))
            case Phase.SHARES:
                return _reply(message, Phase.SHARES, self._shares(fields, round_id, context))
            case Phase.MASKED:
                return self._masked(message, context, call_next, fields, round_id)
            case Phase.UNMASKED:
                return _reply(message, Phase.UNMASKED, self._unmasked(fields, round_id, context))
        raise Malformed("an unknown phase of secure aggregation")

    def _keys(self, fields: Fields, context: Context) -> Fields:
        terms = Terms.from_fields(fields)
        if _slot(terms.round_id) in context.state:
            raise ProtocolError("this device has made keys for this round already")
        client = Client(terms, Reader(fields, "an invitation").integer("index"), self._policy.client)
        client, advert = client.advertise(self._identity, self._entropy)
        self._make_room(context)
        _store(context, client)
        return advert.to_fields()

    def _shares(self, fields: Fields, round_id: str, context: Context) -> Fields:
        client, deal = self._load(context, round_id).share(Roster.from_fields(fields), self._verifier, self._entropy)
        _store(context, client)
        return deal.to_fields()

    def _masked(self, message: Message, context: Context, call_next: Next, fields: Fields, round_id: str) -> Message:
        try:
            client = self._load(context, round_id).receive(Inbox.from_fields(fields))
        except FalseShares as error:
            _forget(context, round_id)
            return _reply(message, Phase.MASKED, Complaint(error.dealers).to_fields())
        settings = Settings.from_fields(fields)
        training = _category(message) == "train"
        base = _arrays(message.content, "message") if training else {}
        schema = settings.schema(client.terms.clients, base)
        if schema.digest != client.terms.schema_digest:
            raise DigestMismatch("the arrays or settings of this round are not those its keys were made for")
        inputs = _without_record(message.content)
        found = inputs_digest(inputs, message_type=message.metadata.message_type, client_app=self._client_app)
        if found != client.terms.inputs_digest:
            raise DigestMismatch("this device was given another model or other settings than the round agreed on")
        _forget(context, round_id)  # whatever happens below, these keys mask one vector at most
        reply = call_next(with_content(message, inputs), context)
        if reply.has_error():
            return reply
        weight, metrics = _metrics(reply.content, settings.weight_key)
        words = encode(schema, weight, metrics, _arrays(reply.content, "reply") if training else {}, base)
        client = client.mask(words)
        _store(context, client)
        return _vector_reply(message, round_id, words)

    def _unmasked(self, fields: Fields, round_id: str, context: Context) -> Fields:
        _, reveal = self._load(context, round_id).reveal(UnmaskRequest.from_fields(fields))
        _forget(context, round_id)
        return reveal.to_fields()

    def _load(self, context: Context, round_id: str) -> Client:
        record = context.state.get(_slot(round_id))
        if not isinstance(record, ConfigRecord):
            raise ProtocolError(
                "this device has no keys for this round: it never joined, has finished, or was restarted"
            )
        return Client.from_fields(dict(record), self._policy.client)

    def _make_room(self, context: Context) -> None:
        slots = [name for name in context.state if name.startswith(f"{RECORD}.")]
        for name in slots[: max(0, len(slots) - self._policy.kept_rounds + 1)]:
            del context.state[name]


def make_secure_mod(
    identity: Identity,
    verifier: Verifier,
    policy: ModPolicy | None = None,
    *,
    entropy: Entropy = os.urandom,
    client_app: str = "",
) -> SecureMod:
    """The mod for one device. Put it first in the app's list of mods, so that nothing passes it by."""
    return SecureMod(identity, verifier, policy or ModPolicy(), entropy, client_app)


def _category(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def _slot(round_id: str) -> str:
    return f"{RECORD}.{round_id}"


def _store(context: Context, client: Client) -> None:
    context.state[_slot(client.terms.round_id)] = ConfigRecord(dict(client.to_fields()))


def _forget(context: Context, round_id: str) -> None:
    context.state.pop(_slot(round_id), None)


def _without_record(content: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in content.items() if name != RECORD})


def _arrays(content: RecordDict, what: str) -> Arrays:
    """The one `ArrayRecord`. Raises `Unsupported` for another number of them, `Malformed` for damaged arrays."""
    records: list[ArrayRecord] = list(content.array_records.values())
    if len(records) != 1:
        raise Unsupported(f"secure training takes one ArrayRecord a {what}, this one has {len(records)}")
    return {name: to_numpy(array) for name, array in records[0].items()}


def _metrics(content: RecordDict, weight_key: str) -> tuple[float, dict[str, float]]:
    """The weight, and every metric that is one number."""
    records: list[MetricRecord] = list(content.metric_records.values())
    if len(records) != 1 or not isinstance(records[0].get(weight_key), int | float):
        raise UpdateRejected(f"the reply needs one MetricRecord with a number {weight_key!r}")
    numbers = {name: value for name, value in records[0].items() if isinstance(value, int | float)}
    return numbers.pop(weight_key), numbers


def _reply(message: Message, phase: Phase, fields: Fields) -> Message:
    record = ConfigRecord({**fields, "phase": str(phase)})
    return reply_with(message, RecordDict({RECORD: record}))


def _vector_reply(message: Message, round_id: str, words: Words) -> Message:
    record = ConfigRecord({"phase": str(Phase.MASKED), "round_id": round_id})
    vector = ArrayRecord({VECTOR_RECORD: pack_words(words, WORDS_TYPE)})
    return reply_with(message, RecordDict({RECORD: record, VECTOR_RECORD: vector}))
