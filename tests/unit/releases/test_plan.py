import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.releases.plan import RolloutPlan, assign
from shared.errors import ConfigError, Conflict
from shared.ids import DeviceId, RolloutId
from shared.session import Gate

ID = RolloutId("rol-1")
DEVICES = [DeviceId(f"dev-{number}") for number in range(8)]


def test_no_plan_is_one_canary_then_a_quarter_then_all() -> None:
    assert RolloutPlan.parse("") == RolloutPlan()
    stages = sorted(assign(DEVICES, RolloutPlan(), ID).values())
    assert stages == [1, 2, 3, 3, 3, 3, 3, 3]


def test_a_plan_is_read_from_toml() -> None:
    plan = RolloutPlan.parse("stages = [2, 0.5, 1.0]\nmax_failures = 1\nsoak_s = 5\n[gate]\naccuracy_budget = 0.1\n")
    assert plan == RolloutPlan((2, 0.5, 1.0), Gate(accuracy_budget=0.1), max_failures=1, soak_s=5.0)


@pytest.mark.parametrize(
    ("toml", "why"),
    {
        "unknown key": ("stagse = [1.0]", "unknown key stagse"),
        "unknown key in the gate": ("[gate]\nbudget = 1", "unknown key budget"),
        "the last stage leaves devices out": ("stages = [1, 0.5]", "the last stage is 1.0"),
        "a count of one is not the whole cohort": ("stages = [1]", "the last stage is 1.0"),
        "no stages": ("stages = []", "the last stage is 1.0"),
        "a share above one": ("stages = [1.5, 1.0]", "a stage is a count"),
        "a stage of nobody": ("stages = [0, 1.0]", "a stage is a count"),
        "a stage in words": ('stages = ["half", 1.0]', "a stage is a count"),
        "a stage that is true": ("stages = [true, 1.0]", "a stage is a count"),
        "stages that shrink": ("stages = [0.5, 0.25, 1.0]", "stages grow"),
        "the same stage twice": ("stages = [1, 1, 1.0]", "stages grow"),
        "negative failures": ("max_failures = -1", "max_failures"),
        "no proof wanted": ("min_proven = 0", "min_proven"),
        "no time": ("stage_timeout_s = 0", "stage_timeout_s"),
        "time that is not a number": ("stage_timeout_s = nan", "stage_timeout_s"),
        "an endless soak": ("soak_s = inf", "soak_s"),
        "a gate that is not a share": ("[gate]\naccuracy_budget = 2.0", "accuracy_budget"),
        "not TOML": ("stages = [", "not valid TOML"),
    }.values(),
)
def test_a_plan_that_cannot_be_is_refused(toml: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RolloutPlan.parse(toml)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=200, unique=True), st.integers(1, 20), st.floats(0.01, 0.99)
)
def test_every_device_has_one_stage_and_stages_fill_in_order(numbers: list[int], canary: int, share: float) -> None:
    devices = [DeviceId(f"dev-{number}") for number in numbers]
    plan = RolloutPlan(stages=(canary, share, 1.0))
    stages = assign(devices, plan, ID)
    assert set(stages) == set(devices)
    for stage in (1, 2, 3):
        had_their_turn = sum(assigned <= stage for assigned in stages.values())
        assert had_their_turn == max(plan.size(earlier, len(devices)) for earlier in range(1, stage + 1))


def test_the_same_rollout_gives_the_same_stages_in_any_order_of_devices() -> None:
    assert assign(DEVICES, RolloutPlan(), ID) == assign(list(reversed(DEVICES)), RolloutPlan(), ID)


def test_the_canary_is_not_always_the_same_device() -> None:
    canaries = set()
    for number in range(64):
        stages = assign(DEVICES, RolloutPlan(), RolloutId(f"rol-{number}"))
        canaries |= {device for device, stage in stages.items() if stage == 1}
    assert len(canaries) == len(DEVICES)


def test_nobody_in_the_cohort_is_an_error() -> None:
    with pytest.raises(Conflict, match="no active device"):
        assign([], RolloutPlan(), ID)


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    plan = RolloutPlan(stages=(1, 2, 0.5, 1.0), gate=Gate(requantize=False), soak_s=1.5)
    stored: Any = json.loads(json.dumps(plan.to_mapping()))
    assert RolloutPlan.from_mapping(stored) == plan
