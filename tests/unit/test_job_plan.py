"""`coordinator job plan`: what privacy costs and what it leaves to learn from, told before anything is spent."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save

from coordinator.cli.root import cli
from coordinator.rounds.cost import cost
from coordinator.rounds.plan import JobSpec
from shared.errors import ConfigError, Unsupported
from shared.privacy.accountant import epsilon
from shared.privacy.events import Skellam

JOB = """name = "nightly"
client_app = "softmax"
rounds = 20
[start]
arrays_file = "start.safetensors"
[selection]
min_devices = 40
[secure]
bits = 4
[privacy]
mechanism = "distributed"
epsilon = 5.0
delta = 1e-5
clip_norm = 2.0
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "start.safetensors").write_bytes(
        save({"weight": np.zeros((10, 60), np.float32), "bias": np.zeros(10, np.float32)})
    )
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return file


def plan(file: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["job", "plan", str(file), *words])


def words(file: Path, *options: str) -> str:
    """What people read, whatever the width of their terminal."""
    return " ".join(plan(file, *options).output.split())


def found(file: Path, *words: str) -> dict[str, Any]:
    outcome = plan(file, "--json", *words)
    assert outcome.exit_code == 0, outcome.output
    values: dict[str, Any] = json.loads(outcome.output)
    return values


def test_epsilon_is_that_of_the_jobs_rounds_and_of_the_spare_ones_and_the_budget_allows_no_more(job: Path) -> None:
    values = found(job)
    assert (values["parameters"], values["devices"], values["rounds"], values["delta"]) == (610, 40, 20, 1e-5)
    assert values["epsilon"] < values["epsilon_spare"] <= 5.0
    assert values["epsilon_spare"] == pytest.approx(5.0, rel=0.01)
    assert values["rounds_allowed"] == 22
    assert values["contributors"] == 40 - 10 - 4


def test_what_is_printed_is_what_the_accountant_says_of_the_noise_that_is_printed(job: Path) -> None:
    """A Skellam sum costs nearly what a Gaussian of its variance does."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent, rdp

    values = found(job)
    accountant = rdp.RdpAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(values["noise_multiplier"]), 20))
    assert values["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)


def test_the_means_error_is_the_noise_of_those_who_are_counted(job: Path) -> None:
    values = found(job)
    certain = values["noise_multiplier"] * values["clip_norm"]  # of a sum, over 26; 30 are counted and add theirs
    assert values["noise_per_element"] == pytest.approx(certain * math.sqrt(30 / 26) / 30, rel=0.05)
    assert values["noise_norm"] == pytest.approx(values["noise_per_element"] * math.sqrt(610))
    assert values["noise_to_signal"] == pytest.approx(values["noise_norm"] / math.sqrt(20) / 2.0)


def test_more_devices_make_the_mean_better_and_cost_the_same(job: Path) -> None:
    few, many = found(job, "--devices", "40"), found(job, "--devices", "4000")
    assert many["epsilon"] == pytest.approx(few["epsilon"], rel=1e-3)
    assert many["noise_norm"] < few["noise_norm"] / 50


VERDICTS = {"40": "swamps the changes", "250": "expect to lose accuracy", "8000": "the changes stand out"}


@pytest.mark.parametrize(("devices", "says"), VERDICTS.items())
def test_it_says_when_the_noise_swamps_the_changes(job: Path, devices: str, says: str) -> None:
    shown = plan(job, "--devices", devices, "--parameters", "5000")
    assert shown.exit_code == 0
    assert says in " ".join(shown.output.split())


def test_people_read_who_adds_the_noise_and_that_central_is_weaker(job: Path) -> None:
    assert "devices add noise before they mask" in " ".join(plan(job).output.split())
    job.write_text(JOB.replace("distributed", "central"))
    shown = " ".join(plan(job).output.split())
    assert "weaker: the coordinator sees exact sums" in shown


def test_central_noise_leaves_a_better_mean_for_the_same_epsilon(job: Path) -> None:
    distributed = found(job)
    job.write_text(JOB.replace("distributed", "central"))
    central = found(job)
    assert central["mechanism"] == "central"
    assert central["epsilon"] == pytest.approx(distributed["epsilon"], rel=0.01)
    assert central["noise_norm"] < distributed["noise_norm"]


def test_the_size_of_a_model_that_is_not_in_the_file_must_be_given(job: Path) -> None:
    job.write_text(JOB.replace('[start]\narrays_file = "start.safetensors"\n', 'model = "digits"\n'))
    with pytest.raises(ConfigError, match="give --parameters"):
        raise plan(job).exception or AssertionError
    assert found(job, "--parameters", "30000")["parameters"] == 30000


UNUSABLE: dict[str, tuple[Any, type[Exception], str]] = {
    "whole numbers": (np.zeros(3, np.int64), Unsupported, "array 'steps' is int64: under differential privacy only"),
    "a number that is none": (np.array([np.nan], np.float32), ConfigError, "job.start: steps holds NaN"),
}


@pytest.mark.parametrize("words", [(), ("--parameters", "5000")], ids=["its own size", "another size"])
@pytest.mark.parametrize(("array", "error", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_start_that_cannot_be_submitted_has_no_plan_whatever_size_is_asked_for(
    array: Any, error: type[Exception], says: str, words: tuple[str, ...], job: Path
) -> None:
    (job.parent / "start.safetensors").write_bytes(save({"weight": np.zeros(60, np.float32), "steps": array}))
    with pytest.raises(error, match=says):
        raise plan(job, *words).exception or AssertionError


def test_a_start_on_another_machine_is_planned_for_by_its_size(job: Path) -> None:
    (job.parent / "start.safetensors").unlink()
    assert found(job, "--parameters", "5000")["parameters"] == 5000
    with pytest.raises(ConfigError, match="there is no file"):
        raise plan(job).exception or AssertionError


@pytest.mark.parametrize(
    ("devices", "delta", "says"), [("3", "1e-5", "devices at least, not 3"), ("1000", "0.004", "state a smaller one")]
)
def test_a_plan_for_devices_that_the_job_is_not_for_is_refused(job: Path, devices: str, delta: str, says: str) -> None:
    job.write_text(JOB.replace("delta = 1e-5", f"delta = {delta}"))
    with pytest.raises(ConfigError, match=says):
        raise plan(job, "--devices", devices, "--parameters", "5000").exception or AssertionError


def test_a_job_that_is_not_private_has_no_bound_and_says_what_it_sends(job: Path) -> None:
    job.write_text(JOB.partition("[privacy]")[0])
    values = found(job)
    assert "epsilon" not in values
    assert (values["bits"], values["bits_of_the_sum"], values["bits_on_the_wire"]) == (4, 6, 10)
    assert found(job, "--parameters", "100000")["bytes_a_parameter"] == pytest.approx(10 / 8, rel=0.01)
    assert (values["trips"], values["trips_with_keys"], values["trips_saved"]) == (3, 5, 15 * 2)
    told = words(job)
    assert "610 parameters, 10 bits each on the wire (b + ⌈log2 40⌉ = 4 + 6)" in told
    assert f"{values['bytes_a_parameter']:.4g} bytes a parameter" in told
    assert "5 where keys are made: 30 are saved in 16 of them" in told
    assert values["first_vector_bytes"] > 2 * values["vector_bytes"], "it takes whole words"
    letters, digests, records = 39 * (72 * 16 + 16), 16 * (64 + 39 * 16), 16 * (39 * 32 + 16)
    assert values["keys_bytes"] == letters + digests + records


def test_the_noise_of_a_private_job_has_its_place_in_the_formula(job: Path) -> None:
    values = found(job)
    noise = values["bits_on_the_wire"] - values["bits"] - values["bits_of_the_sum"]
    assert noise > 0
    assert f"(b + ⌈log2 40⌉ + noise = 4 + 6 + {noise})" in words(job)


def test_a_job_in_groups_and_sampled_is_reckoned_by_its_largest_group(job: Path) -> None:
    text = JOB.partition("[privacy]")[0].replace("bits = 4", "bits = 8\ngroups = 4\nsubsample = 0.25")
    job.write_text(text)
    values = found(job, "--devices", "42", "--parameters", "100000")
    assert (values["devices"], values["group"], values["bits_of_the_sum"]) == (42, 11, 4)
    assert (values["share_sent"], values["neighbours"], values["trips_with_keys"]) == (0.25, 10, 5)
    assert values["vector_bytes"] == pytest.approx(25_000 * 12 / 8, rel=0.01)
    told = words(job, "--devices", "42", "--parameters", "100000")
    assert "42, in groups of up to 11" in told
    assert "a share of 0.25 is sent" in told
    assert "one with all others" in told


def test_fewer_groups_than_the_strategy_needs_are_refused_as_its_rounds_would_be(job: Path) -> None:
    text = JOB.partition("[privacy]")[0].replace("min_devices = 40", "min_devices = 20")
    job.write_text(text.replace("[secure]", '[strategy]\nname = "fedmedian"\n[secure]\ngroups = 4\nmin_group = 5'))
    assert found(job)["group"] == 5
    spec = JobSpec.parse(job.read_text())
    with pytest.raises(Unsupported, match="10 devices make 2 groups"):
        cost(spec, {"w": np.zeros((3, 3), np.float32)}, 10)


def test_a_plain_job_has_nothing_to_plan(job: Path) -> None:
    job.write_text(JOB.partition("[secure]")[0] + "[secure]\nenabled = false\n")
    with pytest.raises(ConfigError, match="the job is not secure"):
        raise plan(job).exception or AssertionError


def test_what_cannot_be_is_refused(job: Path) -> None:
    job.write_text(JOB.replace("epsilon = 5.0", "epsilon = 1e-7"))
    with pytest.raises(Unsupported):
        raise plan(job).exception or AssertionError
    job.write_text(JOB.replace("clip_norm = 2.0", "missing = 0.8"))
    with pytest.raises(Unsupported, match="none surely adds noise"):
        raise plan(job).exception or AssertionError


def test_the_event_behind_a_plan_is_one_that_devices_would_reckon(job: Path) -> None:
    """By hand: 610 elements of 4 bits in the scale of clip_norm / sqrt(d), clipped at 2.5 of them, 7 levels."""
    values = found(job)
    norm = 7 / 2.5 * math.sqrt(610)
    certain = (values["noise_multiplier"] ** 2) * norm**2
    event = Skellam(certain / 26, 26, math.ceil(norm**2 * 1.0), 610)
    assert epsilon({event: 20}, 1e-5) == pytest.approx(values["epsilon"], rel=0.02)
