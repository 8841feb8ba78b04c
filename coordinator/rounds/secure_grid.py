"""`SecureGrid`: any Flower `Grid`, with secure aggregation between it and the strategy.

A train or evaluate exchange becomes the phases of `shared.secagg` and comes back as one reply: the weighted mean (the global
arrays plus the mean change, in their own dtypes and shapes; integers to the nearest), the total weight, the mean metrics. A
strategy that only averages cannot tell the difference; `linear.require_linear` refuses the others. The clients' half is
`edge_agent.secure_mod`.

The devices of an exchange make a group first: keys and shares for `SecureConfig.group_rounds` rounds. Later exchanges over
them, or over enough of them, take the group's next round at once: three exchanges of messages instead of six. A group ends when
its rounds are used up, when somebody is invited that is not of it, and when one of its devices may no longer have its keys,
because it refused or did not answer, or cannot use what it was dealt: kept, it would cost that device the next round too.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.rounds.exchange import ExchangeObserver, NullObserver, SecureConfig
from coordinator.rounds.secure_exchange import SECURED, Exchange, MadeGroup, category_of
from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.clock import Clock, SystemClock
from shared.errors import Unsupported
from shared.secagg.keys import Verifier
from shared.secagg.server import Apply
from shared.secagg.terms import Settings


def new_id() -> str:
    return secrets.token_hex(16)


@dataclass
class Carried:
    """What one exchange leaves to the next: a group with keys for more rounds, and how large elements are, by kind of exchange."""

    group: MadeGroup | None = None
    settings: dict[str, Settings] = field(default_factory=dict)


class SecureGrid(Grid):
    """Wraps `inner`. `send_and_receive` raises `RoundAborted` when there is no sum, `Unsupported` for what cannot be one.

    `client_app` is what the devices run, under the name that their secure mods were given; part of what they agree on. `apply`
    adds masks to a sum: by default on every core that the process may use. `carried` outlives this object where a job makes one
    for each exchange.
    """

    def __init__(
        self,
        inner: Grid,
        config: SecureConfig,
        verifier: Verifier,
        *,
        observer: ExchangeObserver | None = None,
        clock: Clock | None = None,
        ids: Callable[[], str] = new_id,
        client_app: str = "",
        carried: Carried | None = None,
        apply: Apply = apply_masks_on_all_cores,
    ) -> None:
        self.inner = inner
        self.config = config
        self.verifier = verifier
        self.observer = observer or NullObserver()
        self.clock = clock or SystemClock()
        self.ids = ids
        self.client_app = client_app
        self.apply = apply
        self.carried = carried or Carried()

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
        """One reply for a train or evaluate exchange, replies as they are for a query. `timeout` covers all phases, in seconds."""
        batch = list(messages)
        kinds = {message.metadata.message_type for message in batch}
        if not any(category_of(message) in SECURED for message in batch):
            return self.inner.send_and_receive(batch, timeout=timeout)
        if len(kinds) > 1 or len({message.metadata.dst_node_id for message in batch}) != len(batch):
            raise Unsupported("a secure exchange sends one message of one type to each device")
        return [Exchange(self, batch, timeout).run()]

    def settings(self, category: str) -> Settings:
        return self.carried.settings.get(category) or self.config.settings(category)

    def usable_group(self, nodes: Sequence[int]) -> MadeGroup | None:
        """The group at hand, if it has keys for another round over `nodes`."""
        group = self.carried.group
        return group if group is not None and group.fits(nodes) else None
