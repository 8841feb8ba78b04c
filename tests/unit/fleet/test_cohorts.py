"""Which devices a selector means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet.cohorts import Cohort
from coordinator.fleet.device import Device
from coordinator.fleet.states import DeviceState
from shared.errors import ConfigError
from shared.ids import DeviceId, NodeId


def device(number: int, **labels: str) -> Device:
    return Device(
        id=DeviceId(f"dev-{number:016x}"),
        node_id=NodeId(number + 1),
        name=f"dev{number}",
        state=DeviceState.ACTIVE,
        public_key_sha256="0" * 64,
        csr_der=b"",
        enrolled_at=0.0,
        profile_json='{"name": "jetson-nano"}' if number % 2 else "{}",
        labels=labels,
    )


FLEET = [device(number, site="lab" if number < 4 else "field") for number in range(8)]


@pytest.mark.parametrize(
    ("text", "names"),
    {
        "nothing means all": ("", [0, 1, 2, 3, 4, 5, 6, 7]),
        "a label": ("site=lab", [0, 1, 2, 3]),
        "either of two": ("name=dev1|dev6", [1, 6]),
        "all terms must hold": ("site=lab, profile=jetson-nano", [1, 3]),
        "an unknown label matches nobody": ("colour=red", []),
        "the whole": ("share=100%", [0, 1, 2, 3, 4, 5, 6, 7]),
        "an id": ("id=dev-0000000000000002", [2]),
    }.values(),
)
def test_a_selector_means(text: str, names: list[int]) -> None:
    assert [item.name for item in Cohort.parse(text).members(FLEET)] == [f"dev{number}" for number in names]


@pytest.mark.parametrize(
    "text", ["site", "=lab", "site=", "site=a|", "site=a,site=b", "share=0", "share=120%", "share=x"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Cohort.parse(text)


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_larger_share_holds_every_device_of_a_smaller_one(one: float, other: float) -> None:
    small, large = sorted((one, other))
    members = [{item.id for item in Cohort(share=share).members(FLEET)} for share in (small, large)]
    assert members[0] <= members[1]


def test_a_share_is_about_as_large_as_it_says() -> None:
    fleet = [device(number) for number in range(4000)]
    assert 900 < len(Cohort.parse("share=25%").members(fleet)) < 1100


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        Cohort.parse(text)
    except ConfigError:
        return
