"""A Flower `Grid` whose nodes are client apps in this process: one after the other, every message encoded as on the wire."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from shared.errors import Unsupported
from shared.flower import (
    APP_RAISED,
    decode_records,
    encode_records,
    new_message,
    reply_error,
    reply_with,
    stamp,
)


@dataclass
class Node:
    app: ClientApp
    context: Context

    @classmethod
    def of(cls, app: ClientApp, run_id: int, node_id: int) -> "Node":
        return cls(app, Context(run_id, node_id, {}, RecordDict(), {}))


class AnsweringGrid(Grid):
    """What grids have in common whose nodes answer at once: one run, and no messages that wait."""

    run_id: int = 1

    def set_run(self, run: Any) -> None:
        raise Unsupported("a grid whose nodes answer at once has one run")

    @property
    def run(self) -> Any:
        return self.run_id

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return new_message(
            content, run_id=self.run_id, node_id=dst_node_id, message_type=message_type, group_id=group_id
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise Unsupported("these nodes answer at once: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise Unsupported("these nodes answer at once: use send_and_receive")


@dataclass
class LocalGrid(AnsweringGrid):
    """`nodes` by node id. `bytes_down` and `bytes_up` count what messages' contents take, encoded, of all nodes together."""

    nodes: dict[int, Node]
    run_id: int = 1
    bytes_down: int = field(default=0, init=False)
    bytes_up: int = field(default=0, init=False)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies as they come; an app that raises makes an error reply, as on a device."""
        for place, message in enumerate(messages):
            stamp(message, run_id=self.run_id, message_id=f"m{place}")
            reply = self._deliver(message)
            if reply is not None:
                yield reply

    def answer(self, arrived: Message) -> Message | None:
        """What comes back for a message that reached its node; None: nothing does."""
        return self.handle(arrived)

    def handle(self, arrived: Message) -> Message:
        """What a node's host does."""
        node = self.nodes[arrived.metadata.dst_node_id]
        try:
            return node.app(arrived, node.context)
        except Exception as error:  # noqa: BLE001  # a host survives whatever an app raises
            return reply_error(arrived, APP_RAISED, f"the app raised {type(error).__name__}")

    def _deliver(self, message: Message) -> Message | None:
        sent = encode_records(message.content)
        self.bytes_down += len(sent)
        node_id, kind = message.metadata.dst_node_id, message.metadata.message_type
        arrived = new_message(decode_records(sent), run_id=self.run_id, node_id=node_id, message_type=kind)
        stamp(arrived, run_id=self.run_id, message_id=message.metadata.message_id)
        reply = self.answer(arrived)
        if reply is None or reply.has_error():
            return reply
        back = encode_records(reply.content)
        self.bytes_up += len(back)
        return reply_with(message, decode_records(back))
