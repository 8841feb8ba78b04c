"""`simulate demo`: the whole loop on real digits, in eight steps, with the programs that run on real machines.

It uses the command lines alone, as an admin would, and counts only what devices prove: signed receipts, answers to live requests.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from coordinator.rounds.ports import ModelState
from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed
from shared.files import write_atomic
from simulations import story
from simulations.answers import Answers
from simulations.commands import Event, Job, Rollout, Round, last
from simulations.console import Screen
from simulations.demo_outcome import Facts, summarise
from simulations.fleet import Fleet
from simulations.jobfile import to_toml
from simulations.loader import Loader
from simulations.loadgen import LoadPlan, Target
from simulations.outcome import Mark, Outcome
from simulations.report import percent

MODEL = "digits"
KILL_ROUND = 2
KILL_PHASE = "SHARES"  # its shares are dealt, its update is not in: the sum needs its masks recovered
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    devices: int = 8
    rounds: int = 6
    rate_hz: float = 5.0  # live requests a second, to each device
    seed: int = 1
    samples: int = 0  # of the set; 0: all
    prune_ratio: float = 0.3

    @property
    def prune_after(self) -> int:
        return self.rounds // 2

    @property
    def names(self) -> list[str]:
        return [f"device-{number}" for number in range(1, self.devices + 1)]


@dataclass
class Demo:
    """One run. `marks` grows as things happen."""

    options: Options
    screen: Screen
    fleet: Fleet
    clock: Clock = field(default_factory=SystemClock)
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._root = self.fleet.root
        self._tasks: set[asyncio.Task[ModelState | Path]] = set()

    async def run(self) -> tuple[Outcome, Answers]:
        """Raises what the fleet raises; `Outcome.held` says whether everything that must hold did."""
        started_at = self.clock.now()
        shares = await asyncio.to_thread(story.deal, self.options.names, self._root, seed=self.options.seed)
        first = asyncio.create_task(story.first_bundle(shares.public, self._root))
        await self._enrol(shares)
        bundle, state = await self.fleet.watching(first)
        before = await self._first_release(bundle)
        loader = await self._load(shares)
        ruined = asyncio.create_task(
            story.ruined_bundle(state, shares.public, self._root, seed=self.options.seed), name="ruined bundle"
        )
        job, rounds = await self._learn(loader)
        after = await self._release(job)
        bad = await self._bad_release(await self.fleet.watching(ruined))
        answers = await loader.stop()
        facts = Facts(
            options_text=f"{self.options.devices} devices, {self.options.rounds} rounds",
            prune_after=self.options.prune_after,
            started_at=started_at,
            ended_at=self.clock.now(),
            examples={name: len(data.y) for name, data in shares.own.items()},
            job=job,
            rounds=rounds,
            before=before,
            after=after,
            bad=bad,
            releases={number: await self.fleet.coordinator.release(MODEL, number) for number in (1, job.release)},
            devices=await self.fleet.coordinator.devices(),
            restarts=dict(self.fleet.restarts),
        )
        return summarise(facts, answers, self.marks), answers

    # ---- the steps

    async def _enrol(self, shares: story.Shares) -> None:
        self.screen.step(1, f"{self.options.devices} devices join: single-use tokens, keys made on the device")
        await self.fleet.start_coordinator()
        await self.fleet.enrol()
        await self.fleet.ingest(shares.own)
        await self.fleet.start_agents()
        parts = ", ".join(str(len(data.y)) for data in shares.own.values())
        self.screen.say(f"each holds its own non-IID digits (Dirichlet 0.5): {parts}")
        self._mark("phase", f"{self.options.devices} devices enrolled")

    async def _first_release(self, bundle: Path) -> Rollout:
        self.screen.step(
            2, "release 1, trained on a small public split, goes out; every device proves that it serves it"
        )
        release = await self.fleet.coordinator.publish(bundle, MODEL)
        plan = self._plan("first", {"stages": [1.0], "gate": {"requantize": False}})
        rollout = await self._roll_out(release.release, plan)
        self._must(rollout, "COMPLETED")
        return rollout

    async def _load(self, shares: story.Shares) -> Loader:
        self.screen.step(3, f"live requests to every device from now on, {self.options.rate_hz:g} a second each")
        targets = tuple(
            Target(name, self.fleet.agents[name].ready, shares.live[name], self.options.rate_hz)
            for name in self.options.names
        )
        plan = LoadPlan(MODEL, self._root / "answers.safetensors", targets, self.options.seed)
        loader = Loader(self.fleet.processes, plan)
        await loader.start()
        return loader

    async def _learn(self, loader: Loader) -> tuple[Job, tuple[Round, ...]]:
        self.screen.step(4, f"{self.options.rounds} federated rounds, QAT on each device, summed in secret")
        file = self._root / "job.toml"
        write_atomic(file, to_toml(self._job()).encode())
        submitted = await self.fleet.coordinator.submit(file)
        await self.fleet.watching(self._follow(submitted, loader))
        job = await self.fleet.coordinator.job(submitted.id)
        if job.state != "completed":
            raise ChildFailed(f"the job ended {job.state}: {job.reason}", detail=f"logs: {self.fleet.processes.logs}")
        return job, await self.fleet.coordinator.rounds(job.id)

    async def _follow(self, job: Job, loader: Loader) -> None:
        victim = self.options.names[2 % self.options.devices]
        killed = False
        async for event in self.fleet.coordinator.watch_job(job.id):
            self._tell(event)
            if not killed and (event.round, event.kind) == (KILL_ROUND, KILL_PHASE):
                killed = True
                at = self.fleet.kill(victim)
                loader.killed(victim, at)
                self.marks.append(Mark(at, "kill", "its agent is killed with SIGKILL", victim))
                self.screen.say(f"{victim} is killed with SIGKILL: its shares are dealt, its update is not in")

    def _tell(self, event: Event) -> None:
        detail = event.detail
        if event.kind == "COMMITTED":
            accuracy = detail.get("evaluate_eval_acc")
            shown = f", accuracy {percent(float(accuracy))}" if accuracy is not None else ""
            self.screen.say(f"round {event.round}: {detail.get('counted', '?')} counted{shown}")
            self.marks.append(Mark(event.at, "round", f"round {event.round} committed"))
            if event.round == self.options.prune_after:
                self.screen.step(
                    5, f"{percent(self.options.prune_ratio)} of the channels go, everywhere; training goes on"
                )
                self.marks.append(Mark(event.at, "prune", "channels pruned across the fleet"))
        elif event.kind in ("ABANDONED", "job.failed"):
            self.screen.say(f"round {event.round}: {event.kind.lower()} {detail.get('reason', '')}")

    async def _release(self, job: Job) -> Rollout:
        self.screen.step(
            6, f"release {job.release}: one canary, a quarter, all; each requantizes, measures, swaps, proves"
        )
        rollout = await self._roll_out(job.release, self._plan("main", {"gate": {"accuracy_budget": 0.02}}))
        self._must(rollout, "COMPLETED")
        for device in rollout.devices:
            self.marks.append(Mark(float(device.receipt["at"]), "swap", f"serves release {job.release}", device.name))
        return rollout

    async def _bad_release(self, bundle: Path) -> Rollout:
        self.screen.step(7, "a release with ruined weights, signed like any other, must stop at the canary")
        release = await self.fleet.coordinator.publish(bundle, MODEL)
        rollout = await self._roll_out(release.release, self._plan("bad", {}))
        self._must(rollout, "REFUSED")
        refusing = next((device.name for device in rollout.devices if device.state == "REFUSED"), "")
        self._mark("refused", f"release {release.release} refused by the canary's gate", refusing)
        return rollout

    # ---- helpers

    async def _roll_out(self, release: int, plan: Path) -> Rollout:
        started = await self.fleet.coordinator.start_rollout(MODEL, release, plan)
        ended = await self.fleet.watching(self._follow_rollout(started))
        words = f" ({ended.reason})" if ended.reason else ""
        self.screen.say(f"rollout of release {release}: {ended.state.lower()}{words}")
        return ended

    async def _follow_rollout(self, rollout: Rollout) -> Rollout:
        known: dict[str, str] = {}

        async def told() -> AsyncIterator[Rollout]:
            async for snapshot in self.fleet.coordinator.watch_rollout(rollout.id):
                self._tell_rollout(snapshot, known)
                yield snapshot

        return await last(told())

    def _tell_rollout(self, rollout: Rollout, known: dict[str, str]) -> None:
        for device in rollout.devices:
            if device.state == known.get(device.name) or device.state not in ("PROVEN", "REFUSED", "FAILED"):
                continue
            known[device.name] = device.state
            after = device.receipt.get("accuracy_after")
            shown = f" {percent(float(after))} on held-out digits," if after is not None else ""
            runtime = device.receipt.get("runtime") or "no runtime"
            self.screen.say(f"{device.name} {device.state.lower()}:{shown} {runtime} {device.reason}".rstrip())

    def _must(self, rollout: Rollout, state: str) -> None:
        if rollout.state != state:
            reasons = "; ".join(f"{one.name}: {one.reason}" for one in rollout.devices if one.reason)
            logs = f"logs: {self.fleet.processes.logs}"
            raise ChildFailed(f"the rollout ended {rollout.state}: {rollout.reason} {reasons}".strip(), detail=logs)

    def _plan(self, name: str, values: dict[str, object]) -> Path:
        path = self._root / f"plan-{name}.toml"
        write_atomic(path, to_toml({"stage_timeout_s": 120.0, **values}).encode())
        return path

    def _job(self) -> dict[str, object]:
        devices = self.options.devices
        return {
            "name": MODEL,
            "model": MODEL,
            "client_app": "image-classifier",
            "rounds": self.options.rounds,
            "selection": {"min_devices": devices, "quorum": 0.75, "round_timeout_s": 90.0, "wait_for_devices_s": 60.0},
            "secure": {"enabled": True},
            "evaluate": {"every": 1, "metrics": {"eval_acc": 1.0, "eval_loss": 100.0}},
            "train": {"epochs": 2, "lr": 0.02, "qat": True, "seed": self.options.seed},
            "prune": [{"after_round": self.options.prune_after, "ratio": self.options.prune_ratio}],
            "public": {"data": str(self._root / "public.safetensors")},
            "publish": {"enabled": True},
        }

    def _mark(self, kind: str, text: str, device: str = "") -> None:
        self.marks.append(Mark(self.clock.now(), kind, text, device))


async def run_demo(options: Options, screen: Screen, fleet: Fleet) -> tuple[Outcome, Answers]:
    """The demo on a fleet that is not started yet; leaves nothing running."""
    async with fleet:
        return await Demo(options, screen, fleet).run()


def settle(work: Awaitable[T]) -> T:
    """Run to the end; Ctrl-C cancels, and the fleet's own clean-up runs before it is raised again."""
    return asyncio.run(_as_coroutine(work))


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work
