"""One secure exchange: a batch of messages taken through the phases of `shared.secagg`, group by group but all at once."""

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from coordinator.rounds.broadcasts import Broadcast, next_broadcast
from coordinator.rounds.exchange import Fate, Outcome, Summary
from coordinator.rounds.secure_group import Asked, GroupExchange, Work
from shared.errors import RoundAborted, ShoalError, Unsupported
from shared.flower import inputs_digest, record_to_numpy, reply_for_all
from shared.secagg.messages import Phase
from shared.secagg.quantize import Total, add_change
from shared.secagg.schema import Arrays

if TYPE_CHECKING:
    from coordinator.rounds.secure_grid import SecureGrid

SECURED = ("train", "evaluate")
_ORDER = {phase: place for place, phase in enumerate(Phase)}


@dataclass
class _Running:
    """A group on its way: what it waits for, and its sum in the end."""

    exchange: GroupExchange
    first: Message  # of its requests: the reply answers it
    steps: Generator[Asked, None, Total]
    asked: Asked | None = None
    total: Total | None = None


@dataclass
class Exchange:
    """The groups go through their phases in step: one batch of messages a phase, to all groups that are in it.

    A group that comes to no sum is left out, while enough others are left.
    """

    grid: "SecureGrid"
    batch: list[Message]
    timeout: float | None
    _groups: list[_Running] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        ordered = sorted(self.batch, key=lambda message: message.metadata.dst_node_id)
        self._deadline = None if self.timeout is None else self.grid.sources.clock.monotonic() + self.timeout
        self._work = _work(self.grid, ordered)
        self._drawn = self.grid.draw([message.metadata.dst_node_id for message in ordered])
        parts = [
            {m.metadata.dst_node_id: m for m in ordered if m.metadata.dst_node_id in part} for part in self._drawn.parts
        ]
        for size in {len(part) for part in parts}:
            self._work.plan(
                size, self.grid.config.rates.dropped(size)
            )  # so that what cannot be summed is refused before any device hears of it
        for part, made in zip(parts, self._drawn.usable(parts, self.grid.config), strict=True):
            group = GroupExchange(self.grid, self._work, part, made, self._drawn.rounds_left)
            self._groups.append(_Running(group, next(iter(part.values())), group.steps()))

    def run(self) -> list[Message]:
        """One reply for each group that came to a sum. Raises `RoundAborted` for too few of them."""
        try:
            self._check_groups()
            self._drive()
            totals = [running.total for running in self._groups if running.total is not None]
            settings = self._work.settings.after(*totals)
        except ShoalError as error:
            self.grid.carried.drawn = None
            self._close(aborted=str(error))
            raise
        self.grid.carried.settings[self._work.category] = settings
        self.grid.carried.drawn = self._drawn.after([running.exchange for running in self._groups])
        self._close(weight=sum(total.weight for total in totals))
        if self._work.category == "train":
            counted = [node for node, outcome in self._outcomes().items() if outcome.fate is Fate.COUNTED]
            self.grid.carried.counted = {**self.grid.carried.counted, **dict.fromkeys(counted, self._work.round_id)}
        return [reply_for_all(item.first, self._mean(item.total)) for item in self._groups if item.total is not None]

    # ---- the groups side by side

    def _check_groups(self) -> None:
        config, smallest = self.grid.config, min(len(running.exchange.outcomes) for running in self._groups)
        if config.groups > 1 and smallest < config.min_group:
            raise RoundAborted(f"{smallest} devices were selected, a group has {config.min_group} at least")
        if len(self._groups) < self._needed:
            raise RoundAborted(
                f"the devices selected make {len(self._groups)} groups of at least {config.min_group}, "
                f"{self._needed} are needed: select more"
            )

    @property
    def _needed(self) -> int:
        """Groups. Measuring is averaging, for which one is enough; a rule that combines updates may need more."""
        return self.grid.config.least_groups if self._work.category == "train" else 1

    def _drive(self) -> None:
        for running in self._groups:
            self._advance(running)
        while waiting := [(running, running.asked) for running in self._groups if running.asked is not None]:
            phase = min((asked.phase for _, asked in waiting), key=_ORDER.__getitem__)
            now = [(running, asked) for running, asked in waiting if asked.phase is phase]
            self._ask(phase, [asked for _, asked in now])
            for running, _ in now:
                self._advance(running)

    def _ask(self, phase: Phase, questions: list[Asked]) -> None:
        where = {node: asked for asked in questions for node in asked.waiting}
        messages = chain.from_iterable(asked.messages for asked in questions)
        for reply in self.grid.answers(messages, self._budget(phase)):
            if (asked := where.get(reply.metadata.src_node_id)) is not None:
                asked.take(reply)
        for asked in questions:
            asked.close()
        self.grid.observer.phase(phase, self._outcomes())

    def _advance(self, running: _Running) -> None:
        """To the group's next question, or its end."""
        running.asked = None
        try:
            running.asked = next(running.steps)
        except StopIteration as end:
            running.total = end.value
        except RoundAborted as error:
            if len(self._groups) == 1:
                raise
            running.exchange.close(used=False, reason=f"its group came to no sum: {error}")
            left = sum(not item.exchange.failed for item in self._groups)
            if left < self._needed:
                raise RoundAborted(
                    f"{left} of {len(self._groups)} groups are left, {self._needed} are needed: {error}"
                ) from error

    def _budget(self, phase: Phase) -> float:
        """Seconds that a phase may take. Raises `RoundAborted` when none are left."""
        left = float("inf") if self._deadline is None else self._deadline - self.grid.sources.clock.monotonic()
        if left <= 0:
            raise RoundAborted(
                f"the exchange ran out of time before the phase {phase}: allow more, or select fewer devices"
            )
        return self.grid.config.timeouts.budget(phase, left)

    # ---- how it ends

    def _outcomes(self) -> dict[int, Outcome]:
        found = {node: item for running in self._groups for node, item in running.exchange.outcomes.items()}
        return dict(sorted(found.items()))

    def _close(self, *, weight: int = 0, aborted: str = "") -> None:
        groups = [running.exchange for running in self._groups]
        for running in self._groups:
            running.steps.close()
        for group in groups:
            if not group.failed:
                group.close(used=not aborted)
        liars = tuple(node for group in groups for node in group.false_dealers)
        numbered = {node: number for number, group in enumerate(groups, start=1) for node in group.outcomes}
        seated = numbered if len(groups) > 1 else {}
        work = self._work
        summary = Summary(work.round_id, work.category, self._outcomes(), weight, aborted, liars, seated)
        self.grid.observer.closed(summary)

    def _mean(self, total: Total) -> RecordDict:
        metrics = MetricRecord({self._work.settings.weight_key: total.weight, **total.metrics})
        if self._work.category != "train":
            return RecordDict({"metrics": metrics})
        arrays = {
            name: Array(add_change(str(base.dtype), base, total.changes[name]))
            for name, base in self._work.base.items()
        }
        return RecordDict({self._work.arrays_name: ArrayRecord(arrays), "metrics": metrics})


def category_of(message: Message) -> str:
    return str(message.metadata.message_type).partition(".")[0]


def _work(grid: "SecureGrid", messages: list[Message]) -> Work:
    """What the messages ask. Raises `Unsupported` for what cannot be summed."""
    category = category_of(messages[0])
    settings = grid.settings(category)
    if settings.privacy and category != "train":
        raise Unsupported("a private job measures nothing on devices: what they would tell has no noise")
    name, base = _only_arrays(messages[0]) if category == "train" else ("", {})
    contents = [message.content for message in messages]
    broadcast = _broadcast(grid, messages[0])
    if broadcast is not None:
        _common_inputs(contents, messages[0], grid)
        contents = [broadcast.whole_of(contents[0])]
    inputs = _common_inputs(contents, messages[0], grid)
    return Work(grid.sources.ids(), category, settings, inputs, name, base, broadcast)


def _broadcast(grid: "SecureGrid", message: Message) -> Broadcast | None:
    """How the one model that the messages hold is sent; None: whole."""
    if not grid.config.delta_broadcast or len(message.content.array_records) != 1:
        return None
    ((name, record),) = message.content.array_records.items()
    grid.carried.broadcast = next_broadcast(name, record, grid.carried.broadcast)
    return grid.carried.broadcast


def _only_arrays(message: Message) -> tuple[str, Arrays]:
    """The one `ArrayRecord` that a device gets. Raises `Unsupported` for another number of them."""
    if len(message.content.array_records) != 1:
        raise Unsupported("secure training sends one ArrayRecord to each device")
    ((name, record),) = message.content.array_records.items()
    return name, record_to_numpy(record)


def _common_inputs(contents: list[RecordDict], asked: Message, grid: "SecureGrid") -> str:
    """The digest of what every device gets. Raises `Unsupported` unless it is one and the same."""
    kind, app = asked.metadata.message_type, grid.app
    found = {
        inputs_digest(item, message_type=kind, client_app=app.client_app, run_config=app.run_config)
        for item in contents
    }
    if len(found) != 1:
        raise Unsupported(
            "secure aggregation sends the same arrays and settings to every device: answers to others have no common mean"
        )
    return str(found.pop())
