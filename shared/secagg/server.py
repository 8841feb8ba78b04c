"""The server's side of one round of a group. It adds each masked vector as it comes, so it holds one vector and a few KB a client.

A message is checked whole before anything changes: every secret that a client gives out must hash to what was dealt. What a
client gets wrong raises a `PeerError` (leave that client out, and name it); what ends the round raises `RoundAborted`. No sum
is returned unless it is exact.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from shared.errors import Malformed, ProtocolError, RoundAborted
from shared.secagg.keys import KEY_BYTES, TAG_BYTES, Secret, mask_keys, unseal
from shared.secagg.masks import Mask, apply_masks
from shared.secagg.messages import (
    Complaint,
    Confirmation,
    RecoveryRequest,
    Reveal,
    Shares,
    Witness,
    pair_digest,
    secret_digest,
)
from shared.secagg.packing import Words
from shared.secagg.schema import Schema
from shared.secagg.setup import Group
from shared.secagg.shamir import agreeing, combine
from shared.secagg.states import ROUND, RoundEvent, RoundState, advance
from shared.secagg.terms import RoundTerms

Apply = Callable[[Words, list[Mask]], None]


class Round:
    """`quorum` is the least number of clients that may be counted; it is never below what the group's clients insist on.

    Raises `ValueError` for terms that are not of this group and schema.
    """

    def __init__(self, group: Group, terms: RoundTerms, schema: Schema, *, quorum: int = 0) -> None:
        if not terms.present <= set(group.dealt):
            raise ValueError("a round is for those who dealt shares in its group")
        if terms.binding != group.binding or not 1 <= terms.number <= group.terms.rounds:
            raise ValueError("the group has no keys for this round")
        if terms.schema_digest != schema.digest or schema.clients < group.terms.clients:
            raise ValueError("the round agreed on another schema")
        self.group, self.terms, self.schema = group, terms, schema
        self.quorum = max(quorum, group.terms.fewest)
        self._state = RoundState.MASKED
        self._sum = schema.layout.zeros()
        self._counted: set[int] = set()
        self._complaints: dict[int, set[int]] = {}  # dealer → who cannot use what it dealt
        self._tags: dict[int, dict[int, bytes]] = {}  # recipient → sender → tag
        self._confirmed: set[int] = set()
        self._reveals: dict[int, Reveal] = {}
        self._shares: dict[int, Shares] = {}
        self._liars: dict[int, str] = {}

    @property
    def state(self) -> RoundState:
        return self._state

    @property
    def counted(self) -> frozenset[int]:
        """Whose vectors are in the sum."""
        return frozenset(self._counted)

    @property
    def false_dealers(self) -> Mapping[int, int]:
        """Who dealt false shares, and how many said so. One device alone may be lying itself, unless nobody else could say it.

        So b must say so who each complain of fewer than b: devices that work together have fewer named than they are.
        """
        found = dict.fromkeys(self._liars, 0)
        named = Counter(seat for complaining in self._complaints.values() for seat in complaining)
        for dealer, complaining in self._complaints.items():
            counts = enumerate(sorted(named[seat] for seat in complaining), start=1)
            if any(count < b for b, count in counts) or complaining >= set(self.group.holders(dealer)):
                found[dealer] = len(complaining)
        return found

    def add_vector(self, seat: int, packed: bytes) -> None:
        """Raises `ProtocolError` or `Malformed`."""
        state = advance(ROUND, self._state, RoundEvent.VECTOR)
        self._check_awaited(seat)
        self._sum += self.schema.layout.unpack(packed)
        self._counted.add(seat)
        self._state = state

    def add_complaint(self, seat: int, complaint: Complaint) -> None:
        """In place of a vector. Raises `ProtocolError`."""
        state = advance(ROUND, self._state, RoundEvent.COMPLAINT)
        self._check_awaited(seat)
        if not complaint.dealers or not set(complaint.dealers) <= set(self.group.holders(seat)):
            raise ProtocolError(f"{self._device(seat)} complains of clients that dealt it nothing")
        for dealer in complaint.dealers:
            self._complaints.setdefault(dealer, set()).add(seat)
        self._state = state

    def _check_awaited(self, seat: int) -> None:
        complained = any(seat in complaining for complaining in self._complaints.values())
        if seat not in self.terms.present or seat in self._counted or complained:
            raise ProtocolError(f"client {seat} does not take part, or has answered already")

    def close_masked(self) -> frozenset[int]:
        """Whom to confirm, to be asked of each of them. Raises `RoundAborted` for too few."""
        self._close(RoundEvent.CLOSE_MASKED, len(self._counted), "sent vectors")
        return self.counted

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Raises `ProtocolError`."""
        state = advance(ROUND, self._state, RoundEvent.CONFIRMATION)
        sender = confirmation.sender
        if sender not in self._counted or sender in self._confirmed:
            raise ProtocolError(f"client {sender} is not counted, or has confirmed already")
        told = self._counted - {sender} if sender in self.group.graph.witnesses else set()
        if set(confirmation.tags) != told:
            raise ProtocolError(
                f"{self._device(sender)} is no witness, or one that does not confirm to all who are counted"
            )
        for recipient, tag in confirmation.tags.items():
            self._tags.setdefault(recipient, {})[sender] = tag
        self._confirmed.add(sender)
        self._state = state

    def close_confirmed(self) -> dict[int, Witness]:
        """What to show each client that confirmed. Raises `RoundAborted` for too few."""
        witnesses, needed = len(self._confirmed & self.group.graph.witnesses), self.group.terms.degrees.majority
        self._close(RoundEvent.CLOSE_CONFIRMED, len(self._confirmed), "confirmed who is counted")
        if witnesses < needed:
            self._abort(f"only {witnesses} witnesses confirmed who is counted, of which {needed} are needed")
        tags, self._tags = self._tags, {}
        return {seat: Witness(tags.get(seat, {})) for seat in sorted(self._confirmed)}

    def add_reveal(self, reveal: Reveal) -> None:
        """Raises `ProtocolError` for secrets that are not those dealt."""
        state = advance(ROUND, self._state, RoundEvent.REVEAL)
        sender, number, binding = reveal.sender, self.terms.number, self.group.binding
        if sender not in self._confirmed or sender in self._reveals:
            raise ProtocolError(f"client {sender} did not confirm, or has revealed its secrets already")
        if set(reveal.pairs) != set(self._gone_partners(sender)):
            raise ProtocolError(f"{self._device(sender)} reveals other masks than those of its partners that are gone")
        dealt = self.group.dealt[sender]
        if secret_digest("seed", binding, sender, number, reveal.seed) != dealt.seed_digests[number - 1]:
            raise ProtocolError(f"{self._device(sender)} reveals another seed than it dealt shares of")
        for other, secret in reveal.pairs.items():
            if pair_digest(binding, number, secret) != self._pair_digest(sender, other):
                raise ProtocolError(f"{self._device(sender)} reveals another mask than it dealt")
        self._reveals[sender] = reveal
        self._state = state

    def close_unmasked(self) -> dict[int, RecoveryRequest]:
        """What to ask of whom, for the sake of counted clients that are gone; nothing if none is. Raises `RoundAborted`."""
        state = advance(ROUND, self._state, RoundEvent.CLOSE_UNMASKED)
        silent = sorted(self._counted - set(self._reveals))
        wanted = sorted({other for seat in silent for other in self._gone_partners(seat)})
        for dealer in (*silent, *wanted):
            able = sum(1 for holder in self.group.holders(dealer) if holder in self._reveals)
            if able < self.group.terms.degrees.threshold:
                self._abort(f"{able} devices are left that hold shares of {self._device(dealer)}")
        self._state = state
        requests = {}
        for seat in sorted(self._reveals):
            near = set(self.group.holders(seat))
            seeds, keys = near & set(silent), near & set(wanted)
            if seeds or keys:
                requests[seat] = RecoveryRequest(tuple(sorted(seeds)), tuple(sorted(keys)))
        return requests

    def add_shares(self, shares: Shares) -> None:
        """Raises `ProtocolError`."""
        state = advance(ROUND, self._state, RoundEvent.SHARES)
        if shares.sender not in self._reveals or shares.sender in self._shares:
            raise ProtocolError(f"client {shares.sender} was not asked for shares, or has sent them already")
        near, silent = set(self.group.holders(shares.sender)), self._counted - set(self._reveals)
        wanted = {other for seat in silent for other in self._gone_partners(seat)}
        if set(shares.seeds) != near & silent or set(shares.keys) != near & wanted:
            raise ProtocolError(f"{self._device(shares.sender)} sent other shares than it was asked for")
        self._shares[shares.sender] = shares
        self._state = state

    def finish(self, apply: Apply = apply_masks) -> Words:
        """The exact sum of the counted vectors, with noise above the bits that are used. Raises `RoundAborted` for too few
        shares, or false ones (their dealers named).

        `apply` adds masks to words: hand in one that uses all cores.
        """
        state = advance(ROUND, self._state, RoundEvent.FINISH)
        apply(self._sum, self._masks())
        self._state = state
        self._forget()
        return self._sum

    def abort(self) -> None:
        """Drop everything. The round is run again with fresh keys."""
        self._state = advance(ROUND, self._state, RoundEvent.ABORT)
        self._sum = self._sum[:0]
        self._forget()

    def _forget(self) -> None:
        self._reveals, self._shares, self._tags = {}, {}, {}

    def _masks(self) -> list[Mask]:
        """What must still go out of the sum: the self-masks of the counted, and their masks with partners that are gone."""
        of_seed, of_pair = mask_keys(self.terms.digest)
        masks: list[Mask] = []
        opened: dict[int, dict[int, Secret]] = {}
        for seat in sorted(self._counted):
            reveal = self._reveals.get(seat)
            seed = reveal.seed if reveal else self._recover("seed", seat)
            masks.append(Mask(of_seed(seed), negative=True))
            for other in self._gone_partners(seat):
                if reveal:
                    secret = reveal.pairs[other]
                else:
                    if other not in opened:
                        opened[other] = self._open_record(other)
                    secret = opened[other][seat]
                masks.append(Mask(of_pair(secret), negative=seat < other))
        return masks

    def _gone_partners(self, seat: int) -> list[int]:
        """Who shares a mask with `seat`, took part, and is not counted."""
        return [
            other
            for other in self.group.dealt[seat].partners
            if other in self.terms.present and other not in self._counted
        ]

    def _pair_digest(self, seat: int, other: int) -> bytes:
        dealt = self.group.dealt[seat]
        place = dealt.partners.index(other)
        return dealt.pair_digests[self.terms.number - 1][place * TAG_BYTES : (place + 1) * TAG_BYTES]

    def _recover(self, kind: str, dealer: int) -> Secret:
        """From shares, of which some may be false. Raises `RoundAborted`.

        One false share is found if there is a share to spare, more by `agreeing`. Failing that the dealer is named, unless a single
        holder could have brought it about.
        """
        held = {
            holder: (shares.seeds if kind == "seed" else shares.keys)[dealer]
            for holder, shares in sorted(self._shares.items())
            if dealer in (shares.seeds if kind == "seed" else shares.keys)
        }
        threshold = self.group.terms.degrees.threshold
        if len(held) < threshold:
            self._abort(f"{len(held)} devices revealed shares of {self._device(dealer)}")
        dealt, number = self.group.dealt[dealer], self.terms.number
        expected = (dealt.seed_digests if kind == "seed" else dealt.key_digests)[number - 1]
        for chosen in _choices(held, threshold):
            try:
                secret = combine({holder: held[holder] for holder in chosen})
            except Malformed:
                continue
            if secret_digest(kind, self.group.binding, dealer, number, secret) == expected:
                return secret
        if len(held) == threshold:
            self._abort(f"{threshold} devices revealed shares of {self._device(dealer)} that do not fit together")
        self._liars[dealer] = kind
        self._abort(f"{self._device(dealer)} dealt shares of another {kind} than it committed to", fresh=False)
        raise AssertionError

    def _open_record(self, dealer: int) -> dict[int, Secret]:
        """The mask secrets that a client which is gone shares with its partners. Raises `RoundAborted`."""
        dealt, number = self.group.dealt[dealer], self.terms.number
        key = self._recover("key", dealer)
        try:
            raw = unseal(key, dealt.records[number - 1]).reveal()
        except ProtocolError:
            raw = b""
        secrets = {
            other: Secret(raw[place * KEY_BYTES : (place + 1) * KEY_BYTES])
            for place, other in enumerate(dealt.partners)
        }
        if any(
            pair_digest(self.group.binding, number, item) != self._pair_digest(dealer, other)
            for other, item in secrets.items()
        ):
            self._liars[dealer] = "record"
            self._abort(f"{self._device(dealer)} dealt a record of other masks than it committed to", fresh=False)
        return secrets

    def _close(self, event: RoundEvent, size: int, what: str) -> None:
        state = advance(ROUND, self._state, event)
        if size < self.quorum:
            self._abort(f"only {size} devices {what}")
        self._state = state

    def _abort(self, reason: str, *, fresh: bool = True) -> None:
        self.abort()
        raise RoundAborted(f"{reason}, too few: run the round again with fresh keys" if fresh else reason)

    def _device(self, seat: int) -> str:
        return self.group.devices[seat]


def _choices(held: Mapping[int, Secret], threshold: int) -> Iterable[tuple[int, ...]]:
    """Sets of `threshold` holders to try."""
    holders = tuple(held)
    yield holders[:threshold]
    yield agreeing(held, threshold)[:threshold]
    for turn in range(1, len(holders)):
        yield (holders[turn:] + holders[:turn])[:threshold]
