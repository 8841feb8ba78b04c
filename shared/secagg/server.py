"""The server's side. It adds each masked vector as it comes, so it holds one vector and a few KB a client.

A message is checked whole before anything changes. What a client gets wrong raises `PeerError` (leave that client out, and name it); what ends the
round raises `RoundAborted`. Neither the sum nor any part of it is returned unless it is exact.
"""

from collections.abc import Mapping

import numpy as np

from shared.errors import Malformed, ProtocolError, RoundAborted
from shared.secagg.client import check_advert
from shared.secagg.graph import Graph, build_graph
from shared.secagg.keys import KeyPair, Secret, Verifier, pair_mask_key, self_mask_key
from shared.secagg.masks import Mask, Words, apply_masks
from shared.secagg.messages import (
    Advert,
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


class Server:
    """One round. `quorum` is the least number of clients that may be counted; it is never below the threshold."""

    def __init__(self, terms: Terms, length: int, verifier: Verifier, *, quorum: int = 0) -> None:
        self.terms = terms
        self.quorum = max(quorum, terms.threshold)
        self._verifier = verifier
        self._state = ServerState.KEYS
        self._roster: dict[int, Advert] = {}
        self._deals: dict[int, Deal] = {}
        self._sum: Words = np.zeros(length, dtype="<u4")
        self._counted: set[int] = set()
        self._reveals: dict[int, Reveal] = {}

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def counted(self) -> frozenset[int]:
        """Whose vectors are in the sum."""
        return frozenset(self._counted)

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
        check_advert(advert, self.terms, self._verifier)
        self._roster[advert.index] = advert
        self._state = state

    def close_keys(self) -> Roster:
        self._close(ServerEvent.CLOSE_KEYS, len(self._roster), "sent keys")
        return Roster(tuple(self._roster[index] for index in sorted(self._roster)))

    def add_deal(self, deal: Deal) -> None:
        """Raises `ProtocolError` unless the letters are for exactly the dealer's neighbours and itself."""
        state = advance(SERVER, self._state, ServerEvent.DEAL)
        if deal.sender not in self._roster or deal.sender in self._deals:
            raise ProtocolError(f"client {deal.sender} sent no keys, or has dealt already")
        expected = {deal.sender, *self._graph(self._roster).neighbours(deal.sender)}
        if len(deal.letters) != len(expected) or {letter.peer for letter in deal.letters} != expected:
            raise ProtocolError(f"{self._device(deal.sender)} dealt shares to the wrong clients")
        self._deals[deal.sender] = deal
        self._state = state

    def close_shares(self) -> dict[int, Inbox]:
        """What to send to each client that dealt."""
        self._close(ServerEvent.CLOSE_SHARES, len(self._deals), "dealt shares")
        graph = self._graph(self._deals)
        return {
            index: Inbox(tuple(self._letter(sender, index) for sender in graph.neighbours(index)))
            for index in self._deals
        }

    def _letter(self, sender: int, recipient: int) -> Letter:
        letter = next(item for item in self._deals[sender].letters if item.peer == recipient)
        return Letter(sender, letter.box, letter.key_commitment, letter.seed_commitment)

    def add_vector(self, index: int, words: Words) -> None:
        """Add a masked vector to the sum. Raises `ProtocolError` from a stranger or a second time, `Malformed` for its shape."""
        state = advance(SERVER, self._state, ServerEvent.VECTOR)
        if index not in self._deals or index in self._counted:
            raise ProtocolError(f"client {index} dealt no shares, or has sent its vector already")
        if words.dtype != np.dtype("<u4") or words.shape != self._sum.shape:
            raise Malformed(f"{self._device(index)} sent a vector of another type or length")
        self._sum += words
        self._counted.add(index)
        self._state = state

    def close_masked(self) -> UnmaskRequest:
        """The request that every counted client gets (a sparse graph restricts it to its neighbours)."""
        self._close(ServerEvent.CLOSE_MASKED, len(self._counted), "sent masked vectors")
        return UnmaskRequest(tuple(sorted(self._counted)), tuple(sorted(set(self._deals) - self._counted)))

    def add_reveal(self, reveal: Reveal) -> None:
        """Raises `ProtocolError`, naming the device, for shares not asked for or other than those dealt to it."""
        state = advance(SERVER, self._state, ServerEvent.REVEAL)
        holder = reveal.sender
        if holder not in self._counted or holder in self._reveals:
            raise ProtocolError(f"client {holder} is not counted, or has revealed already")
        near = {holder, *self._graph(self._deals).neighbours(holder)}
        if set(reveal.seed_shares) != near & self._counted or set(reveal.key_shares) != near - self._counted:
            raise ProtocolError(f"{self._device(holder)} revealed other shares than were asked for")
        for kind, shares in (("seed", reveal.seed_shares), ("key", reveal.key_shares)):
            for dealer, share in shares.items():
                if share_commitment(kind, self.terms, dealer, holder, share) != self._commitment(kind, dealer, holder):
                    raise ProtocolError(f"{self._device(holder)} revealed a share that was not dealt to it")
        self._reveals[holder] = reveal
        self._state = state

    def _commitment(self, kind: str, dealer: int, holder: int) -> bytes:
        letter = self._letter(dealer, holder)
        return letter.seed_commitment if kind == "seed" else letter.key_commitment

    def finish(self) -> Words:
        """The exact sum of the counted vectors. Raises `RoundAborted` with too few shares, or naming a dealer whose shares are false."""
        state = advance(SERVER, self._state, ServerEvent.FINISH)
        try:
            masks = self._masks()
        except RoundAborted:
            self.abort()
            raise
        apply_masks(self._sum, masks)
        self._state = state
        self._deals, self._reveals = {}, {}
        return self._sum

    def abort(self) -> None:
        """Drop everything. The round is run again with fresh keys."""
        self._state = advance(SERVER, self._state, ServerEvent.ABORT)
        self._sum = np.zeros(0, dtype="<u4")
        self._deals, self._reveals = {}, {}

    def _masks(self) -> list[Mask]:
        """Everything that must still be added to the sum: minus the self-masks of the counted, minus the pairwise masks of the dropped."""
        weights: dict[tuple[int, ...], dict[int, int]] = {}
        masks = []
        for dealer in sorted(self._counted):
            seed = self._recover("seed", dealer, weights)
            if seed_digest(self.terms, dealer, seed) != self._deals[dealer].seed_digest:
                raise RoundAborted(f"{self._device(dealer)} dealt shares of another seed than it committed to")
            masks.append(Mask(self_mask_key(seed, self.terms.digest, self._device(dealer)), negative=True))
        graph = self._graph(self._deals)
        for dealer in sorted(set(self._deals) - self._counted):
            pair = KeyPair.from_private(self._recover("key", dealer, weights))
            if pair.public != self._roster[dealer].mask_public:
                raise RoundAborted(f"{self._device(dealer)} dealt shares of another key than it advertised")
            masks += [self._pair_mask(pair, dealer, peer) for peer in graph.neighbours(dealer) if peer in self._counted]
        return masks

    def _pair_mask(self, pair: KeyPair, dropped: int, counted: int) -> Mask:
        """What takes the mask with `dropped` out of the vector of `counted`, which had added it with the sign of their order."""
        one, other = self._roster[dropped], self._roster[counted]
        key = pair_mask_key(pair, other.mask_public, self.terms.digest, one.device, other.device)
        return Mask(key, negative=counted < dropped)

    def _recover(self, kind: str, dealer: int, weights: dict[tuple[int, ...], dict[int, int]]) -> Secret:
        shares = {
            holder: (reveal.seed_shares if kind == "seed" else reveal.key_shares)[dealer]
            for holder, reveal in sorted(self._reveals.items())
            if dealer in (reveal.seed_shares if kind == "seed" else reveal.key_shares)
        }
        holders = tuple(shares)[: self.terms.threshold]
        if len(holders) < self.terms.threshold:
            raise RoundAborted(
                f"{len(holders)} devices revealed shares, {self.terms.threshold} are needed: run the round again with fresh keys"
            )
        if holders not in weights:
            weights[holders] = lagrange(holders)
        try:
            return combine(weights[holders], shares)
        except Malformed as error:
            raise RoundAborted(f"{self._device(dealer)} dealt shares that do not fit together") from error

    def _close(self, event: ServerEvent, size: int, what: str) -> None:
        state = advance(SERVER, self._state, event)
        if size < self.quorum:
            self.abort()
            raise RoundAborted(
                f"only {size} devices {what}, {self.quorum} are needed: run the round again with fresh keys"
            )
        self._state = state

    def _graph(self, members: Mapping[int, object]) -> Graph:
        return build_graph(self.terms.graph, members)

    def _device(self, index: int) -> str:
        return self._roster[index].device
