"""The loop under fire: real processes, killed for real, while live requests are answered.

Four agents serve a release and train in secret. One agent is killed while its masks are out; then the coordinator in the middle of
a round; then, with nobody to talk to, another agent. Nothing that was committed is lost or counted twice, and no request fails.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from rich.console import Console

from edge_agent.inference.probe import Probe
from shared.bundle import write_bundle
from shared.errors import ChildFailed
from simulations.admin import Admin
from simulations.answers import Outcome
from simulations.commands import Event, Round
from simulations.console import PlainScreen
from simulations.data import Dataset
from simulations.fleet import Fleet, workplace
from simulations.loader import Loader
from simulations.processes import read_ready
from simulations.shards import write_shard
from tests.e2e.kit import outcomes, softmax_job
from tests.integration.agent_kit import MODEL, SCHEMA, bundle, examples

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
NAMES = tuple(f"device-{number}" for number in range(1, 5))
ROUNDS = 3
SLOW = {"epochs": 500, "batch_size": 1, "lr": 0.001}  # a second or two, so that there is time to kill somebody
SELECTION = {"min_devices": 4, "quorum": 0.5, "wait_for_devices_s": 60.0, "round_timeout_s": 60.0}
Moment = tuple[int, str]  # a round, and the phase that it comes to
INTERRUPTED = "the coordinator stopped before the round was committed"


@pytest.fixture
def screen() -> PlainScreen:
    """Progress lines, for whoever reads the output of a failed test."""
    return PlainScreen(Console())


def own(place: int) -> Dataset:
    """A part of the examples for each device."""
    x, y = examples(400)
    rows = slice(100 * place, 100 * (place + 1))
    return Dataset(x[rows], y[rows], SCHEMA.classes)


@dataclass(frozen=True)
class Loop:
    """A fleet that serves release 1 under live requests."""

    fleet: Fleet
    loader: Loader

    async def follow(self, job: str, deeds: Mapping[Moment, Callable[[], object]], until: Moment | None) -> list[Event]:
        """A job's events from the first on, to its end or to the moment `until`; `deeds` are done at theirs."""
        seen: list[Event] = []
        async with contextlib.aclosing(self.fleet.coordinator.watch_job(job)) as events:
            async for event in events:
                seen.append(event)
                moment = (event.round, event.kind)
                if moment in deeds:
                    deeds[moment]()
                if moment == until:
                    break
        return seen

    def kill(self, name: str) -> None:
        self.loader.killed(name, self.fleet.kill(name))

    async def version_served(self, name: str) -> int:
        probe = Probe(str(read_ready(self.fleet.agents[name].ready)["inference"]))
        answer = await probe.infer(MODEL, examples(1)[0])
        await probe.close()
        return answer.version


async def begin(fleet: Fleet, screen: PlainScreen) -> Loop:
    await fleet.start_coordinator()
    await fleet.enrol()
    for name in NAMES:
        fleet.configure(name, {"reconnect_max_s": 1.0})
    await fleet.ingest({name: own(place) for place, name in enumerate(NAMES)})
    await fleet.start_agents()
    folder = fleet.root / "bundle"
    write_bundle(folder, bundle())
    admin = Admin(fleet, screen)
    await admin.first_release(folder, MODEL)
    live = {name: fleet.root / f"{name}.live" for name in NAMES}
    for place, file in enumerate(live.values()):
        write_shard(file, own(place))
    return Loop(fleet, await admin.start_load(MODEL, live, rate_hz=5.0, seed=1))


async def test_what_was_committed_survives_the_death_of_agents_and_of_the_coordinator(screen: PlainScreen) -> None:
    with workplace() as root:
        async with Fleet(root, NAMES) as fleet:
            loop = await begin(fleet, screen)
            tables = {"rounds": ROUNDS, "selection": SELECTION, "train": SLOW}
            file = softmax_job(root, "lines", (3, SCHEMA.shape[1] * SCHEMA.shape[2]), **tables)
            job = await fleet.coordinator.submit(file)

            at = {(1, "SHARES"): lambda: loop.kill("device-2")}
            await fleet.watching(loop.follow(job.id, at, until=(2, "SHARES")))
            await fleet.kill_coordinator()
            with pytest.raises(ChildFailed):
                await fleet.coordinator.job(job.id)
            loop.kill("device-3")
            await fleet.back("device-3")
            assert await loop.version_served("device-3") == 1
            status = await fleet.agents["device-3"].status()
            assert status["session"] != "attached"
            assert [(one["release"], one["proven"]) for one in status["models"]] == [(1, True)]

            await fleet.start_coordinator()
            events = await fleet.watching(loop.follow(job.id, {}, until=None))
            ended = await fleet.coordinator.job(job.id)
            rounds = await fleet.coordinator.rounds(job.id)
            answers = await loop.loader.stop()
            devices = await fleet.coordinator.devices()
    assert (ended.state, ended.rounds_committed) == ("completed", ROUNDS)
    check_rounds(rounds)
    assert [event.round for event in events if event.kind == "COMMITTED"] == [1, 2, 3]
    assert fleet.restarts == {"device-1": 0, "device-2": 1, "device-3": 1, "device-4": 0}
    assert [one.serves(MODEL) is not None and one.connected for one in devices] == [True] * 4
    assert answers.reasons() == {}
    assert answers.count(Outcome.ANSWERED) > 100


def check_rounds(rounds: tuple[Round, ...]) -> None:
    """Round 1 without the killed device, round 2 begun again with fresh keys, round 3 whole; the weights add up."""
    assert [(one.round, one.attempt, one.state) for one in rounds] == [
        (1, 1, "COMMITTED"),
        (2, 1, "ABANDONED"),
        (2, 2, "COMMITTED"),
        (3, 1, "COMMITTED"),
    ]
    assert rounds[1].reason == INTERRUPTED
    everybody = dict.fromkeys(NAMES, "counted")
    assert outcomes(rounds[0]) == {**everybody, "device-2": "recovered"}
    assert outcomes(rounds[2]) == outcomes(rounds[3]) == everybody
    assert rounds[2].total_weight == rounds[3].total_weight > rounds[0].total_weight > rounds[1].total_weight == 0
