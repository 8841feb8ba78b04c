"""`SecureGrid`: any Flower `Grid`, with secure aggregation between it and the strategy.

A train or evaluate exchange becomes the phases of `shared.secagg` and comes back as one reply: the weighted mean (the global
arrays plus the mean change, in their own dtypes and shapes; integers to the nearest), the total weight, the mean metrics. A
strategy that only averages cannot tell the difference; `linear.require_linear` refuses the others. The clients' half is
`edge_agent.secure_mod`.

With `SecureConfig.groups` the devices are split at random into secret groups, each summed apart, and there is a reply for each.
Averaged by weight they give the one; robust strategies of Flower's (median, trimmed mean, Krum) compare them instead, so that a
poisoned device moves one of them. A device learns who is in its own group, and nothing of the others.

A group makes keys and shares first, for `SecureConfig.group_rounds` rounds. Later exchanges over its devices, or over enough of
them, take its next round at once: three exchanges of messages instead of six. Its keys end when its rounds are used up, when
somebody is invited that is not of it, when one of its devices cannot use what it was dealt, and when devices are invited again
that may no longer have their keys, because they failed or did not answer (`MadeGroup.fits`). Who is in which group stays for as
many exchanges as keys are made for, unless a group came to no sum or a new device is invited: sums over ever other sets of the
same devices would tell ever more of each.
"""

import os
import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.rounds import grouping
from coordinator.rounds.broadcasts import Broadcast
from coordinator.rounds.exchange import ExchangeObserver, NullObserver, SecureConfig
from coordinator.rounds.secure_exchange import SECURED, Exchange, category_of
from coordinator.rounds.secure_group import GroupExchange, MadeGroup
from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.clock import Clock, SystemClock
from shared.errors import Unsupported
from shared.secagg.keys import Verifier
from shared.secagg.masks import Mask
from shared.secagg.packing import Words
from shared.secagg.shamir import Entropy
from shared.secagg.terms import Settings

_RANDOM = random.SystemRandom()  # nobody can foresee who is with whom


def new_id() -> str:
    return secrets.token_hex(16)


def shuffled(nodes: Sequence[int]) -> Sequence[int]:
    return _RANDOM.sample(nodes, len(nodes))


@dataclass(frozen=True)
class Drawn:
    """Groups of node ids as they were drawn, the keys that each has, if any, and for how many exchanges they are to last."""

    parts: tuple[frozenset[int], ...]
    made: tuple[MadeGroup | None, ...]
    rounds_left: int

    def serves(self, nodes: Sequence[int], config: SecureConfig) -> bool:
        """Whether an exchange over `nodes` may go by it: also where one of several groups has to make new keys."""
        if not frozenset(nodes) <= frozenset().union(*self.parts):
            return False
        if len(self.parts) == 1:
            return _fits(self.made[0], nodes, config)
        return self.rounds_left > 0 and all(len(part.intersection(nodes)) >= config.min_group for part in self.parts)

    def usable(self, parts: Sequence[Mapping[int, Message]], config: SecureConfig) -> list[MadeGroup | None]:
        """The keys that are good for these devices of each group."""
        return [made if _fits(made, tuple(part), config) else None for made, part in zip(self.made, parts, strict=True)]

    def after(self, groups: Sequence[GroupExchange]) -> "Drawn | None":
        """What an exchange leaves of it. A group that came to no sum might come to none again: another draw mixes its devices."""
        if any(group.failed for group in groups):
            return None
        return replace(self, made=tuple(group.made for group in groups), rounds_left=self.rounds_left - 1)


def _fits(made: MadeGroup | None, nodes: Sequence[int], config: SecureConfig) -> bool:
    """A private round that comes to nothing is paid for all the same."""
    return made is not None and made.fits(nodes, config.quorum(len(nodes)), cautious=config.privacy is not None)


@dataclass
class Carried:
    """What one exchange of a run leaves to the next: groups, with keys for more rounds, how large elements are, by kind of
    exchange, the model that devices were given last, and by node id the last round of training that counted a device.

    Devices go by `counted` to know what they owe (`edge_agent.residuals`): whoever does not use a sum puts back what it was.
    """

    drawn: Drawn | None = None
    settings: dict[str, Settings] = field(default_factory=dict)
    broadcast: Broadcast | None = None
    counted: Mapping[int, str] = field(default_factory=dict)


@runtime_checkable
class Streaming(Protocol):
    """A Grid that need not hold all replies of an exchange at once."""

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As `send_and_receive`; each reply as it comes, and its content need not outlive the next."""
        ...


@dataclass(frozen=True)
class AppRun:
    """What the devices run, under the name that their secure mods were given, and the settings of the run, which Flower's own
    engines hand to both apps (`context.run_config`). Devices agree on both.
    """

    client_app: str = ""
    run_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """Time and chance. `shuffle` puts devices in the order in which they are dealt into groups; `entropy` is for noise of the
    server's.
    """

    clock: Clock = field(default_factory=SystemClock)
    ids: Callable[[], str] = new_id
    shuffle: grouping.Shuffle = shuffled
    entropy: Entropy = os.urandom


class SecureGrid(Grid):
    """Wraps `inner`. `send_and_receive` raises `RoundAborted` when there is no sum, `Unsupported` for what cannot be one.

    `carried` outlives this object where a job makes one for each exchange.
    """

    def __init__(
        self,
        inner: Grid,
        config: SecureConfig,
        verifier: Verifier,
        *,
        app: AppRun | None = None,
        observer: ExchangeObserver | None = None,
        carried: Carried | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.inner = inner
        self.config = config
        self.verifier = verifier
        self.app = app or AppRun()
        self.observer = observer or NullObserver()
        self.carried = carried or Carried()
        self.sources = sources or Sources()

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        if any(category_of(message) in SECURED for message in batch):
            raise Unsupported(
                "train and evaluate messages need send_and_receive: pushed one by one they would not be masked"
            )
        return self.inner.push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """One reply a group for a train or evaluate exchange, replies as they are for a query. `timeout` covers all phases, in
        seconds.
        """
        batch = list(messages)
        kinds = {message.metadata.message_type for message in batch}
        if not any(category_of(message) in SECURED for message in batch):
            return self.inner.send_and_receive(batch, timeout=timeout)
        if len(kinds) > 1 or len({message.metadata.dst_node_id for message in batch}) != len(batch):
            raise Unsupported("a secure exchange sends one message of one type to each device")
        return Exchange(self, batch, timeout).run()

    def answers(self, messages: Iterable[Message], timeout: float) -> Iterable[Message]:
        """Of the inner grid: as they come if it can, so that one masked vector is in memory at a time. Others get a list, since
        Flower's own goes over the messages twice.
        """
        if isinstance(self.inner, Streaming):
            return self.inner.stream(messages, timeout=timeout)
        return self.inner.send_and_receive(list(messages), timeout=timeout)

    def apply(self, words: Words, masks: list[Mask]) -> None:
        """Takes masks out of a sum."""
        apply_masks_on_all_cores(words, masks)

    def settings(self, category: str) -> Settings:
        return self.carried.settings.get(category) or self.config.settings(category)

    def draw(self, nodes: Sequence[int]) -> Drawn:
        """The groups of an exchange over `nodes`: those at hand, if they serve."""
        drawn, config = self.carried.drawn, self.config
        if drawn is not None and drawn.serves(nodes, config):
            return drawn
        count = grouping.how_many(len(nodes), config.groups, config.min_group)
        return Drawn(grouping.split(nodes, count, self.sources.shuffle), (None,) * count, config.group_rounds)
