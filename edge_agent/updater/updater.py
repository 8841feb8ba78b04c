"""Acts on what the coordinator orders about releases. It believes signed metadata, never the order.

Orders are verified and journalled as they come, acknowledged, and carried out one at a time. Whatever happens, the device ends
with a signed receipt in the journal's outbox, and a model that was live stays live until another one is ready to take over.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable

import structlog

from edge_agent.inference.probe import Probe
from edge_agent.journal import InstallRecord, Proven
from edge_agent.state import InstallEvent
from edge_agent.updater.install import Installation, Measured, NotGoodEnough, NotProven
from edge_agent.updater.serving import Shelf
from edge_agent.updater.tools import Tools
from shared.errors import ChildFailed, Conflict, InputError, LocalError, NotFound, PeerError, ShoalError, StorageFull
from shared.ids import Digest
from shared.session import AgentEvent, Command, Install, InstallReport, Serving, Withdraw
from shared.signing.receipts import Receipt, State, sign_receipt
from shared.signing.trust import Catalogue

_log = structlog.get_logger()
_UNKNOWN = Digest("0" * 64)  # the bundle of an order whose metadata did not verify
_TRIES = 3


class Updater:
    """`acknowledge(command_id)` tells the coordinator that an order is safe here; `report(event)` sends a receipt."""

    def __init__(
        self, tools: Tools, acknowledge: Callable[[Command], None], report: Callable[[AgentEvent], None]
    ) -> None:
        self.shelf = Shelf(tools)
        self._tools = tools
        self._acknowledge = acknowledge
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
        record = self._tools.journal.acknowledge(event_id)
        if record is not None:
            self._orders.put_nowait(record.order.model)

    async def run(self) -> None:
        """Until cancelled. Orders that were under way when the process died begin again."""
        for record in self._tools.journal.restart():
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
            command = await self._arrived.get()
            try:
                await self._take(command)
            except StorageFull as error:
                _log.error("an order cannot be remembered", reason=error.message)  # not acknowledged: it comes again
                continue
            self._acknowledge(command)

    async def _take(self, command: Command) -> None:
        order = command.order
        if not isinstance(order, Install | Withdraw) or self._tools.journal.seen(command.command_id):
            return
        try:
            record = await self._verified(command, order)
        except StorageFull:
            raise
        except ShoalError as error:
            _log.warning("order refused", model=order.model, release=order.release, reason=str(error))
            record = InstallRecord(command.command_id, _bare(order), _UNKNOWN, 0)
            if self._tools.journal.begin(record):
                self._finish(record, InstallEvent.REFUSE, error.message, Measured())
            return
        if self._tools.journal.begin(record):
            self._abandon_if_withdrawn(record)
            self._orders.put_nowait(record)

    async def _verified(self, command: Command, order: Install | Withdraw) -> InstallRecord:
        catalogue = await asyncio.to_thread(self._tools.trust.update, order.metadata)
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
            elif isinstance(job.order, Install):
                await self._install(job)
            else:
                await self._withdraw(job)

    async def _install(self, record: InstallRecord) -> None:
        order = record.order
        measured = Measured()
        try:
            if self._catalogue is not None:  # orders may have come since this one was verified
                self._catalogue.check_install(order.model, order.release, self._current(order.model))
            proven = await self._tried(record, measured)
        except (NotGoodEnough, PeerError, InputError, StorageFull) as error:
            self._finish(record, InstallEvent.REFUSE, str(error), measured)
        except (NotProven, LocalError) as error:
            self._finish(record, InstallEvent.FAIL, str(error), measured)
        except _Withdrawn as error:
            self._finish(record, InstallEvent.REVERT, str(error), measured)
        else:
            report = self._receipt(record, "proven", "", measured)
            self._tools.journal.prove(record.command_id, proven, report)
            _log.info("proven", model=order.model, release=order.release, runtime=proven.runtime)
            self._report(report)

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
            self._tools.journal.advance(record.command_id, InstallEvent.RESTART)
            await self.shelf.back()
        raise ChildFailed("the install was not tried")

    def _asker(self) -> Probe:
        if self._probe is None:
            self._probe = Probe(self._tools.inference.address)
        return self._probe

    async def _withdraw(self, record: InstallRecord) -> None:
        model, release = record.order.model, record.order.release
        try:
            reason = await self._step_back(model, release)
        except ShoalError as error:
            _log.error("the earlier release cannot be served", model=model, reason=str(error))
            self._finish(record, InstallEvent.FAIL, str(error), Measured())
            return
        self._finish(record, InstallEvent.REVERT, reason, Measured())
        await self._tidy(model)

    async def _step_back(self, model: str, release: int) -> str:
        """Instant when the earlier release is still warm. Returns what happened."""
        standing = self._tools.journal.proven(model)
        before = self._tools.journal.step_back(model, release)  # first: a crash from here on serves the earlier one
        if not standing or standing[0].release != release:
            await self.shelf.close(model, release)
            return "it was not serving"
        slots = self._tools.inference.slots
        if before is not None and self._catalogue is not None and self._catalogue.is_withdrawn(model, before.release):
            self._tools.journal.step_back(model, before.release)
            before = None
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
        except ShoalError as error:
            _log.info("old slot not released", model=model, reason=error.message)
        await asyncio.to_thread(self.shelf.collect_garbage, model)

    # ---- receipts

    def _finish(self, record: InstallRecord, event: InstallEvent, reason: str, measured: Measured) -> None:
        state: dict[InstallEvent, State] = {
            InstallEvent.REFUSE: "refused",
            InstallEvent.FAIL: "failed",
            InstallEvent.REVERT: "reverted",
        }
        _log.warning(state[event], model=record.order.model, release=record.order.release, reason=reason)
        report = self._receipt(record, state[event], reason, measured)
        self._tools.journal.end(record.command_id, event, reason, report)
        self._report(report)

    def _receipt(self, record: InstallRecord, state: State, reason: str, measured: Measured) -> AgentEvent:
        identity, variant, proof = self._tools.identity(), measured.variant, measured.proof
        receipt = Receipt(
            device=identity.device,
            rollout_id=record.order.rollout_id,
            model=record.order.model,
            release=record.order.release,
            bundle_digest=record.bundle_digest,
            state=state,
            at=float(self._tools.clock.now()),
            reason=reason[:1000],
            variant_digest=variant.digest if variant else "",
            runtime=variant.runtime if variant else "",
            answers=proof.answers if proof else 0,
            errors=(proof.errors if proof else 0) + measured.after.errors,
            accuracy_before=measured.before.accuracy,
            accuracy_after=measured.after.accuracy,
            max_logit_difference=variant.max_logit_difference if variant else None,
            top1_agreement=variant.top1_agreement if variant else None,
            latency_before_ms=measured.before.latency_ms,
            latency_after_ms=(proof.latency_ms if proof else None) or measured.after.latency_ms,
            size_bytes=variant.size_bytes if variant else 0,
        )
        data, signature = sign_receipt(identity, receipt)
        event = InstallReport(record.command_id, record.order.rollout_id, data, signature)
        return AgentEvent(f"evt-{secrets.token_hex(8)}", event)


class _Withdrawn(Exception):
    """The release was withdrawn while it was being installed."""


def _bare(order: Install | Withdraw) -> Install | Withdraw:
    """Without metadata: it is verified, and trusted from then on."""
    if isinstance(order, Install):
        return Install(order.rollout_id, order.model, order.release, {}, order.gate)
    return Withdraw(order.rollout_id, order.model, order.release, {})
