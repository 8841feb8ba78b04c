"""Faults on a fleet that only notes what is done to it, and on real links that nobody has dialled."""

import asyncio

import numpy as np
import pytest

from simulations.commands import Event
from simulations.faults import Came, Faults
from simulations.link import CALM, Link, Weather
from simulations.scenario import Fault


class Noted:
    """A fleet whose agents die at once and come back when they are waited for."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.back_again: list[str] = []

    def kill(self, name: str) -> float:
        self.killed.append(name)
        return 12.0

    async def back(self, name: str) -> None:
        self.back_again.append(name)


class Scene:
    """`Faults` with everything that they touch."""

    def __init__(self, *faults: Fault) -> None:
        self.fleet = Noted()
        self.links = {number: Link(("127.0.0.1", 1), np.random.default_rng(0)) for number in (1, 2, 3)}
        self.said: list[str] = []
        self.outages: list[tuple[str, float]] = []
        self.faults = Faults(
            faults, self.fleet, self.links, say=self.said.append, killed=lambda *outage: self.outages.append(outage)
        )


def at(round_: int, kind: str) -> Event:
    return Event(0.0, round_, kind, {})


async def test_a_kill_strikes_before_its_event_has_been_told_to_anyone_else_and_once() -> None:
    scene = Scene(Fault("kill", 2, round=2, phase="SHARES"))
    scene.faults.begin()
    scene.faults.seen(at(1, "SHARES"))
    assert scene.fleet.killed == []
    scene.faults.seen(at(2, "SHARES"))
    scene.faults.seen(at(2, "SHARES"))  # another attempt at the round
    assert scene.fleet.killed == ["device-2"]
    assert scene.outages == [("device-2", 12.0)]
    assert await scene.faults.all_back() == 1
    assert scene.fleet.back_again == ["device-2"]


async def test_a_lasting_fault_is_over_when_its_time_is() -> None:
    scene = Scene(Fault("delay", 1, delay_s=0.3, for_s=0.01))
    scene.faults.begin()
    assert scene.links[1].weather == Weather(delay_s=0.3)
    assert scene.links[2].weather == CALM
    async with asyncio.timeout(5):
        while len(scene.said) < 2:  # noqa: ASYNC110  # told by a task of its own
            await asyncio.sleep(0.005)
    assert scene.links[1].weather == CALM
    assert scene.said == ["what device-1 sends and gets is 0.3 to 0.3 s late for 0.01 s", "device-1's delay is over"]
    await scene.faults.end()


async def test_of_two_faults_that_last_the_newer_counts_and_then_the_older_again() -> None:
    scene = Scene(Fault("delay", 1, for_s=60), Fault("partition", 1, round=1, phase="KEYS", for_s=0.01))
    scene.faults.begin()
    scene.faults.seen(at(1, "KEYS"))
    weathers = [scene.links[1].weather]
    async with asyncio.timeout(5):
        while scene.links[1].weather == weathers[0]:  # noqa: ASYNC110  # changed by a task of its own
            await asyncio.sleep(0.005)
    weathers.append(scene.links[1].weather)
    assert [(weather.partitioned, weather.delay_s) for weather in weathers] == [(True, 0.0), (False, 0.2)]
    await scene.faults.end()
    assert scene.links[1].weather == CALM


async def test_what_had_not_come_when_the_job_ended_does_not_come_any_more() -> None:
    scene = Scene(Fault("kill", 1, after_s=60.0), Fault("cut", 2, round=9, phase="KEYS"), Fault("cut", 3))
    scene.faults.begin()
    await scene.faults.end()
    assert [came.fault.device for came in scene.faults.came] == [3]
    assert scene.fleet.killed == []


@pytest.mark.parametrize("kind", ["kill", "cut", "delay", "throttle", "partition"])
def test_every_kind_is_told_in_words_that_name_the_device(kind: str) -> None:
    assert "device-2" in Came(Fault(kind, 2), 1.0).text  # type: ignore[arg-type]
