"""A client's side. A `Client` is a value: every step returns the next one, so a refused step changes nothing.

What a client refuses protects it from the server: a group or threshold below its own policy, keys that no device
signed, a request for both share kinds of one peer, a second request. It reveals once, then holds no secret.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shared.errors import FalseShares, Malformed, ProtocolError
from shared.secagg.fields import Fields, HiddenBytes, Reader
from shared.secagg.graph import build_graph
from shared.secagg.keys import (
    KEY_BYTES,
    Identity,
    KeyPair,
    Secret,
    Verifier,
    bind,
    pair_mask_key,
    seal,
    self_mask_key,
    share_key,
    unseal,
)
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
from shared.secagg.shamir import SHARE_BYTES, Entropy, split
from shared.secagg.states import CLIENT, ClientEvent, ClientState, advance
from shared.secagg.terms import Terms


@dataclass(frozen=True)
class Policy:
    """What a device insists on. `min_clients` is the crowd to hide in: it holds for the group and for those counted."""

    min_clients: int = 3

    def __post_init__(self) -> None:
        if self.min_clients < 2:
            raise ValueError("a sum over fewer than two clients hides nothing")

    def check(self, terms: Terms) -> None:
        """Raises `ProtocolError` for terms that would not protect this device."""
        if terms.clients < self.min_clients:
            raise ProtocolError(f"{terms.clients} clients are below this device's minimum of {self.min_clients}")
        if terms.threshold < 2 or 2 * terms.threshold <= terms.clients:
            raise ProtocolError(
                f"threshold {terms.threshold} of {terms.clients}: this device wants more than half, and at least 2"
            )


@dataclass(frozen=True)
class Secrets:
    """What one client makes for one round."""

    share_key: KeyPair
    mask_key: KeyPair
    seed: Secret


@dataclass(frozen=True)
class Held:
    """The two shares that a client holds of one dealer (itself included)."""

    key_share: Secret
    seed_share: Secret


@dataclass(frozen=True)
class Client:
    """`roster` holds only the own advert until the server's arrives; `held` is filled by `receive`."""

    terms: Terms
    index: int
    policy: Policy
    state: ClientState = ClientState.NEW
    secrets: Secrets | None = None
    roster: Mapping[int, Advert] = field(default_factory=dict)
    held: Mapping[int, Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.terms.clients:
            raise Malformed(f"client number {self.index} of {self.terms.clients}")

    def advertise(self, identity: Identity, entropy: Entropy) -> tuple["Client", Advert]:
        """Make this round's keys. Raises `ProtocolError` for terms below the policy."""
        state = advance(CLIENT, self.state, ClientEvent.ADVERTISE)
        self.policy.check(self.terms)
        secrets = Secrets(KeyPair.generate(entropy), KeyPair.generate(entropy), Secret(entropy(KEY_BYTES)))
        unsigned = Advert(
            self.index, identity.device, secrets.share_key.public, secrets.mask_key.public, identity.certificate, b""
        )
        advert = replace(unsigned, signature=identity.sign(unsigned.statement(self.terms)))
        return replace(self, state=state, secrets=secrets, roster={self.index: advert}), advert

    def share(self, roster: Roster, verifier: Verifier, entropy: Entropy) -> tuple["Client", Deal]:
        """Check everybody's keys and deal shares of one's own secrets. Raises `ProtocolError`, `SignatureInvalid`."""
        state = advance(CLIENT, self.state, ClientEvent.SHARE)
        members = self._checked(roster, verifier)
        secrets = self._secrets()
        holders = sorted((self.index, *self._neighbours(members)))
        if len(holders) < self.terms.threshold:
            raise ProtocolError(f"{len(holders)} clients hold shares; the threshold is {self.terms.threshold}")
        key_shares = split(secrets.mask_key.private, self.terms.threshold, holders, entropy)
        seed_shares = split(secrets.seed, self.terms.threshold, holders, entropy)
        letters = tuple(
            Letter(
                peer=holder,
                box=b""
                if holder == self.index
                else self._seal(members[holder], key_shares[holder], seed_shares[holder], entropy),
                key_commitment=share_commitment("key", self.terms, self.index, holder, key_shares[holder]),
                seed_commitment=share_commitment("seed", self.terms, self.index, holder, seed_shares[holder]),
            )
            for holder in holders
        )
        own = Held(key_shares[self.index], seed_shares[self.index])
        deal = Deal(self.index, seed_digest(self.terms, self.index, secrets.seed), letters)
        return replace(self, state=state, roster=members, held={self.index: own}), deal

    def receive(self, inbox: Inbox) -> "Client":
        """Open the shares dealt to this client. Raises `FalseShares` for all whose letters are wrong, `ProtocolError`."""
        state = advance(CLIENT, self.state, ClientEvent.RECEIVE)
        senders = [letter.peer for letter in inbox.letters]
        if len(set(senders)) != len(senders) or not set(senders) <= set(self._neighbours(self.roster)):
            raise ProtocolError("the shares are not from this round's neighbours, one letter each")
        self._check_crowd(len(senders) + 1, "dealt shares")
        held, false = {}, []
        for letter in inbox.letters:
            try:
                held[letter.peer] = self._open(letter)
            except FalseShares as error:
                false.append(error)
        if false:
            dealers = tuple(dealer for error in false for dealer in error.dealers)
            raise FalseShares("; ".join(error.message for error in false), dealers=dealers)
        return replace(self, state=state, held={**self.held, **held})

    def mask(self, words: Words) -> "Client":
        """Add all masks to `words`, in place; then the private keys and the seed are dropped."""
        state = advance(CLIENT, self.state, ClientEvent.MASK)
        secrets, own = self._secrets(), self.roster[self.index]
        masks = [Mask(self_mask_key(secrets.seed, self.terms.digest, own.device))]
        for index in self._neighbours(self.held):
            peer = self.roster[index]
            key = pair_mask_key(secrets.mask_key, peer.mask_public, self.terms.digest, own.device, peer.device)
            masks.append(Mask(key, negative=index < self.index))
        apply_masks(words, masks)
        return replace(self, state=state, secrets=None)

    def reveal(self, request: UnmaskRequest) -> tuple["Client", Reveal]:
        """Answer the one unmask request of a round. Raises `ProtocolError` for one that could unmask somebody."""
        state = advance(CLIENT, self.state, ClientEvent.REVEAL)
        seeds, keys = set(request.seeds_of), set(request.keys_of)
        if seeds & keys:
            raise ProtocolError("the server asks for both share kinds of one client: that would unmask it")
        if len(request.seeds_of) + len(request.keys_of) != len(self.held) or seeds | keys != set(self.held):
            raise ProtocolError("the unmask request does not name each client that dealt shares once")
        if self.index not in seeds:
            raise ProtocolError("the server calls this client dropped, after taking its vector")
        self._check_crowd(len(seeds), "are counted")
        reveal = Reveal(
            self.index,
            {dealer: self.held[dealer].seed_share for dealer in request.seeds_of},
            {dealer: self.held[dealer].key_share for dealer in request.keys_of},
        )
        return replace(self, state=state, secrets=None, held={}), reveal

    def abandon(self) -> "Client":
        """Forget everything secret."""
        return replace(self, state=advance(CLIENT, self.state, ClientEvent.ABANDON), secrets=None, held={})

    def _secrets(self) -> Secrets:
        if self.secrets is None:
            raise ProtocolError("this client no longer holds its keys")
        return self.secrets

    def _neighbours(self, members: Mapping[int, object]) -> tuple[int, ...]:
        return build_graph(self.terms.graph, self.terms.clients).neighbours(self.index, members)

    def _check_crowd(self, size: int, what: str) -> None:
        needed = max(self.terms.threshold, self.policy.min_clients)
        if size < needed:
            raise ProtocolError(f"only {size} clients {what}; this device wants {needed}")

    def _checked(self, roster: Roster, verifier: Verifier) -> dict[int, Advert]:
        """The roster by index, after every check that needs no peer."""
        adverts, members = roster.adverts, {advert.index: advert for advert in roster.adverts}
        self._check_crowd(len(members), "sent keys")
        if len(members) != len(adverts) or not all(1 <= index <= self.terms.clients for index in members):
            raise ProtocolError("the roster has a client twice, or one that was not invited")
        publics = [key for advert in adverts for key in (advert.share_public, advert.mask_public)]
        if len(set(publics)) != len(publics) or len({advert.device for advert in adverts}) != len(adverts):
            raise ProtocolError("two clients of the roster have the same key or device")
        if members.get(self.index) != self.roster[self.index]:
            raise ProtocolError("this client's own keys are missing from the roster, or changed")
        for advert in adverts:
            advert.check(self.terms, verifier)
        return members

    def _seal(self, peer: Advert, key_share: Secret, seed_share: Secret, entropy: Entropy) -> bytes:
        own = self.roster[self.index]
        key = share_key(self._secrets().share_key, peer.share_public, self.terms.digest, own.device, peer.device)
        plain = key_share.reveal() + seed_share.reveal()
        return seal(key, plain, letter_context(self.terms, own, peer), entropy)

    def _open(self, letter: Letter) -> Held:
        peer, own = self.roster[letter.peer], self.roster[self.index]
        try:
            key = share_key(self._secrets().share_key, peer.share_public, self.terms.digest, peer.device, own.device)
            plain = unseal(key, letter.box, letter_context(self.terms, peer, own))
        except ProtocolError as error:
            raise FalseShares(f"the shares from {peer.device} do not open", dealers=(letter.peer,)) from error
        held = Held(Secret(plain[:SHARE_BYTES]), Secret(plain[SHARE_BYTES:]))
        expected = (
            share_commitment("key", self.terms, letter.peer, self.index, held.key_share),
            share_commitment("seed", self.terms, letter.peer, self.index, held.seed_share),
        )
        if len(plain) != 2 * SHARE_BYTES or expected != (letter.key_commitment, letter.seed_commitment):
            reason = f"the shares from {peer.device} are not those it committed to"
            raise FalseShares(reason, dealers=(letter.peer,))
        return held

    def to_fields(self) -> Fields:
        """For a host that keeps state between messages. Holds secrets: keep it where only the device reads."""
        made = self.secrets
        secret = [made.share_key.private, made.mask_key.private, made.seed] if made else []
        return {
            **self.terms.to_fields(),
            **Roster(tuple(self.roster.values())).to_fields(),
            "index": self.index,
            "state": self.state.value,
            "secrets": hide(secret),
            "dealers": list(self.held),
            "key_shares": hide([item.key_share for item in self.held.values()]),
            "seed_shares": hide([item.seed_share for item in self.held.values()]),
        }

    @classmethod
    def from_fields(cls, fields: Fields, policy: Policy) -> "Client":
        """The inverse of `to_fields`. Raises `Malformed`."""
        read = Reader(fields, "the stored state of a round")
        secrets = [Secret(item) for item in read.blobs("secrets")]
        rows = read.columns(read.integers("dealers"), read.blobs("key_shares"), read.blobs("seed_shares"))
        try:
            state = ClientState(read.text("state"))
        except ValueError as error:
            raise Malformed("the stored state of a round is unknown") from error
        return cls(
            terms=Terms.from_fields(fields),
            index=read.integer("index"),
            policy=policy,
            state=state,
            secrets=_restore_secrets(secrets),
            roster={advert.index: advert for advert in Roster.from_fields(fields).adverts},
            held={dealer: Held(Secret(key), Secret(seed)) for dealer, key, seed in rows},
        )


def hide(secrets: Iterable[Secret]) -> list[bytes]:
    return [HiddenBytes(item.reveal()) for item in secrets]


def _restore_secrets(secrets: list[Secret]) -> Secrets | None:
    if not secrets:
        return None
    if len(secrets) != 3 or any(len(item.reveal()) != KEY_BYTES for item in secrets):
        raise Malformed("the stored keys of a round are damaged")
    return Secrets(KeyPair.from_private(secrets[0]), KeyPair.from_private(secrets[1]), secrets[2])


def letter_context(terms: Terms, sender: Advert, recipient: Advert) -> bytes:
    """The associated data of a letter: this round, from whom, to whom."""
    return bind("letter", terms.digest, sender.index, recipient.index, sender.device, recipient.device)
