"""Settings that differ from device to device, and runs beside each other on the same devices."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import AppRun
from shared.errors import RoundAborted
from shared.flower import REFUSED, with_content
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import (
    AppGrid,
    Fault,
    make_grid,
)
from tests.protocol.secagg.exchanges import (
    EVERYBODY,
    VICTIM,
    exchange,
    secure,
)

OTHER_SETTINGS: dict[str, Any] = {
    "weight_key": "private",
    "feedback": 0,
    "max_weight": 99,
    "subsample": 0.5,
    "unit_weight": 3.0,
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_settings_that_differ_from_device_to_device_mask_nothing(name: str) -> None:
    """Had all others another metric for their weight, one that is 0, the sum would be one device's."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    for node in EVERYBODY - {VICTIM}:
        inner.faults[node, "masked"] = told_otherwise(inner, name)
    with pytest.raises(RoundAborted):
        exchange(grid)
    for node in EVERYBODY - {VICTIM}:
        outcome = seen.summaries[-1].outcomes[node]
        assert (outcome.code, "settings" in outcome.reason or "subsample" in outcome.reason) == (REFUSED, True)


def told_otherwise(inner: AppGrid, name: str) -> Fault:
    def fault(message: Message) -> Message:
        record = ConfigRecord({**message.content.config_records[RECORD], name: OTHER_SETTINGS[name]})
        return inner.handle(with_content(message, RecordDict({**message.content, RECORD: record})))

    return fault


def test_a_run_of_other_settings_masks_nothing() -> None:
    """Flower's own engines hand an app the run's settings beside each message."""
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    for node in EVERYBODY:
        inner.nodes[node].context.run_config = {"lr": 0.1 if node == VICTIM else 0.0}
    grid.app = AppRun(run_config={"lr": 0.0})
    exchange(grid)
    assert (seen.summaries[-1].outcomes[VICTIM].code, seen.fates[1]) == (REFUSED, "counted")


def test_two_jobs_on_the_same_devices_do_not_disturb_each_other() -> None:
    """They have their own keys, models and leftovers, though the app and its context are the same."""
    inner, authority = make_grid()
    config = SecureConfig(max_weight=100, clip_range=4.0, delta_broadcast=True)
    jobs = {run: secure(inner, authority, config) for run in (1, 2)}
    for _ in range(3):
        for run, (grid, _) in jobs.items():
            for node in inner.nodes.values():
                node.context.run_id = run
            exchange(grid)
    for _, seen in jobs.values():
        assert seen.passed[1:] == [["masked", "confirmed", "unmasked"]] * 2
        assert set(seen.fates.values()) == {"counted"}


def test_what_one_run_made_another_cannot_use_up() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    exchange(grid)
    for node in inner.nodes.values():
        node.context.run_id = 8
    with pytest.raises(RoundAborted):
        exchange(grid)
    assert all("no keys for this group" in seen.reason(node) for node in EVERYBODY)
