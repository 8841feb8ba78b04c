import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load

from coordinator.rounds.plan import JobSpec
from shared.errors import ChildFailed, ConfigError, NotFound
from shared.settings import from_mapping
from simulations import models, run
from simulations.cli import cli
from simulations.commands import Job
from simulations.crews import Alone, Hosted, crews_of
from simulations.dealing import Shares
from simulations.fleet import Fleet, workplace
from simulations.hosts import HostPlan
from simulations.outcome import Check
from simulations.processes import Processes
from simulations.scenario import Scenario, ScenarioJob


def test_a_scenario_is_found_by_its_file_or_by_its_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("")
    assert run.find(str(mine)) == mine
    assert run.find("bad-network") == run.SHIPPED / "bad-network.toml"
    with pytest.raises(NotFound, match="bad-network, fifty-devices, kill-while-masks-are-out, people-not-labels"):
        run.find("good-network")


def test_the_help_names_every_scenario_that_is_shipped() -> None:
    text = CliRunner().invoke(cli, ["run", "--help"], terminal_width=200, max_content_width=200).output
    assert [path.stem for path in run.SHIPPED.glob("*.toml") if path.stem not in text] == []


def test_a_scenario_that_cannot_be_starts_nothing(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('name = "x"\ndevices = 3\n[job]\nname = "x"\nclient_app = "echo"\nrounds = 0\nhaste = 1\n')
    with pytest.raises(ConfigError, match="haste"):
        run.read(wrong)


def test_apps_without_a_network_start_from_arrays_of_the_samples_shape() -> None:
    shares = Shares(Path("p"), {}, {}, (1, 4, 4), ("a", "b"))
    softmax, echo = models.plain_arrays("softmax", shares), models.plain_arrays("echo", shares)
    assert softmax is not None
    assert echo is not None
    assert {name: array.shape for name, array in load(softmax).items()} == {"weight": (2, 16), "bias": (2,)}
    assert list(load(echo)) == ["values"]
    assert models.plain_arrays("image-classifier", shares) is None


def test_agents_are_dealt_to_hosts_as_evenly_as_can_be() -> None:
    fleet = Fleet(Path("nowhere"), [f"device-{number}" for number in range(1, 6)])
    agents, processes = tuple(fleet.agents.values()), Processes(Path("nowhere"))
    alone = crews_of(processes, agents, 0, fleet.root)
    hosted = crews_of(processes, agents, 2, fleet.root)
    assert [(type(crew), crew.name) for crew in alone] == [(Alone, name) for name in fleet.names]
    assert [(type(crew), crew.name, len(crew.agents)) for crew in hosted] == [
        (Hosted, "host-1", 3),
        (Hosted, "host-2", 2),
    ]
    assert [crew.name for crew in crews_of(processes, agents, 9, fleet.root)] == [f"host-{n}" for n in range(1, 6)]


def test_the_workplace_of_a_simulation_that_failed_is_left_for_its_logs() -> None:
    with workplace() as gone:
        assert gone.is_dir()
    assert not gone.exists()
    with pytest.raises(ChildFailed), workplace() as left:
        raise ChildFailed("device-1 ended")
    assert left.is_dir()
    left.rmdir()


@pytest.mark.parametrize(
    ("mistake", "agents"),
    [("nobody", []), ("two in one home", [{"name": "a", "home": "h"}, {"name": "b", "home": "h"}])],
)
def test_a_host_refuses_a_plan_with(mistake: str, agents: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigError):
        from_mapping(HostPlan, {"agents": agents})


def test_a_token_in_a_plan_is_not_shown() -> None:
    plan = from_mapping(HostPlan, {"agents": [{"name": "a", "home": "h", "token": "very-secret"}]})
    assert "very-secret" not in repr(plan)


def test_the_report_says_what_was_asked_and_what_held(tmp_path: Path) -> None:
    scenario = Scenario("x", 3, ScenarioJob("x", "echo", 1))
    checks = (Check("a", True, "1"), Check("b", False, "0"))
    story = run.Story(scenario, 1.0, 2.0, Job("j", "completed", 1, 1, "", 0, ""), (), (), checks, {"host-1": 5}, None)
    assert not story.held
    content = json.loads(run.write_report(tmp_path / "out", story).read_text())
    assert (content["held"], content["requests"], content["memory_bytes"]) == (False, None, {"host-1": 5})
    assert content["checks"][1] == {"text": "b", "held": False, "found": "0"}
    assert content["scenario"]["job"]["client_app"] == "echo"


def test_faults_that_never_came_do_not_let_a_run_hold() -> None:
    scenario = run.read(run.find("kill-while-masks-are-out"))
    checks = run._faults_came(scenario, [], 0)
    assert [check.held for check in checks] == [False, False]
    assert run._faults_came(Scenario("x", 3, ScenarioJob("x", "echo", 1)), [], 0) == ()


def test_the_job_of_a_shipped_scenario_without_a_network_is_one_that_the_coordinator_takes(tmp_path: Path) -> None:
    for path in run.SHIPPED.glob("*.toml"):
        scenario = run.read(path)
        shares = Shares(tmp_path / "public", {}, {}, (1, 28, 28), ("a", "b"))
        if models.plain_arrays(scenario.job.client_app, shares) is not None:
            assert JobSpec.parse(scenario.job.job_toml(arrays=tmp_path / "start")).model == ""
