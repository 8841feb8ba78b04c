"""The server's side. It adds each masked vector as it comes, so it holds one vector and a few KB a client.

A message is checked whole before anything changes. What a client gets wrong raises a `PeerError` (leave that client
out, and name it); what ends the round raises `RoundAborted`. No sum is returned unless it is exact.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from shared.errors import Malformed, ProtocolError, RoundAborted
from shared.secagg.graph import build_graph
from shared.secagg.keys import KeyPair, Secret, Verifier, pair_mask_key, self_mask_key
from shared.secagg.masks import Mask, Words, apply_masks
from shared.secagg.messages import (
    Advert,
    Complaint,
    Deal,
    Inbox,
    Letter,
    Reveal,
    Roster,
    UnmaskRequest,
    seed_digest,
    share_commitment,
)
from shared.secagg.shamir import combine, lagrange
from shared.secagg.states import SERVER, ServerEvent, ServerState, advance
from shared.secagg.terms import Terms

COMPLAINTS = 2  # of one dealer, before it is believed that the fault is the dealer's: one device alone may slander it


class Server:
    """One round. `quorum` is the least number of clients that may be counted; it is never below the threshold."""

    def __init__(self, terms: Terms, length: int, verifier: Verifier, *, quorum: int = 0) -> None:
        self.terms = terms
        self.quorum = max(quorum, terms.threshold)
        self._verifier = verifier
        self._graph = build_graph(terms.graph, terms.clients)
        self._state = ServerState.KEYS
        self._roster: dict[int, Advert] = {}
        self._seed_digests: dict[int, bytes] = {}
        self._dealt: frozenset[int] = frozenset()
        self._letters: dict[int, dict[int, Letter]] = {}  # dealer → holder → what was dealt
        self._sum: Words = np.zeros(length, dtype="<u4")
        self._counted: set[int] = set()
        self._reveals: dict[int, Reveal] = {}
        self._complaints: dict[int, set[int]] = {}  # dealer → who cannot use what it dealt
        self._proven: set[int] = set()  # dealt shares that match its commitments and still do not fit together

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def counted(self) -> frozenset[int]:
        """Whose vectors are in the sum."""
        return frozenset(self._counted)

    @property
    def false_dealers(self) -> Mapping[int, int]:
        """Who dealt false shares, and how many said so. One device alone may be lying itself, unless nobody else could say it."""
        found = {}
        for dealer, complaining in self._complaints.items():
            could = set(self._graph.neighbours(dealer, self._dealt))
            if len(complaining) >= COMPLAINTS or complaining >= could:
                found[dealer] = len(complaining)
        return {**dict.fromkeys(self._proven, 0), **found}

    def add_advert(self, advert: Advert) -> None:
        """Raises `ProtocolError` or `SignatureInvalid`."""
        state = advance(SERVER, self._state, ServerEvent.ADVERT)
        if not 1 <= advert.index <= self.terms.clients or advert.index in self._roster:
            raise ProtocolError(f"client {advert.index} was not invited, or has sent keys already")
        if advert.device in {item.device for item in self._roster.values()}:
            raise ProtocolError(f"{advert.device} takes part in this round already")
        known = {key for item in self._roster.values() for key in (item.share_public, item.mask_public)}
        if known & {advert.share_public, advert.mask_public} or advert.share_public == advert.mask_public:
            raise ProtocolError(f"the keys of {advert.device} are not fresh")
        advert.check(self.terms, self._verifier)
        self._roster[advert.index] = advert
        self._state = state

    def close_keys(self) -> Roster:
        self._close(ServerEvent.CLOSE_KEYS, len(self._roster), "sent keys")
        return Roster(tuple(self._roster[index] for index in sorted(self._roster)))

    def add_deal(self, deal: Deal) -> None:
        """Raises `ProtocolError` unless the letters are for exactly the dealer's neighbours and itself."""
        state = advance(SERVER, self._state, ServerEvent.DEAL)
        if deal.sender not in self._roster or deal.sender in self._letters:
            raise ProtocolError(f"client {deal.sender} sent no keys, or has dealt already")
        letters = {letter.peer: letter for letter in deal.letters}
        expected = {deal.sender, *self._graph.neighbours(deal.sender, self._roster)}
        if len(deal.letters) != len(expected) or set(letters) != expected:
            raise ProtocolError(f"{self._device(deal.sender)} dealt shares to the wrong clients")
        self._letters[deal.sender] = letters
        self._seed_digests[deal.sender] = deal.seed_digest
        self._state = state

    def close_shares(self) -> dict[int, Inbox]:
        """What to send to each client that dealt."""
        self._close(ServerEvent.CLOSE_SHARES, len(self._letters), "dealt shares")
        self._dealt = frozenset(self._letters)
        return {index: self._inbox(index) for index in self._letters}

    def _inbox(self, recipient: int) -> Inbox:
        senders = self._graph.neighbours(recipient, self._letters)
        return Inbox(tuple(replace(self._letters[sender][recipient], peer=sender) for sender in senders))

    def add_vector(self, index: int, words: Words) -> None:
        """Add a masked vector to the sum. Raises `ProtocolError` (a stranger, or twice), `Malformed` (its shape)."""
        state = advance(SERVER, self._state, ServerEvent.VECTOR)
        if index not in self._letters or self._has_answered(index):
            raise ProtocolError(f"client {index} dealt no shares, or has answered already")
        if words.dtype != np.dtype("<u4") or words.shape != self._sum.shape:
            raise Malformed(f"{self._device(index)} sent a vector of another type or length")
        self._sum += words
        self._counted.add(index)
        self._state = state

    def add_complaint(self, index: int, complaint: Complaint) -> None:
        """Instead of a vector. Raises `ProtocolError` unless it names others that dealt to this client."""
        state = advance(SERVER, self._state, ServerEvent.COMPLAINT)
        if index not in self._letters or self._has_answered(index):
            raise ProtocolError(f"client {index} dealt no shares, or has answered already")
        near = set(self._graph.neighbours(index, self._letters))
        if not complaint.dealers or not set(complaint.dealers) <= near:
            raise ProtocolError(f"{self._device(index)} complains of clients that dealt it nothing")
        for dealer in complaint.dealers:
            self._complaints.setdefault(dealer, set()).add(index)
        self._state = state

    def _has_answered(self, index: int) -> bool:
        return index in self._counted or any(index in complaining for complaining in self._complaints.values())

    def close_masked(self) -> dict[int, UnmaskRequest]:
        """What to ask of each counted client."""
        self._close(ServerEvent.CLOSE_MASKED, len(self._counted), "sent masked vectors")
        return {index: self._request(index) for index in self._counted}

    def _request(self, holder: int) -> UnmaskRequest:
        near = (holder, *self._graph.neighbours(holder, self._letters))
        counted = tuple(sorted(dealer for dealer in near if dealer in self._counted))
        return UnmaskRequest(counted, tuple(sorted(set(near) - set(counted))))

    def add_reveal(self, reveal: Reveal) -> None:
        """Raises `ProtocolError`, naming the device, for shares not asked for or other than those dealt to it."""
        state = advance(SERVER, self._state, ServerEvent.REVEAL)
        holder = reveal.sender
        if holder not in self._counted or holder in self._reveals:
            raise ProtocolError(f"client {holder} is not counted, or has revealed already")
        asked = self._request(holder)
        if set(reveal.seed_shares) != set(asked.seeds_of) or set(reveal.key_shares) != set(asked.keys_of):
            raise ProtocolError(f"{self._device(holder)} revealed other shares than were asked for")
        for kind, shares in (("seed", reveal.seed_shares), ("key", reveal.key_shares)):
            for dealer, share in shares.items():
                if share_commitment(kind, self.terms, dealer, holder, share) != self._commitment(kind, dealer, holder):
                    raise ProtocolError(f"{self._device(holder)} revealed a share that was not dealt to it")
        self._reveals[holder] = reveal
        self._state = state

    def _commitment(self, kind: str, dealer: int, holder: int) -> bytes:
        letter = self._letters[dealer][holder]
        return letter.seed_commitment if kind == "seed" else letter.key_commitment

    def finish(self) -> Words:
        """The exact sum of the counted vectors. Raises `RoundAborted` for too few shares, or false ones (named)."""
        state = advance(SERVER, self._state, ServerEvent.FINISH)
        try:
            masks = self._masks()
        except RoundAborted:
            self.abort()
            raise
        apply_masks(self._sum, masks)
        self._state = state
        self._letters, self._reveals = {}, {}
        return self._sum

    def abort(self) -> None:
        """Drop everything. The round is run again with fresh keys."""
        self._state = advance(SERVER, self._state, ServerEvent.ABORT)
        self._sum = np.zeros(0, dtype="<u4")
        self._letters, self._reveals = {}, {}

    def _masks(self) -> list[Mask]:
        """What must still go out of the sum: the self-masks of the counted and the pairwise masks of the dropped."""
        weights: dict[tuple[int, ...], dict[int, int]] = {}
        masks = []
        for dealer in sorted(self._counted):
            seed = self._recover("seed", dealer, weights)
            if seed_digest(self.terms, dealer, seed) != self._seed_digests[dealer]:
                self._proven.add(dealer)
                raise RoundAborted(f"{self._device(dealer)} dealt shares of another seed than it committed to")
            masks.append(Mask(self_mask_key(seed, self.terms.digest, self._device(dealer)), negative=True))
        for dealer in sorted(set(self._letters) - self._counted):
            pair = KeyPair.from_private(self._recover("key", dealer, weights))
            if pair.public != self._roster[dealer].mask_public:
                self._proven.add(dealer)
                raise RoundAborted(f"{self._device(dealer)} dealt shares of another key than it advertised")
            masks += [self._pair_mask(pair, dealer, peer) for peer in self._graph.neighbours(dealer, self._counted)]
        return masks

    def _pair_mask(self, pair: KeyPair, dropped: int, counted: int) -> Mask:
        """Takes the mask with `dropped` out of the vector of `counted`; its sign there follows their order."""
        one, other = self._roster[dropped], self._roster[counted]
        key = pair_mask_key(pair, other.mask_public, self.terms.digest, one.device, other.device)
        return Mask(key, negative=counted < dropped)

    def _shares(self, kind: str, dealer: int) -> dict[int, Secret]:
        """Of one dealer's secret, by holder."""
        by_holder = {
            holder: reveal.seed_shares if kind == "seed" else reveal.key_shares
            for holder, reveal in sorted(self._reveals.items())
        }
        return {holder: shares[dealer] for holder, shares in by_holder.items() if dealer in shares}

    def _recover(self, kind: str, dealer: int, weights: dict[tuple[int, ...], dict[int, int]]) -> Secret:
        shares = self._shares(kind, dealer)
        holders = tuple(shares)[: self.terms.threshold]
        if len(holders) < self.terms.threshold:
            needed = f"{self.terms.threshold} are needed: run the round again with fresh keys"
            raise RoundAborted(f"{len(holders)} devices revealed shares, {needed}")
        if holders not in weights:
            weights[holders] = lagrange(holders)
        try:
            return combine(weights[holders], shares)
        except Malformed as error:
            self._proven.add(dealer)
            raise RoundAborted(f"{self._device(dealer)} dealt shares that do not fit together") from error

    def _close(self, event: ServerEvent, size: int, what: str) -> None:
        state = advance(SERVER, self._state, event)
        if size < self.quorum:
            self.abort()
            needed = f"{self.quorum} are needed: run the round again with fresh keys"
            raise RoundAborted(f"only {size} devices {what}, {needed}")
        self._state = state

    def _device(self, index: int) -> str:
        return self._roster[index].device
