"""`simulate demo`: the whole loop on real digits, in eight steps, with the programs that run on real machines.

It uses the command lines alone, as an admin would, and counts only what devices prove: signed receipts, answers to live requests.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.rounds.ports import ModelState
from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed
from simulations import models
from simulations.admin import Admin
from simulations.answers import Answers
from simulations.commands import Event, Job, Rollout, Round
from simulations.console import Screen
from simulations.dealing import DataChoice, Shares, deal
from simulations.demo_outcome import Facts, summarise
from simulations.fleet import Fleet
from simulations.jobfile import to_toml
from simulations.loader import Loader
from simulations.outcome import Mark, MarkKind, Outcome
from simulations.report import percent

MODEL = "digits"
_DATA = DataChoice("mnist-5k", alpha=0.5, public_share=0.08, live_share=0.2, minimum=120)
KILL_ROUND = 2
KILL_PHASE = "SELECTED"  # it dealt its shares in round 1, its update is not in: its masks must come out of the sum


@dataclass(frozen=True)
class Options:
    devices: int = 8
    rounds: int = 6
    rate_hz: float = 5.0  # live requests a second, to each device
    seed: int = 1
    prune_ratio: float = 0.3

    @property
    def command(self) -> str:
        """The command that runs it so again."""
        return (
            f"simulate demo --devices {self.devices} --rounds {self.rounds} --rate {self.rate_hz:g} --seed {self.seed}"
        )

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
        self._admin = Admin(self.fleet, self.screen)

    async def run(self) -> tuple[Outcome, Answers]:
        """Raises what the fleet raises; `Outcome.held` says whether everything that must hold did."""
        started_at = self.clock.now()
        shares = await asyncio.to_thread(deal, self.options.names, self._root, _DATA, seed=self.options.seed)
        first = asyncio.create_task(models.first_bundle(shares, self._root), name="first bundle")
        await self._enrol(shares)
        bundle, state = await self.fleet.watching(first)
        before = await self._first_release(bundle)
        loader = await self._load(shares)
        ruined = asyncio.create_task(self._ruin(state, shares), name="ruined bundle")
        job, rounds = await self._learn(loader)
        after = await self._release(job)
        bad = await self._bad_release(await self.fleet.watching(ruined))
        answers = await loader.stop()
        facts = Facts(
            what=f"{self.options.devices} devices, {self.options.rounds} rounds",
            command=self.options.command,
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

    async def _enrol(self, shares: Shares) -> None:
        self.screen.step(1, f"{self.options.devices} devices join: single-use tokens, keys made on the device")
        await self.fleet.start_coordinator()
        await self.fleet.enrol()
        await self.fleet.ingest(shares.own)
        await self.fleet.start_agents()
        parts = ", ".join(str(len(data.y)) for data in shares.own.values())
        self.screen.say(f"each holds its own non-IID digits (Dirichlet 0.5): {parts}")
        self._mark("phase", f"{self.options.devices} devices enrolled")

    async def _first_release(self, bundle: Path) -> Rollout:
        self.screen.step(2, "release 1, trained on a small public split, goes out; every device proves it")
        return await self._admin.first_release(bundle, MODEL)

    async def _load(self, shares: Shares) -> Loader:
        self.screen.step(3, f"live requests to every device from now on, {self.options.rate_hz:g} a second each")
        return await self._admin.start_load(MODEL, shares.live, rate_hz=self.options.rate_hz, seed=self.options.seed)

    async def _learn(self, loader: Loader) -> tuple[Job, tuple[Round, ...]]:
        self.screen.step(4, f"{self.options.rounds} federated rounds, QAT on each device, summed in secret")
        killed = False

        def seen(event: Event) -> None:
            nonlocal killed
            self._note(event)
            if not killed and (event.round, event.kind) == (KILL_ROUND, KILL_PHASE):
                killed = True
                self._kill(loader)

        job, rounds = await self._admin.run_job(to_toml(self._job()), seen)
        if job.state != "completed":
            raise ChildFailed(f"the job ended {job.state}: {job.reason}", detail=f"logs: {self.fleet.processes.logs}")
        return job, rounds

    def _kill(self, loader: Loader) -> None:
        victim = self.options.names[2 % self.options.devices]
        at = self.fleet.kill(victim)
        loader.killed(victim, at)
        self.marks.append(Mark(at, "kill", "its agent is killed with SIGKILL", victim))
        self.screen.say(f"{victim} is killed with SIGKILL: its shares are dealt, its update is not in")

    def _note(self, event: Event) -> None:
        if event.kind != "COMMITTED":
            return
        self.marks.append(Mark(event.at, "round", f"round {event.round} committed"))
        if event.round == self.options.prune_after:
            share = percent(self.options.prune_ratio)
            self.screen.step(5, f"{share} of the channels go, everywhere; training goes on")
            self.marks.append(Mark(event.at, "prune", "channels pruned across the fleet"))

    async def _ruin(self, state: ModelState, shares: Shares) -> Path:
        return await models.ruined_bundle(state, shares, self._root, seed=self.options.seed)

    async def _release(self, job: Job) -> Rollout:
        self.screen.step(
            6, f"release {job.release}: one canary, a quarter, all; each requantizes, measures, swaps, proves"
        )
        rollout = await self._admin.roll_out(MODEL, job.release, {"gate": {"accuracy_budget": 0.02}})
        self._admin.must(rollout, "COMPLETED")
        for device in rollout.devices:
            self.marks.append(Mark(float(device.receipt["at"]), "swap", f"serves release {job.release}", device.name))
        return rollout

    async def _bad_release(self, bundle: Path) -> Rollout:
        self.screen.step(7, "a release with ruined weights, signed like any other, must stop at the canary")
        release = await self.fleet.coordinator.publish(bundle, MODEL)
        rollout = await self._admin.roll_out(MODEL, release.release, {})
        self._admin.must(rollout, "REFUSED")
        refusing = next((device.name for device in rollout.devices if device.state == "REFUSED"), "")
        self._mark("refused", f"release {release.release} refused by the canary's gate", refusing)
        return rollout

    # ---- helpers

    def _job(self) -> dict[str, object]:
        devices = self.options.devices
        return {
            "name": MODEL,
            "model": MODEL,
            "client_app": "image-classifier",
            "rounds": self.options.rounds,
            "selection": {"min_devices": devices, "quorum": 0.75, "round_timeout_s": 180.0, "wait_for_devices_s": 60.0},
            "secure": {"enabled": True, "delta_broadcast": True},
            "evaluate": {"every": 1, "metrics": {"eval_acc": 1.0, "eval_loss": 100.0}},
            "train": {"epochs": 2, "lr": 0.02, "qat": True, "seed": self.options.seed},
            "prune": [{"after_round": self.options.prune_after, "ratio": self.options.prune_ratio}],
            "public": {"data": str(self._root / "public.safetensors")},
            "publish": {"enabled": True},
        }

    def _mark(self, kind: MarkKind, text: str, device: str = "") -> None:
        self.marks.append(Mark(self.clock.now(), kind, text, device))


async def run_demo(options: Options, screen: Screen, fleet: Fleet) -> tuple[Outcome, Answers]:
    """The demo on a fleet that is not started yet; leaves nothing running."""
    async with fleet:
        return await Demo(options, screen, fleet).run()
