"""A client's side. A `Client` is a value: every step returns the next one, so a refused step changes nothing.

What a client refuses protects it from the server: a group too small or too loosely knit for its own policy, keys that no device
signed, another graph than its coin went into, a round twice, two stories about who is counted, and both kinds of shares of one
peer. What a round needed is forgotten when the round has what it needs, at the latest when the next one begins.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from shared.errors import FalseShares, Malformed, NoKeys, ProtocolError
from shared.secagg.fields import Fields, Reader
from shared.secagg.graph import Graph, draw
from shared.secagg.kept import (
    NOTHING,
    Draft,
    Keyring,
    Keys,
    Neighbours,
    RoundKeys,
    Seats,
    Standing,
    check_kept,
    joined,
    kept_sizes,
    pieces,
)
from shared.secagg.keys import (
    KEY_BYTES,
    Identity,
    KeyPair,
    Root,
    Secret,
    Verifier,
    is_tag,
    letter_key,
    mask_keys,
    mask_secrets,
    pair_roots,
    seal,
    tag,
    unseal,
    witness_key,
)
from shared.secagg.masks import Mask, apply_masks
from shared.secagg.messages import (
    Advert,
    Coin,
    Confirmation,
    Deal,
    Inbox,
    Members,
    Neighbourhood,
    RecoveryRequest,
    Reveal,
    Shares,
    Witness,
    coin_digest,
    coin_digests,
    confirmed,
    device_tag,
    graph_seed,
    group_binding,
    pair_digests,
    secret_digest,
)
from shared.secagg.packing import Words
from shared.secagg.policy import Policy
from shared.secagg.shamir import SHARE_BYTES, Entropy, split
from shared.secagg.states import CLIENT, ClientEvent, ClientState, advance
from shared.secagg.terms import GroupTerms, RoundTerms


@dataclass(frozen=True)
class Client:
    """`keys` shrink; `dealers` are the senders of the letters that it opened."""

    terms: GroupTerms
    index: int
    policy: Policy
    state: ClientState = ClientState.NEW
    draft: Draft | None = None
    neighbours: Neighbours | None = None
    dealers: Seats = field(default_factory=Seats)
    keys: Keys = field(default_factory=Keys)
    standing: Standing = field(default_factory=Standing)

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.terms.clients:
            raise Malformed(f"client number {self.index} of {self.terms.clients}")

    # ---- the group

    def advertise(self, identity: Identity, entropy: Entropy) -> tuple["Client", Advert]:
        """Make this group's key. Raises `ProtocolError` for terms below the policy."""
        state = advance(CLIENT, self.state, ClientEvent.ADVERTISE)
        self.policy.check(self.terms)
        pair, coin = KeyPair.generate(entropy), entropy(KEY_BYTES)
        hidden = coin_digest(self.terms, self.index, coin)
        unsigned = Advert(self.index, identity.device, pair.public, hidden, identity.certificate, b"")
        advert = replace(unsigned, signature=identity.sign(unsigned.statement(self.terms)))
        return replace(self, state=state, draft=Draft(pair, coin, advert)), advert

    def toss(self, members: Members) -> tuple["Client", Coin]:
        """Tell the coin, now that everybody's is settled. Raises `ProtocolError`."""
        state = advance(CLIENT, self.state, ClientEvent.TOSS)
        draft = self._draft()
        self._check_members(members, draft)
        return replace(self, state=state, draft=replace(draft, members=members)), Coin(self.index, draft.coin)

    def share(self, near: Neighbourhood, verifier: Verifier, entropy: Entropy) -> tuple["Client", Deal]:
        """Check the neighbours' keys and deal shares of each round's secrets. Raises `ProtocolError`, `SignatureInvalid`."""
        state = advance(CLIENT, self.state, ClientEvent.SHARE)
        draft = self._draft()
        graph, members = self._graph(near, draft)
        present = frozenset(near.coins or members.leaves)
        adverts = self._checked(near, members, graph, present, verifier)
        binding, own = group_binding(self.terms, members, graph.seed), draft.advert.device
        devices = {seat: item.device for seat, item in adverts.items()}
        agreed = draft.pair.agreements(item.public for item in adverts.values())
        roots = dict(zip(devices, pair_roots(agreed, binding, own, devices.values()), strict=True))
        near_by = [seat for seat in graph.neighbours(self.index) if seat in present]
        told = roots if self.index in graph.witnesses else {}
        tellers = [seat for seat in roots if seat in graph.witnesses]
        neighbours = Neighbours(
            binding,
            Seats.of(present, self.terms.clients),
            Seats.of(near_by, self.terms.clients),
            Keyring.of({seat: witness_key(root, own) for seat, root in told.items()}, self.terms.clients),
            Keyring.of({seat: witness_key(roots[seat], devices[seat]) for seat in tellers}, self.terms.clients),
        )
        keys, deal = self._deal(binding, {seat: roots[seat] for seat in near_by}, entropy)
        letters = joined(letter_key(roots[seat], devices[seat]) for seat in near_by)
        names = tuple(devices[seat] for seat in near_by)
        pair = KeyPair(NOTHING, draft.pair.public)
        opened = replace(draft, pair=pair, coin=b"", members=None, names=names, letters=letters)
        return replace(self, state=state, draft=opened, neighbours=neighbours, keys=keys), deal

    def _deal(self, binding: bytes, roots: Mapping[int, Root], entropy: Entropy) -> tuple[Keys, Deal]:
        own, numbers = self._draft().advert.device, range(1, self.terms.rounds + 1)
        seeds = [Secret(entropy(KEY_BYTES)) for _ in numbers]
        recovery = [Secret(entropy(KEY_BYTES)) for _ in numbers]
        both = [secret for couple in zip(seeds, recovery, strict=True) for secret in couple]
        shares = split(both, self.terms.degrees.threshold, tuple(roots), entropy)
        masks = mask_secrets(roots.values(), numbers)

        def digests(kind: str, secrets: list[Secret]) -> tuple[bytes, ...]:
            return tuple(secret_digest(kind, binding, self.index, n, item) for n, item in enumerate(secrets, 1))

        boxes = {
            seat: seal(letter_key(root, own), share) for (seat, root), share in zip(roots.items(), shares, strict=True)
        }
        deal = Deal(
            self.index,
            boxes,
            digests("seed", seeds),
            digests("key", recovery),
            tuple(seal(key, record) for key, record in zip(recovery, masks, strict=True)),
            tuple(pair_digests(binding, n, row) for n, row in zip(numbers, masks, strict=True)),
        )
        return Keys.of(seeds, masks), deal

    def receive(self, inbox: Inbox) -> "Client":
        """Open the shares dealt to this client. Raises `FalseShares` for all whose letters are wrong, `ProtocolError`."""
        state = advance(CLIENT, self.state, ClientEvent.RECEIVE)
        holders, draft = self._near().holders, self._draft()
        if not inbox.boxes.keys() <= holders.which:
            raise ProtocolError("the shares are not from this group's neighbours")
        self._check_crowd(inbox.boxes, "dealt shares")
        letters = dict(zip(holders, pieces(draft.letters, KEY_BYTES), strict=True))
        opened, false = {}, []
        for dealer, box in sorted(inbox.boxes.items()):
            try:
                opened[dealer] = unseal(letters[dealer], box)
            except ProtocolError:
                false.append(dealer)
                continue
            if len(opened[dealer].reveal()) != 2 * SHARE_BYTES * self.terms.rounds:
                false.append(dealer)
        if false:
            names = dict(zip(holders, draft.names, strict=True))
            listed = ", ".join(names[dealer] for dealer in false)
            raise FalseShares(f"the shares from {listed} do not open", dealers=tuple(false))
        dealers = Seats.of(opened, self.terms.clients)
        keys = self.keys.received(holders, dealers, list(opened.values()))
        return replace(self, state=state, draft=None, dealers=dealers, keys=keys)

    # ---- a round

    @property
    def binding(self) -> bytes:
        """Of the group. Raises `ProtocolError` before it is made."""
        return self._near().binding

    @property
    def spent(self) -> bool:
        """Holds no secret of any round any more."""
        return not self.keys and self.state not in (ClientState.NEW, ClientState.ADVERTISED, ClientState.TOSSED)

    def check_round(self, terms: RoundTerms) -> RoundKeys:
        """Its keys. Raises `ProtocolError` for a round that would not protect this device, or that is over."""
        if terms.number <= self.standing.number:
            raise ProtocolError("this device has no keys for this round, or has used them")
        if (key := self.keys.get(terms.number)) is None:
            raise NoKeys("this device has no keys for this round, or has used them")
        if terms.binding != self.binding:
            raise ProtocolError("this round is another group's")
        self._check_seats(terms.present, "take part")
        return key

    def mask(self, terms: RoundTerms, words: Words) -> "Client":
        """Add all masks of this round to `words`, in place. Raises what `check_round` raises."""
        state = advance(CLIENT, self.state, ClientEvent.MASK)
        key = self.check_round(terms)
        of_seed, of_pair = mask_keys(terms.digest)
        masks = [Mask(of_seed(key.seed))]
        masks += [
            Mask(of_pair(secret), negative=seat < self.index)
            for seat, secret in zip(self.dealers, pieces(key.pairs, KEY_BYTES), strict=True)
            if seat in terms.present
        ]
        apply_masks(words, masks)
        standing = Standing(terms.number, terms.digest, Seats.of(terms.present, self.terms.clients))
        return replace(self, state=state, keys=self.keys.begun(terms.number), standing=standing)

    def confirm(self, counted: frozenset[int]) -> tuple["Client", Confirmation]:
        """Say who is counted, once a round, and forget what that set can never ask for. Raises `ProtocolError` for a set that
        would not protect this device.
        """
        state = advance(CLIENT, self.state, ClientEvent.CONFIRM)
        if self.index not in counted:
            raise ProtocolError("the server calls this client dropped, after taking its vector")
        if not counted <= self.standing.present.which:
            raise ProtocolError("the server counts clients that did not take part")
        self._check_seats(counted, "are counted")
        said = confirmed(self.standing.digest, counted)
        near = self._near()
        tags = {seat: tag(key, said) for seat, key in near.to_them.items() if seat in counted}
        standing = replace(self.standing, counted=Seats.of(counted, self.terms.clients))
        left = self.keys[standing.number].confirmed(self.dealers, standing)
        after = replace(self, state=state, keys=replace(self.keys, now=left), standing=standing)
        return after, Confirmation(self.index, tags)

    def reveal(self, witness: Witness) -> tuple["Client", Reveal]:
        """Give out the own seed, and the masks with who is gone, if most witnesses know the same set. Raises `ProtocolError`."""
        state = advance(CLIENT, self.state, ClientEvent.REVEAL)
        near, standing = self._near(), self.standing
        counted = standing.counted.which
        said = confirmed(standing.digest, counted)
        agreeing = bool(near.to_them) + sum(  # with its own word, if it is a witness
            is_tag(word, near.from_them[seat], said)
            for seat, word in witness.tags.items()
            if seat in counted and seat in near.from_them
        )
        if agreeing < self.terms.degrees.majority:
            raise ProtocolError(
                f"{agreeing} witnesses confirm who is counted; this device wants {self.terms.degrees.majority}"
            )
        key = self.keys[standing.number]
        gone = sorted(standing.gone.intersection(self.dealers))
        pairs = dict(zip(gone, pieces(key.pairs, KEY_BYTES), strict=True))
        left = RoundKeys(NOTHING, NOTHING, key.shares)
        after = replace(self, state=state, keys=replace(self.keys, now=left))
        return after, Reveal(self.index, key.seed, pairs)

    def recover(self, request: RecoveryRequest) -> tuple["Client", Shares]:
        """Answer the one request for shares of a round. Raises `ProtocolError` for one that could unmask somebody."""
        state = advance(CLIENT, self.state, ClientEvent.RECOVER)
        standing, seeds, wanted = self.standing, set(request.seeds_of), set(request.keys_of)
        if len(seeds) + len(wanted) != len(request.seeds_of) + len(request.keys_of) or seeds & wanted:
            raise ProtocolError("the server asks for both share kinds of one client: that would unmask it")
        if not seeds <= standing.counted.which or not wanted <= standing.gone:
            raise ProtocolError("the server asks for shares of another kind than the confirmed set allows")
        if not seeds | wanted <= self.dealers.which:
            raise ProtocolError("the server asks for shares that this client does not hold")
        present = sorted(standing.present.which.intersection(self.dealers))
        held = dict(zip(present, pieces(self.keys[standing.number].shares, SHARE_BYTES), strict=True))
        seeds_of, keys_of = ({dealer: held[dealer] for dealer in kind} for kind in (request.seeds_of, request.keys_of))
        answer = Shares(self.index, seeds_of, keys_of)
        return replace(self, state=state, keys=replace(self.keys, now=None)), answer

    def abandon(self) -> "Client":
        """Forget everything secret."""
        state = advance(CLIENT, self.state, ClientEvent.ABANDON)
        return replace(self, state=state, draft=None, neighbours=None, keys=Keys())

    # ---- between messages

    def to_fields(self) -> Fields:
        """For a host that keeps state between messages. Holds secrets: keep it where only the device reads."""
        return {
            **self.terms.to_fields(),
            "index": self.index,
            "state": self.state.value,
            "dealers": self.dealers.bitmap,
            **self.keys.to_fields(),
            **self.standing.to_fields(),
            **(self.draft.to_fields() if self.draft else {}),
            **(self.neighbours.to_fields() if self.neighbours else {}),
        }

    @classmethod
    def from_fields(cls, fields: Fields, policy: Policy) -> "Client":
        """The inverse of `to_fields`. Raises `Malformed`."""
        read, terms = Reader(fields, "the stored state of a group"), GroupTerms.from_fields(fields)
        try:
            state = ClientState(read.text("state"))
        except ValueError as error:
            raise Malformed("the stored state of a group is unknown") from error
        draft, near = Draft.from_fields(fields), Neighbours.from_fields(fields, terms.clients)
        dealers = Seats.read(read.blob("dealers"), terms.clients)
        standing = Standing.from_fields(fields, terms.clients)
        check_kept(terms.rounds, state, draft=draft, near=near, dealers=dealers, standing=standing)
        sizes = kept_sizes(terms.rounds, state, near, dealers, standing)
        keys = Keys.from_fields(fields, standing.number, *sizes)
        return cls(terms, read.integer("index"), policy, state, draft, near, dealers, keys, standing)

    # ---- checks

    def _draft(self) -> Draft:
        if self.draft is None:
            raise ProtocolError("this client no longer holds its keys")
        return self.draft

    def _near(self) -> Neighbours:
        if self.neighbours is None:
            raise ProtocolError("this client has no neighbours yet")
        return self.neighbours

    def _check_members(self, members: Members, draft: Draft) -> None:
        self._check_size(members.leaves, "sent keys")
        if not all(1 <= seat <= self.terms.clients for seat in members.leaves):
            raise ProtocolError("the group has a member that was not invited")
        if any(len(set(column.values())) != len(column) for column in (members.leaves, members.devices)):
            raise ProtocolError("two members of the group have the same key or device")
        if members.leaves.get(self.index) != draft.advert.leaf:
            raise ProtocolError("this client's own key is missing from the group, or changed")

    def _graph(self, near: Neighbourhood, draft: Draft) -> tuple[Graph, Members]:
        """The graph that everybody's coins make. Raises `ProtocolError` unless they are the coins that were promised."""
        degrees = self.terms.degrees
        if degrees.complete:
            members = Members.of((*near.roster.adverts, draft.advert))
            if near.coins or len(members.leaves) != len(near.roster.adverts) + 1:
                raise ProtocolError("the group has a client twice, or coins that nobody needs")
            self._check_members(members, draft)
            return draw(self.terms.clients, degrees, graph_seed(self.terms, members, {})), members
        if draft.members is None:
            raise ProtocolError("no coins were asked for: this client will not take a graph that nobody tossed for")
        members = draft.members
        self._check_size(near.coins, "told their coins")
        promised = coin_digests(self.terms, near.coins)
        for seat, digest in zip(near.coins, promised, strict=True):
            if digest != members.coin_digests.get(seat):
                raise ProtocolError(f"client {seat} told another coin than it promised")
        if near.coins.get(self.index) != draft.coin:
            raise ProtocolError("this client's own coin is missing, or changed")
        return draw(self.terms.clients, degrees, graph_seed(self.terms, members, near.coins)), members

    def _checked(
        self, near: Neighbourhood, members: Members, graph: Graph, present: frozenset[int], verifier: Verifier
    ) -> dict[int, Advert]:
        """The holders' adverts by seat, after every check."""
        adverts = {item.index: item for item in near.roster.adverts}
        contacts = [seat for seat in graph.contacts(self.index) if seat in present]
        if [item.index for item in near.roster.adverts] != contacts:
            raise ProtocolError("the keys are not those of this client's neighbours in the graph, and of the witnesses")
        self._check_crowd(present.intersection(graph.neighbours(self.index)), "sent keys")
        if len({self._draft().advert.public, *(item.public for item in adverts.values())}) != len(adverts) + 1:
            raise ProtocolError("two clients of the group have the same key")
        for seat, item in adverts.items():
            if item.leaf != members.leaves[seat] or device_tag(item.device) != members.devices[seat]:
                raise ProtocolError(f"the key of {item.device} is not the one that the group was told of")
            item.check(self.terms, verifier)
        return adverts

    def _check_size(self, seats: Collection[int], what: str) -> None:
        needed = max(self.terms.fewest, self.policy.min_clients)
        if len(seats) < needed:
            raise ProtocolError(f"only {len(seats)} clients {what}; this device wants {needed}")

    def _check_crowd(self, seats: Iterable[int], what: str) -> None:
        """Enough of this client's neighbours."""
        held, needed = len(set(seats)), self.terms.degrees.partners
        if held < needed:
            raise ProtocolError(f"only {held} of this client's neighbours {what}; it wants {needed}")

    def _check_seats(self, seats: frozenset[int], what: str) -> None:
        self._check_size(seats, what)
        if self.index not in seats:
            raise ProtocolError("this client is asked for a round that it has no part in")
        if not seats <= self._near().members.which:
            raise ProtocolError(f"clients that are not in this group shall {what}")
        near = seats & self._near().holders.which
        self._check_crowd(near, what)
        if silent := near - self.dealers.which:
            raise ProtocolError(f"client {min(silent)} dealt this client no shares, and yet shall {what}")
