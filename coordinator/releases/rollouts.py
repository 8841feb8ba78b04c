"""Rollouts, carried: receipts come in, offers and withdrawals go out. `rollout` decides, `changes` applies, the store commits.

Nothing is sent before it is committed, and a receipt is acknowledged only after. A command repeats what was committed, under
an id that follows from it, so sending one twice does nothing. A device that was away hears what it should have when it
attaches. Whoever builds this calls `tick` about every second.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import structlog

from coordinator.fleet.ports import Sessions
from coordinator.releases import changes
from coordinator.releases.plan import RolloutPlan, assign
from coordinator.releases.ports import DeviceDirectory, ReleaseStore
from coordinator.releases.release import Change, Decide, Rollout, RolloutDevice, RolloutRecord
from coordinator.releases.service import ReleaseService
from coordinator.releases.standing import Standing
from coordinator.releases.states import UNWANTED, DeviceState, RolloutState
from shared.clock import Clock
from shared.errors import Conflict, LocalError, Malformed, PeerError, Unavailable
from shared.ids import CommandId, DeviceId, RolloutId, new_rollout_id
from shared.session import Acknowledged, Event, Hello, Install, InstallReport, Withdraw
from shared.signing.receipts import Receipt, Verifier, verify_receipt

_log = structlog.get_logger()
CENSUS_S = 5.0
Watcher = Callable[[RolloutId], None]


@dataclass(frozen=True)
class Fleet:
    """How rollouts reach and know devices."""

    sessions: Sessions
    directory: DeviceDirectory
    verifier: Verifier


class RolloutService:
    """Implements `coordinator.fleet.ports.SessionListener`. Synchronous and safe to call from threads."""

    def __init__(self, store: ReleaseStore, releases: ReleaseService, fleet: Fleet, clock: Clock) -> None:
        """Takes up what was committed before; `fleet.sessions` learns of the listener by whoever builds it."""
        self._store = store
        self._releases = releases
        self._fleet = fleet
        self._clock = clock
        self._lock = threading.RLock()
        self._standing = Standing(store)  # we alone write the store
        self._unsent: set[tuple[RolloutId, DeviceId]] = set()
        self._proved: set[tuple[DeviceId, str]] = set()  # device and model: a proof that came since the device attached
        self._noted: set[tuple[RolloutId, DeviceId, str]] = (
            set()
        )  # what the history says of a device that changed nothing
        self._troubles: dict[str, str] = {}
        self._counted_at = 0.0
        self._watchers: list[Watcher] = []

    # ---- what admins do

    def start(self, model: str, number: int, plan_toml: str, cohort: str, actor: str) -> Rollout:
        """Roll a release out to a cohort; number 0 is the newest. The plan's text may be empty.

        Raises `ConfigError` for a plan or cohort that cannot be read, `NotFound` for the release, `Conflict` when it was
        withdrawn, when devices run a newer one, when another rollout of the model has not ended, or when nobody is in the cohort.
        """
        plan = RolloutPlan.parse(plan_toml)
        release = self._releases.release(model, number)
        if release.withdrawn:
            raise Conflict(f"release {release} was withdrawn; publish a new one")
        members = [device.id for device in self._fleet.directory.members(cohort)]
        rollout_id, now = new_rollout_id(), self._clock.now()
        rollout = Rollout(
            id=rollout_id,
            model=model,
            release=release.number,
            digest=release.digest,
            state=RolloutState.PLANNED,
            plan=plan,
            cohort=cohort,
            created_at=now,
            devices=tuple(
                RolloutDevice(device, stage, updated_at=now)
                for device, stage in assign(members, plan, rollout_id).items()
            ),
        )
        with self._lock:
            current = self._standing.current(model)
            if current is not None and current.release > release.number:
                raise Conflict(f"devices run {model}:{current.release}; undo rollout {current.id} to go back")
            if current is not None:  # newer is newer, whatever the clock says
                rollout = replace(rollout, created_at=max(now, math.nextafter(current.created_at, math.inf)))
            detail: dict[str, str | int | float] = {
                "actor": actor,
                "release": str(release),
                "devices": len(rollout.devices),
            }
            self._store.create(rollout, RolloutRecord(now, "plan", detail))
            self._standing.keep(self._store.rollout(rollout.id))
            self._tell(rollout.id)
            self._proceed(rollout.id)
            return self._known(rollout.id)

    def pause(self, rollout: str, actor: str, reason: str = "") -> Rollout:
        """Nobody else is offered the release; devices that were go on. Raises `NotFound`, `Conflict`."""
        return self._command(rollout, lambda before: changes.pause(before, actor, reason, self._clock.now()))

    def resume(self, rollout: str, actor: str) -> Rollout:
        """Raises `NotFound`, `Conflict`."""
        return self._command(rollout, lambda before: changes.resume(before, actor, self._clock.now()))

    def undo(self, rollout: str, actor: str, reason: str = "") -> Rollout:
        """Withdraw the release and bring every device that may serve it back. Raises `NotFound`, `Conflict`."""
        with self._lock:
            found = self._store.rollout(rollout)
            current = self._standing.current(found.model)
            if current is not None and found.state not in UNWANTED and found.id != current.id:
                raise Conflict(f"rollout {current.id} of {found.model} came after it; undo that one first")
            return self._command(rollout, lambda before: changes.undo(before, actor, reason, self._clock.now()))

    # ---- what people see

    def rollout(self, rollout: str) -> Rollout:
        """Raises `NotFound`."""
        return self._store.rollout(rollout)

    def rollouts(self) -> list[Rollout]:
        """Oldest first."""
        return self._store.rollouts()

    def counts(self) -> Mapping[str, int]:
        """How many there are in each state."""
        return self._store.counts()

    def records(self, rollout: str, after_id: int = 0) -> list[RolloutRecord]:
        """Raises `NotFound`."""
        return self._store.records(self._store.rollout(rollout).id, after_id)

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with a rollout's id after each of its changes, from any thread; it must return quickly and raise
        nothing. Returns how to stop that."""
        self._watchers.append(watcher)
        return partial(self._watchers.remove, watcher)

    # ---- time

    def tick(self) -> None:
        """Do what time asks for, and what could not be sent before. What fails is logged, holds up nothing else, and is tried
        again by the next tick."""
        with self._lock:
            now = self._clock.now()
            if now - self._counted_at >= CENSUS_S:
                self._counted_at = now
                self._try("census", self._take_census)
            for rollout in self._standing:
                self._try(f"rollout {rollout.id}", partial(self._proceed, rollout.id))
            for rollout_id, device in tuple(self._unsent):
                self._send(rollout_id, device)
            self._try("release metadata", self._releases.refresh)

    def _try(self, what: str, do: Callable[[], object]) -> None:
        """One trouble is logged once, however many ticks it lasts."""
        try:
            do()
        except Exception as error:  # noqa: BLE001  # one rollout's trouble must not end the coordinator
            if self._troubles.get(what) != str(error):
                expected = isinstance(error, LocalError)
                _log.error(
                    "waits for the next tick", what=what, reason=str(error), exc_info=None if expected else error
                )
            self._troubles[what] = str(error)
        else:
            self._troubles.pop(what, None)

    def _take_census(self) -> None:
        for rollout in self._standing:
            if rollout.state in (RolloutState.STAGING, RolloutState.PAUSED):
                members = {device.id for device in self._fleet.directory.members(rollout.cohort)}
                if changes.census(rollout, members, self._clock.now()) is not None:
                    self._change(rollout.id, partial(changes.census, members=members, now=self._clock.now()))

    # ---- the fleet's side

    def attached(self, device: DeviceId, hello: Hello) -> None:
        with self._lock, _left_for_later(device, "attach"):
            self._proved = {(other, model) for other, model in self._proved if other != device}
            owed = {(rollout.id, device) for rollout in self._standing if rollout.find(device) is not None}
            self._unsent |= owed  # what fails below is sent at the next tick
            for rollout in self._standing:
                if self._standing.is_current(rollout):
                    self._meet(rollout, device, hello)
            for rollout_id, _ in owed & self._unsent:
                self._send(rollout_id, device)

    def detached(self, device: DeviceId) -> None:
        """Nothing: what it missed is sent when it comes back."""

    def received(self, device: DeviceId, event_id: str, event: Event) -> None:
        """Only receipts are for us."""
        if not isinstance(event, InstallReport):
            return
        with self._lock, _left_for_later(device, "receipt"):
            rollout = self._standing.find(event.rollout_id)
            if rollout is not None:
                self._receive(rollout, device, event)
            # Acknowledged whatever it said: a receipt that does not verify will not verify the next time either.
            self._acknowledge(device, event_id)
            if rollout is not None:
                self._proceed(rollout.id)

    def _meet(self, rollout: Rollout, device: DeviceId, hello: Hello) -> None:
        now = self._clock.now()
        if rollout.find(device) is None:
            members = {member.id for member in self._fleet.directory.members(rollout.cohort)}
            if device not in members:
                return
            self._change(rollout.id, lambda before: changes.join(before, device, now))
        going_back = any(_state(other, device) is DeviceState.WITHDRAWING for other in self._standing)
        for serving in hello.serving:
            if serving.model == rollout.model and serving.bundle_digest != rollout.digest and not going_back:
                decide = partial(changes.serves, device=device, digest=serving.bundle_digest, now=now)
                self._change(rollout.id, decide)
        self._proceed(rollout.id)

    def _receive(self, rollout: Rollout, device: DeviceId, report: InstallReport) -> None:
        """The certificate came with the receipt: who signed may have renewed since."""
        now = self._clock.now()
        try:
            receipt = verify_receipt(
                self._fleet.verifier, report.receipt_json, report.signature, report.certificate, device
            )
            _check_subject(receipt, rollout)
        except PeerError as error:
            reason = str(error)
            self._change(rollout.id, lambda before: self._news(changes.receipt_refused(before, device, reason, now)))
            return
        release = self._releases.release(rollout.model, rollout.release)
        receive = partial(
            changes.receive,
            release=release,
            receipt=receipt,
            signature=report.signature,
            now=now,
            served_before=self._served_before(rollout, device),
        )
        self._change(rollout.id, lambda before: self._news(receive(before)))
        if _state(self._known(rollout.id), device) is DeviceState.PROVEN:
            self._proved.add((device, rollout.model))

    def _served_before(self, rollout: Rollout, device: DeviceId) -> bool:
        """Whether it served another release of this model when it was offered this one: as it said, or as it proved."""
        hello = self._fleet.sessions.connected().get(device)
        served = {item.bundle_digest for item in hello.serving if item.model == rollout.model} if hello else set()
        if served - {rollout.digest} or (device, rollout.model) in self._proved:
            return True
        swapped_already = hello is None or rollout.digest in served  # so it does not say any more what was before
        return swapped_already and self._store.proved(rollout.model, device, but=rollout.id)

    def _news(self, change: Change | None) -> Change | None:
        """Not what the history says already: a device that sends the same nonsense for ever fills no disk."""
        if change is None or any(record.kind not in changes.NOTES for record in change.records):
            return change
        said = {(change.rollout.id, DeviceId(str(one.detail["device"])), one.summary) for one in change.records}
        if said <= self._noted:
            return None
        self._noted |= said
        return change

    def _acknowledge(self, device: DeviceId, event_id: str) -> None:
        with contextlib.suppress(Unavailable):  # it will repeat the event, and be acknowledged then
            self._fleet.sessions.send(device, Acknowledged(event_id))

    # ---- inside

    def _command(self, rollout: str, decide: Decide) -> Rollout:
        with self._lock:
            found = self._store.rollout(rollout)
            self._change(found.id, decide)
            self._proceed(found.id)
            return self._known(found.id)

    def _proceed(self, rollout: RolloutId) -> None:
        """Decide on what is known here; only a change goes to the store, where it is decided again."""
        known = self._known(rollout)
        if known.state is RolloutState.COMPLETED and not self._standing.is_current(known):
            return  # a newer one says what late devices should run
        connected, now = self._fleet.sessions.connected().keys(), self._clock.now()
        if changes.proceed(known, connected, now) is not None:
            self._change(rollout, lambda before: changes.proceed(before, connected, now))

    def _change(self, rollout: RolloutId, decide: Decide) -> None:
        before = self._known(rollout)
        after = self._store.change(rollout, decide)
        self._standing.keep(after)
        if after == before:
            return
        known = {row.device: row for row in before.devices}
        changed = [row for row in after.devices if row != known.get(row.device)]
        if after.state in UNWANTED:
            self._unwant(before, after, changed)
        for row in changed:
            if self._is_owed(after, row):
                self._send(rollout, row.device)
        self._tell(rollout)

    def _unwant(self, before: Rollout, after: Rollout, changed: Collection[RolloutDevice]) -> None:
        if before.state not in UNWANTED or any(row.state is DeviceState.WITHDRAWING for row in changed):
            self._releases.withdrawal_committed()
        if before.state not in UNWANTED:
            # Devices that the rollout before had offered and not yet heard of hear of it now.
            current = self._standing.current(after.model)
            if current is not None:
                self._unsent |= {(current.id, row.device) for row in current.devices}

    def _tell(self, rollout: RolloutId) -> None:
        for watcher in tuple(self._watchers):
            watcher(rollout)

    def _known(self, rollout: RolloutId) -> Rollout:
        """Raises `NotFound`."""
        return self._standing.find(rollout) or self._store.rollout(rollout)

    def _is_owed(self, rollout: Rollout, row: RolloutDevice) -> bool:
        """Whether a command to this device stands unanswered."""
        if row.state is DeviceState.OFFERED:
            return rollout.state not in UNWANTED and self._standing.is_current(rollout)
        return row.state is DeviceState.WITHDRAWING

    def _send(self, rollout_id: RolloutId, device: DeviceId) -> None:
        """Now, or at a later tick."""
        self._unsent.add((rollout_id, device))
        self._try(f"command to {device}", partial(self._deliver, rollout_id, device))

    def _deliver(self, rollout_id: RolloutId, device: DeviceId) -> None:
        """Raises what signing raises: then no command leaves."""
        rollout = self._known(rollout_id)
        row = rollout.find(device)
        if row is None or not self._is_owed(rollout, row):
            self._unsent.discard((rollout_id, device))
            return
        metadata = self._releases.metadata()
        self._unsent.discard((rollout_id, device))
        order: Install | Withdraw = Withdraw(rollout.id, rollout.model, rollout.release, metadata)
        if row.state is DeviceState.OFFERED:
            order = Install(rollout.id, rollout.model, rollout.release, metadata, rollout.plan.gate)
        with contextlib.suppress(Unavailable):  # told when it attaches
            self._fleet.sessions.send(device, order, command_id=_command_id(rollout, row))


@contextlib.contextmanager
def _left_for_later(device: str, what: str) -> Iterator[None]:
    """Our own trouble is logged: what was not acknowledged is repeated, what was not sent is sent at the next tick."""
    try:
        yield
    except LocalError as error:
        _log.warning(f"{what} waits", device=device, reason=str(error))


def _command_id(rollout: Rollout, row: RolloutDevice) -> CommandId:
    """Follows from what was committed: the same offer is the same command, a second offer is another."""
    return CommandId(f"{rollout.id}/{row.device}/{row.state.lower()}-{round(row.updated_at * 1000)}")


def _state(rollout: Rollout, device: DeviceId) -> DeviceState | None:
    row = rollout.find(device)
    return None if row is None else row.state


def _check_subject(receipt: Receipt, rollout: Rollout) -> None:
    wanted = (rollout.id, rollout.model, rollout.release)
    if (receipt.rollout_id, receipt.model, receipt.release) != wanted:
        raise Malformed(f"a receipt about {receipt.model}:{receipt.release} in a report about {rollout.id}")
