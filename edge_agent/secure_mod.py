"""The client half of secure aggregation, as a Flower mod: the app trains as ever, and only a masked vector leaves.

Every phase is an ordinary train or evaluate message with a `ConfigRecord` named `shoal.secagg`. Only the masked phase reaches
the app, with that record taken out; its reply, arrays and metrics alike, goes into the masked vector or nowhere. Its masks are
bound to all that it was given (`RoundTerms.inputs_digest`): with other devices' they cancel only if those were given the same.
A message without the record, or of another kind, is refused unless the policy allows plain work. A refusal is an error reply
with code `REFUSED`, or `NO_KEYS`; the app's own exceptions pass through.

Between phases the client's keys rest in `context.state`, one record a group, because Flower may start a process for each
message. A round's keys are gone when it has what it needs, a group's when its rounds are used up, when the app fails to read
its shares, and when `kept_groups` newer groups have begun. What rounding took from an update rests there too (`residuals`), and
where the server sends only what changed of a model, the one that it changed from (`held_model`). On Flower's own SuperNode that
state also lies in the SuperNode's memory: who reads it reads this device's keys, and the shares it holds for its peers.

What a differentially private round costs is in the device's ledger before noise is drawn, once: asked for the same round again,
the device refuses.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from edge_agent import held_model, residuals
from edge_agent.ledger import Epochs, Ledgers
from shared.client_apps import NO_KEYS
from shared.errors import (
    DigestMismatch,
    FalseShares,
    Malformed,
    NoKeys,
    ProtocolError,
    ShoalError,
    Unsupported,
    UpdateRejected,
)
from shared.flower import REFUSED, inputs_digest, pack_bytes, record_to_numpy, reply_error, reply_with, with_content
from shared.privacy.ledger import Charge
from shared.secagg.client import Client
from shared.secagg.fields import Fields, Reader
from shared.secagg.keys import Identity, Verifier
from shared.secagg.messages import (
    PACKED_TYPE,
    RECORD,
    VECTOR_RECORD,
    Complaint,
    Inbox,
    Members,
    Neighbourhood,
    Phase,
    RecoveryRequest,
    Witness,
)
from shared.secagg.policy import Policy, PrivacyPolicy
from shared.secagg.quantize import Update, encode
from shared.secagg.schema import Arrays, Schema
from shared.secagg.shamir import Entropy
from shared.secagg.states import ClientState
from shared.secagg.terms import GroupTerms, RoundTerms, Settings, from_bitmap, rotation_of

Next = Callable[[Message, Context], Message]
SECURED = ("train", "evaluate")
MOST_RUNS = 4  # that keys are kept for
GROUP = f"{RECORD}.group."  # and a run's id and a group's: a client's keys, good for that run only


@dataclass(frozen=True)
class ModPolicy:
    """`allow_plain` lets messages without secure aggregation through to the app, unless `privacy` demands noise."""

    client: Policy = field(default_factory=Policy)
    allow_plain: bool = False
    kept_groups: int = 4
    privacy: PrivacyPolicy = field(default_factory=PrivacyPolicy)


class SecureMod:
    """Flower mod. One object may serve many rounds and runs: it holds no state of its own. `client_app` is the app behind it.

    Without `ledgers` it takes part in no round in which devices add noise.
    """

    def __init__(
        self,
        identity: Identity,
        verifier: Verifier,
        policy: ModPolicy,
        entropy: Entropy,
        *,
        client_app: str = "",
        ledgers: Ledgers | None = None,
    ) -> None:
        self._identity = identity
        self._verifier = verifier
        self._policy = policy
        self._entropy = entropy
        self._client_app = client_app
        self._ledgers = ledgers

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        if _category(message) not in SECURED or RECORD not in message.content:
            if self._policy.allow_plain and not self._policy.privacy.demanded:
                return call_next(message, context)
            return reply_error(
                message, REFUSED, "this device answers with secure aggregation only, to train and to evaluate"
            )
        try:
            return self._answer(message, context, call_next)
        except NoKeys as error:
            return reply_error(message, NO_KEYS, str(error))
        except ShoalError as error:
            return reply_error(message, REFUSED, str(error))

    def _answer(self, message: Message, context: Context, call_next: Next) -> Message:
        record = message.content[RECORD]
        if not isinstance(record, ConfigRecord):
            raise Malformed(f"the record {RECORD!r} is not a ConfigRecord")
        fields: Fields = dict(record.items())
        read = Reader(fields, "a secure aggregation message")
        group, phase = _named(context, read.identifier("group_id")), read.text("phase")
        if phase == Phase.MASKED:
            return self._masked(message, context, call_next, fields, group)
        try:
            answer = self._steps[Phase(phase)]
        except (ValueError, KeyError) as error:
            raise Malformed("an unknown phase of secure aggregation") from error
        return _reply(message, Phase(phase), answer(fields, group, context))

    def _keys(self, fields: Fields, group: str, context: Context) -> Fields:
        if _slot(group) in context.state:
            raise ProtocolError("this device has made keys for this group already")
        terms = GroupTerms.from_fields(fields)
        client = Client(terms, Reader(fields, "an invitation").integer("index"), self._policy.client)
        client, advert = client.advertise(self._identity, self._entropy)
        self._make_room(context)
        _store(context, client)
        return advert.to_fields()

    def _make_room(self, context: Context) -> None:
        """For one more group: of this run, and of all runs that this device works for."""
        kept, run = self._policy.kept_groups, _named(context, "")
        crowded = [f"{run}{old}" for old in _oldest(context, f"{GROUP}{run}", kept - 1)]
        for old in (*crowded, *_oldest(context, GROUP, MOST_RUNS * kept - 1)):
            _forget(context, old)

    def _coins(self, fields: Fields, group: str, context: Context) -> Fields:
        client, coin = self._load(context, group).toss(Members.from_fields(fields))
        _store(context, client)
        return coin.to_fields()

    def _shares(self, fields: Fields, group: str, context: Context) -> Fields:
        near = Neighbourhood.from_fields(fields)
        client, deal = self._load(context, group).share(near, self._verifier, self._entropy)
        _store(context, client)
        return deal.to_fields()

    def _masked(self, message: Message, context: Context, call_next: Next, fields: Fields, group: str) -> Message:
        client = self._load(context, group)
        try:
            if client.state is ClientState.SHARED:
                client = client.receive(Inbox.from_fields(fields))
        except FalseShares as error:
            _forget(context, group)
            return _reply(message, Phase.MASKED, Complaint(error.dealers).to_fields())
        settings, training = Settings.from_fields(fields), _category(message) == "train"
        inputs = held_model.resolve(_without_record(message.content), fields, group, context)
        base = _arrays(inputs, "message") if training else {}
        kind, app = message.metadata.message_type, self._client_app
        found = inputs_digest(inputs, message_type=kind, client_app=app, run_config=context.run_config)
        terms, schema = _agreed(fields, client, settings, base, found)
        client.check_round(terms)
        feedback = settings.feedback and training
        counted = Reader(fields, "the terms of a round").identifier("counted_round") if feedback else ""
        held_model.keep(inputs, fields, group, context)
        charge = self._charge(settings, schema, client.terms, terms.round_id, context, training=training)
        before = self._checked(charge)
        reply = call_next(with_content(message, inputs), context)
        if reply.has_error():
            return reply
        owed = residuals.owed(counted, base, context)
        update = _update(reply.content, settings, base, owed, training=training)
        if charge and self._ledgers:
            self._ledgers.spend(charge, before | self._ledgers.epochs())
        words, left = encode(schema, update, self._entropy, feedback=feedback)
        client = client.mask(terms, words)
        _store(context, client)
        if training:
            residuals.keep(counted, terms.round_id, left, context)
        return _vector_reply(message, schema.layout.pack(words))

    def _charge(
        self,
        settings: Settings,
        schema: Schema,
        terms: GroupTerms,
        round_id: str,
        context: Context,
        *,
        training: bool,
    ) -> Charge | None:
        """What the round would cost this device, if it is to add noise. Raises `ProtocolError`, `Unsupported`."""
        event = self._policy.privacy.admit(settings, schema, terms, training=training)
        if event is None or settings.privacy is None:
            return None
        return Charge(f"run {context.run_id}", round_id, event, settings.privacy.budget)

    def _checked(self, charge: Charge | None) -> Epochs:
        """Whether it can be paid, before the app works for nothing; and for which data. Raises what `Ledgers.check` raises."""
        if charge is None:
            return frozenset()
        if self._ledgers is None:
            raise Unsupported("this device keeps no privacy ledger, so it adds no noise and takes no part")
        epochs = self._ledgers.epochs()
        self._ledgers.check(charge, epochs)
        return epochs

    def _confirmed(self, fields: Fields, group: str, context: Context) -> Fields:
        client = self._load(context, group)
        counted = from_bitmap(Reader(fields, "who is counted").blob("counted"), client.terms.clients)
        client, confirmation = client.confirm(counted)
        _store(context, client)
        return confirmation.to_fields()

    def _unmasked(self, fields: Fields, group: str, context: Context) -> Fields:
        client, reveal = self._load(context, group).reveal(Witness.from_fields(fields))
        _store(context, client)
        return reveal.to_fields()

    def _recovered(self, fields: Fields, group: str, context: Context) -> Fields:
        client, shares = self._load(context, group).recover(RecoveryRequest.from_fields(fields))
        _store(context, client)
        return shares.to_fields()

    @property
    def _steps(self) -> Mapping[Phase, Callable[[Fields, str, Context], Fields]]:
        return {
            Phase.KEYS: self._keys,
            Phase.COINS: self._coins,
            Phase.SHARES: self._shares,
            Phase.CONFIRMED: self._confirmed,
            Phase.UNMASKED: self._unmasked,
            Phase.RECOVERED: self._recovered,
        }

    def _load(self, context: Context, group: str) -> Client:
        record = context.state.get(_slot(group))
        if not isinstance(record, ConfigRecord):
            raise NoKeys("this device has no keys for this group: it never joined, has finished, or was restarted")
        try:
            return Client.from_fields(dict(record.items()), self._policy.client)
        except Malformed as error:
            raise NoKeys(
                "this device has no keys for this group: what it kept is damaged", detail=str(error)
            ) from error


def make_secure_mod(
    identity: Identity,
    verifier: Verifier,
    policy: ModPolicy | None = None,
    *,
    entropy: Entropy = os.urandom,
    client_app: str = "",
    ledgers: Ledgers | None = None,
) -> SecureMod:
    """The mod for one device. Put it first in the app's list of mods, so that nothing passes it by."""
    return SecureMod(identity, verifier, policy or ModPolicy(), entropy, client_app=client_app, ledgers=ledgers)


def _category(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def _named(context: Context, group_id: str) -> str:
    """A group by its run: what one run has made, another cannot use up."""
    return f"{context.run_id}.{group_id}"


def _slot(group: str) -> str:
    return f"{GROUP}{group}"


def _store(context: Context, client: Client) -> None:
    """In place of the record that it was read from, if any, whose untouched values are not checked again. A client that has used up
    its keys is forgotten.
    """
    group = _named(context, client.terms.group_id)
    if client.spent:
        _forget(context, group)
        return
    old = context.state.get(_slot(group))
    record = old.copy() if isinstance(old, ConfigRecord) else ConfigRecord()
    before, after = dict(record.items()), client.to_fields()
    for name in before.keys() - after.keys():
        del record[name]
    for name, value in after.items():
        if before.get(name) is not value:
            record[name] = value
    context.state[_slot(group)] = record


def _forget(context: Context, group: str) -> None:
    context.state.pop(_slot(group), None)
    held_model.forget(group, context)


def _oldest(context: Context, kind: str, kept: int) -> list[str]:
    """The ids of all records of a kind but the `kept` newest."""
    found = [name.removeprefix(kind) for name in context.state if name.startswith(kind)]
    return found[: max(0, len(found) - kept)]


def _agreed(fields: Fields, client: Client, settings: Settings, base: Arrays, inputs: str) -> tuple[RoundTerms, Schema]:
    """What this round is about, as this device sees it. Raises `DigestMismatch` where the server says that others see something
    else.
    """
    read = Reader(fields, "the terms of a round")
    round_id = read.identifier("round_id")
    present = from_bitmap(read.blob("present"), client.terms.clients)
    schema = settings.schema(client.terms.clients, base, rotation_of(round_id))
    if schema.digest != read.text("schema_digest"):
        raise DigestMismatch("the arrays or settings of this round are not those that the others were given")
    if inputs != read.text("inputs_digest"):
        raise DigestMismatch("this device was given another model or other settings than the round agreed on")
    return RoundTerms(client.binding, read.integer("number"), round_id, present, schema.digest, inputs), schema


def _update(content: RecordDict, settings: Settings, base: Arrays, owed: Arrays, *, training: bool) -> Update:
    """What the app answered. In a private round neither its weight nor its metrics are looked at: each device counts once."""
    arrays = _arrays(content, "reply") if training else {}
    if settings.privacy:
        return Update(1, {}, arrays, base)
    weight, metrics = _metrics(content, settings.weight_key)
    return Update(weight, metrics, arrays, base, owed)


def _without_record(content: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in content.items() if name != RECORD})


def _arrays(content: RecordDict, what: str) -> Arrays:
    """The one `ArrayRecord`. Raises `Unsupported` for another number of them, `Malformed` for damaged arrays."""
    records: list[ArrayRecord] = list(content.array_records.values())
    if len(records) != 1:
        raise Unsupported(f"secure training takes one ArrayRecord a {what}, this one has {len(records)}")
    return record_to_numpy(records[0])


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


def _vector_reply(message: Message, packed: bytes) -> Message:
    record = ConfigRecord({"phase": str(Phase.MASKED)})
    vector = ArrayRecord({VECTOR_RECORD: pack_bytes(packed, PACKED_TYPE)})
    return reply_with(message, RecordDict({RECORD: record, VECTOR_RECORD: vector}))
