"""One model name at work: its slots (values), its loaded versions (resources) and its lanes."""

import asyncio
import math
import time
from collections.abc import Mapping

from edge_agent.inference.generation import Generation, Job, Opened, Reply
from edge_agent.inference.lane import Lane
from edge_agent.inference.ports import ModelSpec, ModelStatus, SlotStatus
from edge_agent.inference.shadow import Shadow
from edge_agent.inference.slot import ANSWERING, ModelSlots, Slot, State
from edge_agent.inference.stats import LaneStats
from edge_agent.runtimes import TensorSpec
from edge_agent.runtimes.port import Array, check_inputs
from shared.clock import Clock
from shared.errors import Conflict, Malformed, NotFound, ShoalError

_VERSION_DIGITS = 20


class Model:
    """Event-loop only. `live` is the one reference that a swap changes."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.slots = ModelSlots(name)
        self.live: Generation | None = None
        self._clock = clock
        self._since = clock.now()
        self._loaded: dict[int, Generation] = {}
        self._specs: dict[int, ModelSpec] = {}
        self._live_lane: Lane | None = None
        self._pinned: dict[int, Lane] = {}
        self._shadow: Shadow | None = None

    # ---- answering

    def generation(self, version: str) -> Generation:
        """The version that answers to `version` now; the empty string is the live one. Raises `NotFound`."""
        if not version:
            if self.live is None:
                raise NotFound(f"model {self.name!r} has no live version")
            return self.live
        known = version.isascii() and version.isdigit() and len(version) <= _VERSION_DIGITS
        loaded = self._loaded.get(int(version)) if known else None
        if loaded is None:
            raise NotFound(f"model {self.name!r} has no version {version[:40]!r} loaded")
        return loaded

    async def infer(self, version: str, inputs: Mapping[str, Array], deadline: float = math.inf) -> Reply:
        """Queues one request. `deadline` is `time.monotonic`'s. Raises `NotFound`, `Malformed`, `Overloaded`,
        `DeadlineExceeded`."""
        generation = self.generation(version)
        session = generation.session
        check_inputs(session.inputs, inputs)
        rows, key = 1, tuple(inputs[tensor.name].shape for tensor in session.inputs)
        if generation.batchable:
            rows, key = key[0][0], tuple(shape[1:] for shape in key)
            self._check_rows(generation, rows, inputs)
        job = Job(inputs, rows, key, time.monotonic(), deadline, asyncio.get_running_loop().create_future())
        self._lane(version, generation).submit(job)
        return await job.future

    @staticmethod
    def _check_rows(generation: Generation, rows: int, inputs: Mapping[str, Array]) -> None:
        limit = generation.spec.policy.max_batch
        if rows > limit:
            raise Malformed(f"the request has {rows} rows, this model takes up to {limit}: split it")
        if any(array.shape[0] != rows for array in inputs.values()):
            raise Malformed("the inputs differ in their first dimension, the batch")

    def _lane(self, version: str, generation: Generation) -> Lane:
        if not version and self._live_lane is not None:
            return self._live_lane
        return self._pinned[generation.spec.version]

    # ---- changing versions

    def open(self, spec: ModelSpec) -> SlotStatus | None:
        """Takes a slot for `spec`; the status as it is when the same file is loaded already. Raises `Conflict`."""
        held = self._specs.get(spec.version)
        if spec.version in self._loaded and held is not None:
            if held.digest == spec.digest and held.runtime == spec.runtime:
                return self.status_of(self.slots.get(spec.version))
            raise Conflict(f"version {spec.version} of {self.name!r} is loaded with another file or runtime")
        self.slots = self.slots.opened(spec.version, spec.digest, self._clock.now())
        known = {slot.version for slot in self.slots.slots}
        self._specs = {version: held for version, held in self._specs.items() if version in known}
        self._specs[spec.version] = spec
        return None

    def adopt(self, opened: Opened) -> SlotStatus:
        """LOADING → WARM. Raises `Conflict` when the graph's inputs or outputs differ from the live version's."""
        generation = opened.generation
        version = generation.spec.version
        if self.live is not None:
            _check_alike(self.live, generation)
        self.slots = self.slots.loaded(version, self._clock.now())
        self._loaded[version] = generation
        self._pinned[version] = Lane(
            f"{self.name}:{version}", lambda: generation, generation.spec.policy, self._clock, background=True
        )
        self._pinned[version].adopt(generation.spec.policy, generation.fitting)
        return self.status_of(self.slots.get(version))

    def refuse(self, version: int, error: ShoalError) -> None:
        """LOADING → FAILED."""
        self.slots = self.slots.refused(version, error.message, self._clock.now())

    def swap(self, version: int) -> SlotStatus:
        return self._go_live(self.slots.swapped(version, self._clock.now()))

    def revert(self) -> SlotStatus:
        return self._go_live(self.slots.reverted(self._clock.now()))

    def _go_live(self, slots: ModelSlots) -> SlotStatus:
        slot = slots.live
        if slot is None:
            raise NotFound(f"model {self.name!r} has no live version")
        generation = self._loaded[slot.version]
        if self.live is not None:
            _check_alike(self.live, generation)
        if self._live_lane is None:
            policy = generation.spec.policy
            self._live_lane = Lane(self.name, lambda: self.live, policy, self._clock, tap=self._seen)
        if self.live is not generation:
            self._live_lane.adopt(generation.spec.policy, generation.fitting)
        self.slots, self.live = slots, generation
        return self.status_of(slot)

    async def release(self, version: int) -> None:
        """Answers what was asked of `version` by its number, then frees it."""
        self.slots = self.slots.released(version, self._clock.now())
        await self._closed(version, drain=True)

    async def remove(self) -> None:
        self.slots.removed(self._clock.now())
        await self.abandon()

    async def abandon(self) -> None:
        """Lets everything go, whatever state it is in."""
        self.slots, self.live = ModelSlots(self.name), None
        if self._live_lane is not None:
            self._live_lane.close()
        for version in list(self._specs):
            await self._closed(version)

    async def _closed(self, version: int, *, drain: bool = False) -> None:
        self._specs.pop(version, None)
        generation, lane = self._loaded.pop(version, None), self._pinned.pop(version, None)
        if lane is not None:
            if drain:
                await lane.idle()
            lane.close()
        if generation is not None:
            await generation.drained()
            await asyncio.to_thread(generation.session.close)

    async def idle(self) -> None:
        """Returns once every queued request is answered."""
        for lane in self._lanes():
            await lane.idle()

    def _lanes(self) -> list[Lane]:
        return [*([self._live_lane] if self._live_lane else []), *self._pinned.values()]

    # ---- shadowing

    async def shadow(self, version: int, requests: int, timeout_s: float) -> "Shadow":
        """Compares for as long as it takes to see `requests` live requests, at most `timeout_s`."""
        slot = self.slots.get(version)
        if slot.state not in ANSWERING or slot.state is State.LIVE or self.live is None:
            raise Conflict(f"version {version} of {self.name!r} is {slot.state}: it needs a live version beside it")
        if self._shadow is not None:
            raise Conflict(f"version {self._shadow.version} of {self.name!r} is being shadowed: wait for it")
        shadow = Shadow(self.live.spec.version, version, requests, self._pinned[version].submit)
        self._shadow = shadow
        try:
            async with asyncio.timeout(timeout_s):
                await shadow.done.wait()
        except TimeoutError:
            pass  # the report says how many were compared
        finally:
            self._shadow = None
        return shadow

    def _seen(self, job: Job, reply: Reply) -> None:
        if self._shadow is not None:
            self._shadow.see(job, reply)

    # ---- telling

    def status_of(self, slot: Slot) -> SlotStatus:
        generation, spec = self._loaded.get(slot.version), self._specs.get(slot.version)
        return SlotStatus(
            version=slot.version,
            digest=slot.digest,
            runtime=spec.runtime if spec else "",
            state=slot.state.value,
            since=slot.since,
            requests=generation.stats.success.count if generation else 0,
            errors=generation.stats.fail.count if generation else 0,
            reason=slot.reason,
        )

    def status(self) -> ModelStatus:
        lane, live = self._live_lane, self.slots.live
        stats = lane.stats if lane else LaneStats()
        return ModelStatus(
            model=self.name,
            live=self.status_of(live) if live else None,
            slots=tuple(self.status_of(slot) for slot in self.slots.slots),
            requests=stats.answered,
            errors=stats.failed,
            rejected=stats.rejected,
            expired=stats.expired,
            queued=lane.queued if lane else 0,
            batch_limit=lane.state.limit if lane else 0,
            latency_ms=stats.latency_ms.read(),
            batch_rows=stats.batch_rows.read(),
            since=self._since,
        )

    def loaded(self) -> tuple[Generation, ...]:
        return tuple(self._loaded.values())


def _check_alike(live: Generation, candidate: Generation) -> None:
    """Raises `Conflict` unless the two take the same requests and give like answers, so that a swap and the way back
    both suit whatever is queued. An output size that one runtime infers and the other leaves open is no difference."""
    for kind, old, new in (
        ("inputs", live.session.inputs, candidate.session.inputs),
        ("outputs", live.session.outputs, candidate.session.outputs),
    ):
        alike = len(old) == len(new) and all(_alike(a, b, kind) for a, b in zip(old, new, strict=True))
        if not alike or live.batchable != candidate.batchable:
            raise Conflict(
                f"the {kind} of version {candidate.spec.version} do not fit those of live version "
                f"{live.spec.version} of {live.spec.model!r}: remove the model first",
                detail=f"{_shown(new)} against {_shown(old)}",
            )


def _alike(old: TensorSpec, new: TensorSpec, kind: str) -> bool:
    if (old.name, old.dtype, len(old.shape)) != (new.name, new.dtype, len(new.shape)):
        return False
    if kind == "inputs":
        return old.shape == new.shape
    return all(a == b or -1 in (a, b) for a, b in zip(old.shape, new.shape, strict=True))


def _shown(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)}" for tensor in tensors)
