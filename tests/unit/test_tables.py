from collections.abc import Mapping
from enum import StrEnum

import pytest

from shared.errors import Conflict
from shared.tables import advance


class Light(StrEnum):
    RED = "red"
    GREEN = "green"


class Press(StrEnum):
    GO = "go"


TABLE: Mapping[Light, Mapping[Press, Light]] = {Light.RED: {Press.GO: Light.GREEN}, Light.GREEN: {}}


def test_a_listed_event_leads_on() -> None:
    assert advance(TABLE, Light.RED, Press.GO, Conflict, "no") is Light.GREEN


@pytest.mark.parametrize("table", [TABLE, {}])
def test_an_unlisted_event_or_state_raises_the_callers_error(table: Mapping[Light, Mapping[Press, Light]]) -> None:
    with pytest.raises(Conflict, match="a light that is green does not go"):
        advance(table, Light.GREEN, Press.GO, Conflict, "a light that is {state} does not {event}")
