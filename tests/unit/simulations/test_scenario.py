from dataclasses import replace
from pathlib import Path

import pytest

import simulations
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.secrecy import Secure
from shared.errors import ConfigError
from shared.settings import load_toml, parse_toml
from simulations.commands import Event, Round, RoundDevice
from simulations.scenario import Expect, Fault, Scenario, judge

SHIPPED = sorted((Path(simulations.__file__).parent / "scenarios").glob("*.toml"))
SMALL = 'name = "x"\ndevices = 3\n[job]\nname = "x"\nclient_app = "image-classifier"\nrounds = 2\n'
_KILL = '[[fault]]\nkind = "kill"\ndevice = 1\nround = 1\nphase = "KEYS"\n'


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_valid_and_gives_a_job_that_the_coordinator_takes(path: Path) -> None:
    scenario = load_toml(Scenario, path)
    assert scenario.name == path.stem
    job = JobSpec.parse(scenario.job.job_toml(model="digits", public=Path("/somewhere/public")))
    assert (job.model, job.public.data, job.rounds) == ("digits", "/somewhere/public", scenario.job.rounds)
    assert job.selection == scenario.job.selection


@pytest.mark.parametrize(
    ("mistake", "text", "where"),
    [
        ("an unknown key", SMALL.replace("[job]", "speed = 1\n[job]"), "speed"),
        ("an unknown key in the job", SMALL + "epochs = 3\n", "epochs"),
        ("a fault at no time and no phase", SMALL + '[[fault]]\nkind = "kill"\ndevice = 1\nround = 2\n', "fault"),
        ("an unknown fault", SMALL + '[[fault]]\nkind = "flood"\ndevice = 1\n', "kind"),
        ("a fault at a phase that no round has", SMALL + _KILL.replace("KEYS", "KEY"), "no phase KEY"),
        ("a fault in a round that never comes", SMALL + _KILL.replace("round = 1", "round = 3"), "beyond the 2"),
        ("a job state there is not", SMALL + '[expect]\njob_state = "done"\n', "job_state"),
        ("a fault on a device there is not", SMALL + '[[fault]]\nkind = "kill"\ndevice = 4\n', "the 3 there are"),
        ("no devices", SMALL.replace("devices = 3", "devices = 0"), "devices"),
        ("an impossible split", SMALL + "[data]\nalpha = 0.0\n", "alpha"),
        (
            "a kill of one of many in a process",
            f'hosts = 1\n{SMALL}[[fault]]\nkind = "kill"\ndevice = 1\n',
            "hosts = 0",
        ),
        ("more hosts than devices", f"hosts = 4\n{SMALL}", "hosts"),
        ("no name", SMALL.replace('name = "x"\ndevices', "devices"), "name"),
    ],
)
def test_a_scenario_is_refused_for(mistake: str, text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        parse_toml(Scenario, text, where="scenario.toml")


def test_a_job_that_the_coordinator_would_refuse_is_refused_before_anything_starts() -> None:
    text = SMALL + "[[job.prune]]\nafter_round = 2\nratio = 0.3\n"
    scenario = parse_toml(Scenario, text)
    with pytest.raises(ConfigError, match="later round"):
        scenario.job.job_toml(model="digits", public=Path("p"))


def test_an_app_without_a_network_starts_from_arrays_and_names_no_model() -> None:
    scenario = parse_toml(Scenario, SMALL.replace("image-classifier", "softmax"))
    job = JobSpec.parse(replace(scenario.job, secure=Secure(enabled=False)).job_toml(arrays=Path("/somewhere/start")))
    assert (job.model, job.public.data, job.start.arrays_file) == ("", "", "/somewhere/start")


def test_a_round_of_a_job_that_does_not_say_needs_as_few_devices_as_a_secret_sum_does() -> None:
    scenario = parse_toml(Scenario, SMALL)
    job = JobSpec.parse(scenario.job.job_toml(model="digits", public=Path("p")))
    assert (job.secure.enabled, job.selection.min_devices) == (True, 3)


def test_a_fault_comes_at_its_phase_of_its_round_only() -> None:
    fault = Fault("kill", 1, round=2, phase="SHARES")
    events = [Event(0, 1, "SHARES", {}), Event(1, 2, "KEYS", {}), Event(2, 2, "SHARES", {})]
    assert [fault.due(event) for event in events] == [False, False, True]
    assert not Fault("kill", 1, after_s=3).due(events[2])


def test_each_lasting_fault_makes_its_own_weather() -> None:
    assert Fault("delay", 1, delay_s=0.3).weather().delay_s == 0.3
    assert Fault("throttle", 1, bytes_per_s=10).weather().bytes_per_s == 10
    assert Fault("partition", 1).weather().partitioned
    assert not Fault("kill", 1).lasts


def _round(number: int, *outcomes: str, state: str = "COMMITTED") -> Round:
    devices = tuple(RoundDevice(f"d{place}", one, "", 0, 0, 0, 0) for place, one in enumerate(outcomes))
    return Round(number, 1, state, 0, 1, 0, {"eval_acc_before": number / 10}, devices, 0, 0, "")


def test_only_what_was_asked_is_judged() -> None:
    checks = judge(Expect(failed_requests_at_most=-1), state="completed", rounds=[], failed=9)
    assert [(check.text, check.held) for check in checks] == [("the job ends completed", True)]


def test_where_nothing_was_asked_no_request_can_have_failed() -> None:
    texts = [check.text for check in judge(Expect(), state="completed", rounds=[], failed=None)]
    assert texts == ["the job ends completed"]


def test_the_accuracy_is_the_last_that_a_round_measured_of_its_own_model_first() -> None:
    rounds = [
        _round(1, "counted"),
        replace(_round(2, "counted"), metrics={"evaluate_eval_acc": 0.9, "eval_acc_before": 0.1}),
    ]
    (_, found) = judge(
        Expect(failed_requests_at_most=-1, accuracy_at_least=0.9), state="completed", rounds=rounds, failed=None
    )
    assert found.held
    assert found.found == "0.9"


def test_each_expectation_is_judged_by_what_was_found() -> None:
    rounds = [
        _round(1, "counted", "counted"),
        _round(2, "counted", "recovered"),
        _round(3, "dropped", state="ABANDONED"),
    ]
    expect = Expect(
        rounds_committed=2,
        attempts_at_most=2,
        counted_at_least=2,
        recovered_at_least=1,
        rejected_at_least=0,
        accuracy_at_least=0.2,
    )
    checks = judge(expect, state="failed", rounds=rounds, failed=1)
    assert [(check.text.split(":")[0], check.held, check.found) for check in checks] == [
        ("the job ends completed", False, "failed"),
        ("rounds committed", True, "2"),
        ("attempts at rounds", False, "3"),
        ("devices counted in each committed round", False, "1"),
        ("devices dropped, their masks taken out", True, "1"),
        ("updates rejected", True, "0"),
        ("requests failed", False, "1"),
        ("last accuracy measured", True, "0.2"),
    ]
