"""`simulate run`: one scenario from its file to what held. The same programs and steps as the demo, and faults on purpose."""

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import simulations
from shared.clock import Clock, SystemClock
from shared.errors import NotFound
from shared.files import write_atomic
from shared.settings import load_toml
from simulations import models
from simulations.admin import Admin
from simulations.answers import Answers
from simulations.answers import Outcome as Ending
from simulations.commands import Job, Round
from simulations.console import Screen
from simulations.dealing import Shares, deal
from simulations.faults import Came, Faults, device_name, open_links
from simulations.fleet import Fleet
from simulations.link import Link
from simulations.loader import Loader
from simulations.outcome import Check
from simulations.report import without_nan
from simulations.scenario import Scenario, judge

SHIPPED = Path(simulations.__file__).parent / "scenarios"
_HOSTED_METRICS_EVERY_S = 30.0  # each of many agents in a process would look at all its threads


def find(name: str) -> Path:
    """A file, or a scenario that comes with Shoal, by name. Raises `NotFound`, which lists those."""
    for path in (Path(name), SHIPPED / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
    raise NotFound(f"there is no scenario file {name}, and none of that name comes with Shoal: {known}")


def read(path: Path) -> Scenario:
    """Raises `ConfigError`."""
    return load_toml(Scenario, path)


@dataclass(frozen=True)
class Story:
    """What a run came to. Times are seconds since the epoch; `memory`: resident bytes of the processes that agents lived in, when
    the job had ended; `answers` is None without live load.
    """

    scenario: Scenario
    started_at: float
    ended_at: float
    job: Job
    rounds: tuple[Round, ...]
    faults: tuple[Came, ...]
    checks: tuple[Check, ...]
    memory: Mapping[str, int]
    answers: Answers | None = field(repr=False)

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)


class Run:
    """One run of a scenario on a fleet that is not started yet."""

    def __init__(self, scenario: Scenario, screen: Screen, fleet: Fleet, clock: Clock | None = None) -> None:
        self._scenario = scenario
        self._screen = screen
        self._fleet = fleet
        self._clock = clock or SystemClock()
        self._admin = Admin(fleet, screen)
        self._model = scenario.job.name
        self._loader: Loader | None = None
        self._steps = itertools.count(1)

    async def run(self) -> Story:
        """Raises `ConfigError` before anything starts, and what the fleet raises. What did not hold is in the result."""
        scenario, started_at = self._scenario, self._clock.now()
        shares = await asyncio.to_thread(self._deal)
        arrays = models.plain_arrays(scenario.job.client_app, shares)
        toml = self._job(shares, arrays)
        first = None if arrays else asyncio.create_task(models.first_bundle(shares, self._fleet.root), name="first")
        self._step(f"{scenario.devices} devices join")
        await self._fleet.start_coordinator()
        async with open_links(scenario.fault, self._fleet.fleet_port, seed=scenario.seed) as links:
            await self._join(shares, links)
            if first is not None:
                await self._serve(await self._fleet.watching(first), shares)
            faults = Faults(scenario.fault, self._fleet, links, say=self._screen.say, killed=self._note_kill)
            job, rounds = await self._learn(toml, faults)
            back = await faults.all_back()
            memory = await asyncio.to_thread(self._fleet.memory)
        if scenario.hosts:
            self._screen.say(", ".join(f"{name} takes {size / 1e6:.0f} MB" for name, size in memory.items()))
        answers = await self._loader.stop() if self._loader is not None else None
        failed = answers.count(Ending.FAILED) if answers is not None else None
        checks = judge(scenario.expect, state=job.state, rounds=rounds, failed=failed)
        checks += _faults_came(scenario, faults.came, back)
        return Story(scenario, started_at, self._clock.now(), job, rounds, tuple(faults.came), checks, memory, answers)

    # ---- steps

    def _deal(self) -> Shares:
        scenario = self._scenario
        return deal(self._fleet.names, self._fleet.root, scenario.data, seed=scenario.seed, say=self._screen.say)

    def _job(self, shares: Shares, arrays: bytes | None) -> str:
        if arrays is None:
            return self._scenario.job.job_toml(model=self._model, public=shares.public)
        file = self._fleet.root / "start.safetensors"
        write_atomic(file, arrays)
        return self._scenario.job.job_toml(arrays=file)

    async def _join(self, shares: Shares, links: Mapping[int, Link]) -> None:
        await self._fleet.enrol()
        for number, name in enumerate(self._fleet.names, start=1):
            self._configure(name, links.get(number))
        await self._fleet.ingest(shares.own)
        await self._fleet.start_agents()
        sizes = [len(data) for data in shares.own.values()]
        self._screen.say(f"each holds a part of its own, of {min(sizes)} to {max(sizes)} samples")

    def _configure(self, name: str, link: Link | None) -> None:
        settings: dict[str, str | float] = {}
        if link is not None:
            settings["fleet_address"] = link.address
        if self._scenario.hosts:
            settings["metrics_every_s"] = _HOSTED_METRICS_EVERY_S
        if settings:
            self._fleet.configure(name, settings)

    async def _serve(self, made: tuple[Path, object], shares: Shares) -> None:
        self._step("release 1, trained on a small public split, goes out to all")
        await self._admin.first_release(made[0], self._model)
        rate_hz = self._scenario.requests_per_s
        if rate_hz:
            self._screen.say(f"live requests to every device from now on, {rate_hz:g} a second each")
            seed = self._scenario.seed
            self._loader = await self._admin.start_load(self._model, shares.live, rate_hz=rate_hz, seed=seed)

    async def _learn(self, toml: str, faults: Faults) -> tuple[Job, tuple[Round, ...]]:
        job = self._scenario.job
        how = "summed in secret" if job.secure.enabled else "summed in the open"
        self._step(f"{job.rounds} rounds of {job.client_app}, {how}")
        faults.begin()
        try:
            return await self._admin.run_job(toml, faults.seen)
        finally:
            await faults.end()

    def _step(self, text: str) -> None:
        self._screen.step(next(self._steps), text)

    def _note_kill(self, name: str, at: float) -> None:
        if self._loader is not None:
            self._loader.killed(name, at)


def _faults_came(scenario: Scenario, came: list[Came], back: int) -> tuple[Check, ...]:
    """A fault that never came proves nothing about a run that went well."""
    checks = []
    if scenario.fault:
        found = f"{len(came)} of {len(scenario.fault)}"
        checks.append(Check("every fault came about while the job ran", len(came) == len(scenario.fault), found))
    if any(fault.kind == "kill" for fault in scenario.fault):
        checks.append(Check("killed agents came back by themselves", back > 0, str(back)))
    return tuple(checks)


async def run_scenario(scenario: Scenario, screen: Screen, root: Path) -> Story:
    """Leaves nothing running."""
    names = [device_name(number) for number in range(1, scenario.devices + 1)]
    async with Fleet(root, names, hosts=scenario.hosts) as fleet:
        return await Run(scenario, screen, fleet).run()


def write_report(folder: Path, story: Story) -> Path:
    """`report.json`: what was asked, what came, what held. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = story.answers
    content = {
        "scenario": asdict(story.scenario),
        "held": story.held,
        "started_at": story.started_at,
        "ended_at": story.ended_at,
        "checks": [asdict(check) for check in story.checks],
        "faults": [{"at_s": round(came.at, 3), "text": came.text} for came in story.faults],
        "job": asdict(story.job),
        "rounds": [asdict(one) for one in story.rounds],
        "memory_bytes": dict(story.memory),
        "requests": None if answers is None else _requests(answers),
    }
    file = folder / "report.json"
    write_atomic(file, json.dumps(without_nan(content), indent=2).encode() + b"\n")
    return file


def _requests(answers: Answers) -> dict[str, float]:
    latency = answers.latency()
    return {
        "answered": answers.count(Ending.ANSWERED),
        "failed": answers.count(Ending.FAILED),
        "cut": answers.count(Ending.CUT),
        "held_back": answers.held_back,
        "accuracy": answers.accuracy(),
        "p50_ms": latency.p50,
        "p99_ms": latency.p99,
    }
