"""One exchange of a small group as it should be: at each step a device's state, what it is asked, what it answers, and a server
that waits for the answer. Made by the real roles, anew in each process.
"""

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from shared.flower import inputs_digest
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.keys import UnsignedIdentity, UnsignedVerifier
from shared.secagg.messages import RECORD, Complaint, Inbox, Neighbourhood, Phase
from shared.secagg.policy import Policy
from shared.secagg.schema import Schema
from shared.secagg.server import Round
from shared.secagg.setup import Group, Setup
from shared.secagg.terms import GroupTerms, RoundTerms, Settings, rotation_of, to_bitmap

SEAT, SILENT, GONE = 1, 4, 5
SIZES = {"complete": (5, Rates(0.2, 0.0)), "sparse": (30, Rates(0.05, 0.05))}
ARRAYS = {"w": np.linspace(-1, 1, 6, dtype=np.float32)}


@dataclass(frozen=True)
class Step:
    """`ask` puts this step's question to a client; `server` makes one that waits for `answer`, if there is one to be read."""

    client: Client
    request: RecordDict
    ask: Callable[[Client], Any]
    server: Callable[[], Any]
    answer: Any = None
    messages: tuple[Any, ...] = ()


@dataclass
class _Play:
    """A group that goes through its steps, device by device."""

    terms: GroupTerms
    clients: dict[int, Client]
    identities: dict[int, UnsignedIdentity]
    verifier: UnsignedVerifier
    steps: list[Step] = field(default_factory=list)

    def note(self, phase: Phase, ask: Callable[[Client], Any], server: Any, asked: tuple[Any, ...], **more: Any) -> Any:
        """The step of `SEAT`: what it answers, in a state that it goes on with."""
        fields = {name: value for item in asked for name, value in item.to_fields().items()}
        record = ConfigRecord({**fields, **more, "group_id": self.terms.group_id, "phase": str(phase)})
        inputs = {"arrays": ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})}
        request = RecordDict({**(inputs if phase is Phase.MASKED else {}), RECORD: record})
        before = self.clients[SEAT]
        said = ask(before)
        self.clients[SEAT], answer = said if isinstance(said, tuple) else (said, None)
        waiting = twin(server)
        messages = (*asked, *([answer] if answer is not None else []))
        self.steps.append(Step(before, request, ask, lambda: twin(waiting), answer, messages))
        return answer


def twin(server: Any) -> Any:
    """A server in the same state, which goes its own way. (Secrets do not let themselves be copied deeply.)"""
    other = copy.copy(server)
    for name, value in vars(server).items():
        object.__setattr__(other, name, _own(value))
    return other


def _own(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return value.copy() if isinstance(value, set | np.ndarray) else value


def steps() -> tuple[Step, ...]:
    """Of a complete group and of one that draws a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(step for size, rates in SIZES.values() for step in _play(size, rates))


def _play(size: int, rates: Rates) -> list[Step]:
    terms = GroupTerms(f"group-{size}", size, 2, rates)
    seats = range(1, size + 1)
    identities = {seat: UnsignedIdentity(f"dev-{seat}") for seat in seats}
    play = _Play(terms, {seat: Client(terms, seat, Policy()) for seat in seats}, identities, UnsignedVerifier())
    group, inboxes = _make(play, Setup(terms, play.verifier))
    _round(play, group, inboxes)
    return play.steps


def _make(play: _Play, setup: Setup) -> tuple[Group, dict[int, Inbox]]:
    verifier, others = play.verifier, [seat for seat in play.clients if seat != SEAT]
    ask: Callable[[Client], Any] = lambda client: client.advertise(play.identities[SEAT], os.urandom)  # noqa: E731
    setup.add_advert(play.note(Phase.KEYS, ask, setup, (play.terms,), index=SEAT))
    for seat in others:
        play.clients[seat], advert = play.clients[seat].advertise(play.identities[seat], os.urandom)
        setup.add_advert(advert)
    members = setup.close_keys()
    if members is not None:
        setup.add_coin(play.note(Phase.COINS, lambda client: client.toss(members), setup, (members,)))
        for seat in others:
            play.clients[seat], coin = play.clients[seat].toss(members)
            setup.add_coin(coin)
        setup.close_coins()
    near: Neighbourhood = setup.neighbourhood(SEAT)
    setup.add_deal(play.note(Phase.SHARES, lambda client: client.share(near, verifier, os.urandom), setup, (near,)))
    for seat in others:
        play.clients[seat], deal = play.clients[seat].share(setup.neighbourhood(seat), verifier, os.urandom)
        setup.add_deal(deal)
    return setup.close_shares()


def _round(play: _Play, group: Group, inboxes: dict[int, Inbox]) -> None:
    settings, round_id = Settings(max_weight=10), "round"
    schema = settings.schema(play.terms.clients, ARRAYS, rotation_of(round_id))
    inputs = RecordDict({"arrays": ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})})
    digest = inputs_digest(inputs, message_type="train", client_app="")
    terms = RoundTerms(group.binding, 1, round_id, frozenset(play.clients), schema.digest, digest)
    server = Round(group, terms, schema)
    present = to_bitmap(terms.present, play.terms.clients)
    agreed = {
        "number": 1,
        "round_id": round_id,
        "present": present,
        "schema_digest": schema.digest,
        "inputs_digest": digest,
        "counted_round": "",
    }
    complaint = Complaint(tuple(inboxes[SEAT].boxes)[:1])
    ask: Callable[[Client], Any] = lambda client: (client.receive(inboxes[SEAT]), complaint)  # noqa: E731
    play.note(Phase.MASKED, ask, server, (settings, inboxes[SEAT]), **agreed)
    for seat in play.clients:
        if seat != SEAT:
            play.clients[seat] = play.clients[seat].receive(inboxes[seat])
    counted = _masked(play, server, schema, agreed, settings)
    said = {"counted": to_bitmap(counted, play.terms.clients)}
    server.add_confirmation(play.note(Phase.CONFIRMED, lambda client: client.confirm(counted), server, (), **said))
    for seat in sorted(counted - {SEAT}):
        play.clients[seat], confirmation = play.clients[seat].confirm(counted)
        server.add_confirmation(confirmation)
    witnesses = server.close_confirmed()
    witness = witnesses.pop(SEAT)
    server.add_reveal(play.note(Phase.UNMASKED, lambda client: client.reveal(witness), server, (witness,)))
    for seat in witnesses.keys() - {SILENT}:
        server.add_reveal(play.clients[seat].reveal(witnesses[seat])[1])
    requests = server.close_unmasked()
    if SEAT in requests:
        request = requests[SEAT]
        play.note(Phase.RECOVERED, lambda client: client.recover(request), server, (request,))


def _masked(play: _Play, server: Round, schema: Schema, agreed: dict[str, Any], settings: Settings) -> frozenset[int]:
    """A second question of the masked phase, now that the letters are opened; then the vectors of all but one device."""
    play.note(
        Phase.MASKED, lambda client: client.mask(server.terms, schema.layout.zeros()), server, (settings,), **agreed
    )
    for seat in sorted(server.terms.present - {GONE}):
        words = schema.layout.zeros()
        if seat != SEAT:
            play.clients[seat] = play.clients[seat].mask(server.terms, words)
        server.add_vector(seat, schema.layout.pack(words))
    return server.close_masked()
