"""Fifty real agents in two processes, beside a real coordinator."""

from collections.abc import Callable

import pytest

from simulations.fleet import Fleet, workplace
from tests.e2e.kit import outcomes, prototypes, run_job, softmax_job

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
MIB = 1 << 20
METRICS = {"eval_acc_before": 1.0, "eval_loss_before": 100.0}


async def _ready(fleet: Fleet) -> None:
    await fleet.start_coordinator()
    await fleet.enrol()
    for name in fleet.names:
        fleet.configure(name, {"metrics_every_s": 30.0, "reconnect_max_s": 2.0})
    await fleet.ingest({name: prototypes(60, seed=place) for place, name in enumerate(fleet.names)})
    await fleet.start_agents()


async def test_fifty_agents_in_two_processes_are_all_counted_in_the_open_and_in_secret(
    record_property: Callable[[str, object], None],
) -> None:
    names = [f"device-{number}" for number in range(1, 51)]
    everybody = dict.fromkeys(names, "counted")
    with workplace() as root:
        async with Fleet(root, names, hosts=2) as fleet:
            await _ready(fleet)
            assert len({fleet.pid(name) for name in names}) == 2
            selection = {"min_devices": 50, "quorum": 1.0, "wait_for_devices_s": 60.0}
            weights, losses = {}, {}
            for name, secure in (("open", {"enabled": False}), ("secret", {"enabled": True, "metrics": METRICS})):
                tables = {"rounds": 3, "selection": selection, "secure": secure, "train": {"lr": 0.05}}
                job, rounds = await run_job(fleet, softmax_job(root, name, (10, 784), **tables))
                assert (job.state, [(one.round, one.attempt) for one in rounds]) == (
                    "completed",
                    [(1, 1), (2, 1), (3, 1)],
                )
                assert [outcomes(one) for one in rounds] == [everybody] * 3
                weights[name] = [one.total_weight for one in rounds]
                losses[name] = [one.metrics["eval_loss_before"] for one in rounds]
            memory = fleet.memory()
    assert weights["secret"] == weights["open"]
    assert losses["secret"] == pytest.approx(losses["open"], abs=1e-3)
    assert losses["open"][0] > losses["open"][1] > losses["open"][2]
    record_property("rss_mib", {name: size // MIB for name, size in memory.items()})
    assert max(memory.values()) < 400 * MIB


async def test_a_host_that_is_killed_comes_back_with_all_of_its_agents() -> None:
    names = [f"device-{number}" for number in range(1, 9)]
    with workplace() as root:
        async with Fleet(root, names, hosts=2) as fleet:
            await _ready(fleet)
            fleet.kill("device-1")
            await fleet.back("device-1")
            assert fleet.restarts == {"host-1": 1, "host-2": 0}
            selection = {"min_devices": 8, "quorum": 1.0, "wait_for_devices_s": 60.0}
            job, rounds = await run_job(fleet, softmax_job(root, "after", (10, 784), rounds=1, selection=selection))
            assert job.state == "completed"
            assert outcomes(rounds[-1]) == dict.fromkeys(names, "counted")
