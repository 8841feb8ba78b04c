"""Acts on what the coordinator orders about releases. It believes signed metadata, never the order.

Orders are verified and journalled as they come, and carried out one at a time. Whatever happens, the device ends
with a signed receipt in the journal's outbox, and a model that was live stays live until another one is ready to take over. A disk
that is full holds orders up; it loses none.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from edge_agent.inference.probe import Probe
from edge_agent.journal import InstallRecord, Proven
from edge_agent.state import InstallEvent
from edge_agent.updater.install import Installation, Measured, NotGoodEnough, NotProven
from edge_agent.updater.serving import Shelf
from edge_agent.updater.tools import Tools
from shared.errors import (
    ChildFailed,
    Conflict,
    Corrupt,
    InputError,
    NotFound,
    PeerError,
    ShoalError,
    StorageFull,
    Untrusted,
)
from shared.ids import Digest, new_event_id
from shared.session import AgentEvent, Command, Install, InstallReport, Serving, Withdraw
from shared.signing.receipts import Receipt, State, sign_receipt
from shared.signing.trust import Catalogue

_log = structlog.get_logger()
_UNKNOWN = Digest("0" * 64)  # the bundle of an order whose metadata did not verify
_TRIES = 3
_FULL_S = 5.0  # before a full disk is tried again
_STATES: dict[InstallEvent, State] = {
    InstallEvent.REFUSE: "refused",
    InstallEvent.FAIL: "failed",
    InstallEvent.REVERT: "reverted",
}
T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """How an order ended. `proven` is set for an install that serves."""

    event: InstallEvent
    reason: str = ""
    proven: Proven | None = None


class Updater:
    """`report(event)` sends a receipt. An order that is lost on its way is sent again: no receipt answers it."""

    def __init__(self, tools: Tools, report: Callable[[AgentEvent], None]) -> None:
        self.shelf = Shelf(tools)
        self._tools = tools
        self._report = report
        self._arrived: asyncio.Queue[Command] = asyncio.Queue()
        self._orders: asyncio.Queue[InstallRecord | str] = asyncio.Queue()
        self._catalogue: Catalogue | None = None
        self._running: tuple[InstallRecord, asyncio.Task[Proven]] | None = None
        self._probe: Probe | None = None

    # ---- from the agent

    async def restore(self) -> None:
        """Serve what was proven last; needs no coordinator."""
        await self.shelf.restore()

    async def serving(self) -> tuple[Serving, ...]:
        return await self.shelf.serving()

    def handle(self, command: Command) -> None:
        """An `Install` or `Withdraw`."""
        self._arrived.put_nowait(command)

    def acknowledged(self, event_id: str) -> None:
        """A receipt has arrived: the way back need not be warm any longer."""
        try:
            record = self._tools.journal.acknowledge(event_id)
        except StorageFull as error:  # at the next session it is repeated, and acknowledged again
            _log.warning("a receipt cannot be forgotten", reason=error.message)
            return
        if record is not None:
            self._orders.put_nowait(record.order.model)

    async def run(self) -> None:
        """Until cancelled. Orders that were under way when the process died begin again."""
        try:
            self._catalogue = await asyncio.to_thread(self._tools.trust.catalogue)
        except Corrupt as error:  # then nothing is carried out before new metadata comes
            _log.error("release metadata not read", reason=str(error))
        for record in await self._written(self._tools.journal.restart):
            self._orders.put_nowait(record)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take_orders(), name="orders")
                group.create_task(self._carry_out(), name="installs")
        finally:
            if self._probe is not None:
                await self._probe.close()

    @property
    def busy(self) -> bool:
        return self._running is not None

    # ---- orders arrive

    async def _take_orders(self) -> None:
        while True:
            await self._take(await self._arrived.get())

    async def _take(self, command: Command) -> None:
        order, journal = command.order, self._tools.journal
        if not isinstance(order, Install | Withdraw) or journal.seen(command.command_id):
            return
        try:
            record = await self._verified(command, order)
        except Exception as error:  # noqa: BLE001  # whatever it was: an order that was not verified is declined
            end = _failed(error, InstallEvent.REFUSE)
            record = InstallRecord(command.command_id, _bare(order), _UNKNOWN, 0)
            report = self._receipt(record, end, Measured())
            await self._written(lambda: journal.decline(record, end.event, end.reason, report))
            self._report(report)
            return
        if await self._written(lambda: journal.begin(record)):
            self._abandon_if_withdrawn(record)
            self._orders.put_nowait(record)

    async def _verified(self, command: Command, order: Install | Withdraw) -> InstallRecord:
        while True:
            try:
                catalogue = await asyncio.to_thread(self._tools.trust.update, order.metadata)
                break
            except StorageFull as error:
                await _full(error)
        self._catalogue = catalogue
        target = catalogue.find(order.model, order.release)
        if isinstance(order, Install):
            catalogue.check_install(order.model, order.release, self._current(order.model))
        elif not target.withdrawn:
            raise PeerError(f"release {order.model}:{order.release} was not withdrawn by those who sign releases")
        return InstallRecord(command.command_id, _bare(order), target.digest, target.length)

    def _current(self, model: str) -> int:
        return next((one.release for one in self._tools.journal.proven(model)), 0)

    def _abandon_if_withdrawn(self, record: InstallRecord) -> None:
        if self._running is None or isinstance(record.order, Install):
            return
        running, task = self._running
        if (running.order.model, running.order.release) == (record.order.model, record.order.release):
            task.cancel()

    # ---- orders are carried out

    async def _carry_out(self) -> None:
        while True:
            job = await self._orders.get()
            if isinstance(job, str):
                await self._tidy(job)
                continue
            measured = Measured()
            try:
                carry_out = self._install if isinstance(job.order, Install) else self._withdraw
                end = await carry_out(job, measured)
            except Exception as error:  # noqa: BLE001  # whatever it was, it must not end the agent now and at every start
                end = _failed(error, InstallEvent.FAIL)
            await self._conclude(job, end, measured)

    async def _install(self, record: InstallRecord, measured: Measured) -> _End:
        order = record.order
        try:
            # Once more: orders may have come since this one was verified, or this process may have been another then.
            target = self._believed().check_install(order.model, order.release, self._current(order.model))
            if target.digest != record.bundle_digest:
                raise Untrusted(f"release {order.model}:{order.release} is not the one that was verified")
            return _End(InstallEvent.PROVE, proven=await self._tried(record, measured))
        except (NotGoodEnough, PeerError, InputError, StorageFull) as error:
            return _End(InstallEvent.REFUSE, str(error))
        except _Withdrawn as error:
            return _End(InstallEvent.REVERT, str(error))

    def _believed(self) -> Catalogue:
        if self._catalogue is None:
            raise Untrusted("no release metadata on this device verifies; it comes with the next order")
        return self._catalogue

    async def _tried(self, record: InstallRecord, measured: Measured) -> Proven:
        """A child that dies under an install costs a repetition, not the install."""
        for left in reversed(range(_TRIES)):
            measured.clear()
            installation = Installation(self._tools, self.shelf, self._asker(), record, measured)
            task = asyncio.create_task(installation.run(), name=f"install {record.order.model}:{record.order.release}")
            self._running = (record, task)
            try:
                await asyncio.wait([task])
            finally:
                self._running = None
                if not task.done():  # this process stops: let the candidate be closed
                    task.cancel()
                    await asyncio.wait([task])
            if task.cancelled():
                raise _Withdrawn("it was withdrawn while it was being installed")
            error = task.exception()
            if not isinstance(error, ChildFailed) or not left:
                return task.result()
            _log.warning("install begins again", reason=str(error))
            await self._written(lambda: self._tools.journal.advance(record.command_id, InstallEvent.RESTART))
            await self.shelf.back()
        raise ChildFailed("the install was not tried")

    def _asker(self) -> Probe:
        if self._probe is None:
            self._probe = Probe(self._tools.inference.address)
        return self._probe

    async def _withdraw(self, record: InstallRecord, _: Measured) -> _End:
        model, release = record.order.model, record.order.release
        try:
            catalogue = self._believed()
            if not catalogue.is_withdrawn(model, release):  # asked once more: this process may have been another then
                raise Untrusted(f"release {model}:{release} was not withdrawn by those who sign releases")
        except Untrusted as error:
            return _End(InstallEvent.REFUSE, error.message)
        return _End(InstallEvent.REVERT, await self._step_back(catalogue, model, release))

    async def _step_back(self, catalogue: Catalogue, model: str, release: int) -> str:
        """Instant when the earlier release is still warm. Returns what happened."""
        journal, slots = self._tools.journal, self._tools.inference.slots
        standing = journal.proven(model)
        # First: a crash from here on serves the earlier one.
        before = await self._written(lambda: journal.step_back(model, release))
        if not standing or standing[0].release != release:
            await self.shelf.close(model, release)
            return "it was not serving"
        if before is not None and catalogue.is_withdrawn(model, (earlier := before.release)):
            before = await self._written(lambda: journal.step_back(model, earlier))
        if before is None:
            with contextlib.suppress(NotFound):
                await slots.remove(model)
            return "no earlier release on this device; the model was unloaded"
        try:
            await slots.swap(model, before.release)
        except (NotFound, Conflict):
            await self.shelf.serve(before)
        await self.shelf.close(model, release)
        return f"release {before.release} serves again"

    async def _tidy(self, model: str) -> None:
        try:
            await self.shelf.make_room(model, 0)
            await asyncio.to_thread(self.shelf.collect_garbage, model)
        except Exception as error:  # noqa: BLE001  # what is left over costs room, no more
            _log.info("old release not removed", model=model, reason=str(error))

    # ---- what is written

    async def _conclude(self, record: InstallRecord, end: _End, measured: Measured) -> None:
        journal, order = self._tools.journal, record.order
        report = self._receipt(record, end, measured)
        if (proven := end.proven) is not None:
            _log.info("proven", model=order.model, release=order.release, runtime=proven.runtime)
            await self._written(lambda: journal.prove(record.command_id, proven, report))
        else:
            _log.warning(_STATES[end.event], model=order.model, release=order.release, reason=end.reason)
            await self._written(lambda: journal.end(record.command_id, end.event, end.reason, report))
        self._report(report)
        if isinstance(order, Withdraw):
            await self._tidy(order.model)

    async def _written(self, write: Callable[[], T]) -> T:
        """What a write to the journal returns, once there is room for it."""
        while True:
            try:
                return write()
            except StorageFull as error:
                await _full(error)

    def _receipt(self, record: InstallRecord, end: _End, measured: Measured) -> AgentEvent:
        identity, variant, proof = self._tools.identity(), measured.variant, measured.proof
        receipt = Receipt(
            device=identity.device,
            rollout_id=record.order.rollout_id,
            model=record.order.model,
            release=record.order.release,
            bundle_digest=record.bundle_digest,
            state="proven" if end.proven is not None else _STATES[end.event],
            at=float(self._tools.clock.now()),
            reason=end.reason,
            variant_digest=variant.digest if variant else "",
            runtime=variant.runtime if variant else "",
            answers=proof.answers if proof else 0,
            errors=(proof.errors if proof else 0) + measured.after.errors,
            accuracy_before=_finite(measured.before.accuracy),
            accuracy_after=_finite(measured.after.accuracy),
            max_logit_difference=_finite(variant.max_logit_difference if variant else None),
            top1_agreement=_finite(variant.top1_agreement if variant else None),
            latency_before_ms=_finite(measured.before.latency_ms),
            latency_after_ms=_finite((proof.latency_ms if proof else None) or measured.after.latency_ms),
            size_bytes=variant.size_bytes if variant else 0,
        )
        data, signature = sign_receipt(identity, receipt)
        event = InstallReport(record.command_id, record.order.rollout_id, data, signature, identity.certificate)
        return AgentEvent(new_event_id(), event)


class _Withdrawn(Exception):
    """The release was withdrawn while it was being installed."""


def _failed(error: Exception, event: InstallEvent) -> _End:
    """`event` for our own errors; any other is this device's failure, and its text, which may say too much, stays in its log."""
    if isinstance(error, ShoalError | NotProven):
        return _End(event, str(error))
    _log.error("order failed", exc_info=error)
    return _End(InstallEvent.FAIL, f"this device failed: {type(error).__name__}; see its log")


async def _full(error: StorageFull) -> None:
    _log.error("an order waits", reason=error.message)
    await asyncio.sleep(_FULL_S)


def _finite(value: float | None) -> float | None:
    """A receipt holds numbers only; what is not one never passed a gate."""
    return value if value is not None and math.isfinite(value) else None


def _bare(order: Install | Withdraw) -> Install | Withdraw:
    """Without metadata: it is verified, and trusted from then on."""
    if isinstance(order, Install):
        return Install(order.rollout_id, order.model, order.release, {}, order.gate)
    return Withdraw(order.rollout_id, order.model, order.release, {})
