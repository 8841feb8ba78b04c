"""The fleet as rounds see it: which client apps a device says that it has."""

import json

import pytest

from coordinator.directory import MAX_APPS, client_apps
from edge_agent.device_profile import to_report
from shared.client_apps import BUILT_IN
from shared.learning.profile import GENERIC_X86

PROFILES: dict[str, tuple[str, frozenset[str] | None]] = {
    "what an agent says": (to_report(GENERIC_X86), frozenset(BUILT_IN)),
    "an agent that lists none": (json.dumps({"name": "generic-x86"}), None),
    "no profile": ("", None),
    "an empty list": ('{"client_apps": []}', frozenset()),
    "a list that is none": ('{"client_apps": "echo"}', None),
    "names that no job can give": ('{"client_apps": ["echo", "Echo", "a b"]}', frozenset({"echo"})),
    "more names than a device may list": (
        json.dumps({"client_apps": [f"app{number}" for number in range(1000)]}),
        frozenset(f"app{number}" for number in range(MAX_APPS)),
    ),
    "names that cannot be shown": ('{"client_apps": ["echo", "\\u001b[31m", 7, null]}', frozenset({"echo"})),
}


@pytest.mark.parametrize(("profile", "expected"), PROFILES.values(), ids=PROFILES)
def test_the_apps_of_a_device_are_read_from_its_profile(profile: str, expected: frozenset[str] | None) -> None:
    assert client_apps(profile) == expected


def test_an_agent_reports_its_profile_as_it_is_besides() -> None:
    reported = json.loads(to_report(GENERIC_X86))
    assert (reported["name"], reported["threads"]) == (GENERIC_X86.name, GENERIC_X86.threads)
