"""What an admin does with a fleet and then watches: releases going out, jobs, live load; told on the screen as it happens."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ChildFailed
from shared.files import write_atomic
from simulations.commands import Event, Job, Rollout, RolloutDevice, Round, last
from simulations.console import Screen, load_line
from simulations.fleet import Fleet
from simulations.jobfile import to_toml
from simulations.loader import Loader
from simulations.loadgen import LoadPlan, Target
from simulations.report import percent

_SHOWN = ("PROVEN", "REFUSED", "FAILED")  # where a device's part in a rollout ends
_STAGE_TIMEOUT_S = 120.0
# A first release: to all, as it was built.
AT_ONCE: Mapping[str, object] = {"stages": [1.0], "gate": {"requantize": False}}


@dataclass(frozen=True)
class Admin:
    """Everything it waits for is given up with `ChildFailed` when a process that should live has died for good."""

    fleet: Fleet
    screen: Screen

    async def first_release(self, bundle: Path, model: str) -> Rollout:
        """To every device at once; returns when all prove it. Raises `ChildFailed` otherwise."""
        release = await self.fleet.coordinator.publish(bundle, model)
        return self.must(await self.roll_out(model, release.release, AT_ONCE), "COMPLETED")

    async def roll_out(self, model: str, release: int, plan: Mapping[str, object]) -> Rollout:
        """To its end, whichever that is."""
        file = self.fleet.root / f"plan-{release}.toml"
        write_atomic(file, to_toml({"stage_timeout_s": _STAGE_TIMEOUT_S, **plan}).encode())
        started = await self.fleet.coordinator.start_rollout(model, release, file)
        ended = await self.fleet.watching(self._follow_rollout(started))
        words = f" ({ended.reason.partition(';')[0]})" if ended.reason else ""  # each device's own was told before
        self.screen.say(f"rollout of release {release}: {ended.state.lower()}{words}")
        return ended

    def must(self, rollout: Rollout, state: str) -> Rollout:
        """Raises `ChildFailed` unless it ended so."""
        if rollout.state != state:
            reasons = "; ".join(f"{one.name}: {one.reason}" for one in rollout.devices if one.reason)
            said = f"the rollout ended {rollout.state}: {rollout.reason} {reasons}".strip()
            raise ChildFailed(said, detail=f"logs: {self.fleet.processes.logs}")
        return rollout

    async def _follow_rollout(self, rollout: Rollout) -> Rollout:
        known: dict[str, str] = {}

        async def told() -> AsyncIterator[Rollout]:
            async for snapshot in self.fleet.coordinator.watch_rollout(rollout.id):
                self._tell_rollout(snapshot, known)
                yield snapshot

        return await last(told())

    def _tell_rollout(self, rollout: Rollout, known: dict[str, str]) -> None:
        for device in rollout.devices:
            if device.state == known.get(device.name) or device.state not in _SHOWN:
                continue
            known[device.name] = device.state
            self.screen.say(f"{device.name} {device.state.lower()}: {_proof(device)}")

    # ---- jobs

    async def run_job(self, toml: str, seen: Callable[[Event], None]) -> tuple[Job, tuple[Round, ...]]:
        """Submit, and follow to the end, whichever that is. `seen` is called with each event, after it is shown."""
        file = self.fleet.root / "job.toml"
        write_atomic(file, toml.encode())
        submitted = await self.fleet.coordinator.submit(file)
        await self.fleet.watching(self._follow_job(submitted, seen))
        job = await self.fleet.coordinator.job(submitted.id)
        return job, await self.fleet.coordinator.rounds(job.id)

    async def _follow_job(self, job: Job, seen: Callable[[Event], None]) -> None:
        async for event in self.fleet.coordinator.watch_job(job.id):
            self._tell(event)
            seen(event)

    def _tell(self, event: Event) -> None:
        if event.kind == "COMMITTED":
            self.screen.say(f"round {event.round}: {event.detail.get('counted', '?')} counted{_accuracy(event.detail)}")
        elif event.kind in ("ABANDONED", "job.failed"):
            self.screen.say(f"round {event.round}: {event.kind.lower()} {event.detail.get('reason', '')}")

    # ---- live load

    async def start_load(self, model: str, live: Mapping[str, Path], *, rate_hz: float, seed: int) -> Loader:
        """Requests to every device, until the loader is stopped."""
        targets = tuple(Target(name, self.fleet.agents[name].ready, file, rate_hz) for name, file in live.items())
        loader = Loader(self.fleet.processes, LoadPlan(model, self.fleet.root / "answers.safetensors", targets, seed))
        await loader.start()
        self.screen.watch(lambda: load_line(loader.status))
        return loader


def _proof(device: RolloutDevice) -> str:
    """What its receipt says, and why it did not take the release."""
    after, runtime = device.receipt.get("accuracy_after"), device.receipt.get("runtime")
    measured = "" if after is None else f"{percent(float(after))} on held-out examples, "
    by = f"{measured}by {runtime}" if runtime else ""
    return "; ".join(word for word in (by, device.reason) if word)


def _accuracy(detail: Mapping[str, object]) -> str:
    """Of the model that the round made, or else of the one that it began with."""
    for metric, words in (("evaluate_eval_acc", "accuracy"), ("eval_acc_before", "accuracy before it")):
        if metric in detail:
            return f", {words} {percent(float(str(detail[metric])))}"
    return ""
