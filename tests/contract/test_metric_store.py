"""What every store of devices' metrics must do."""

import math
from concurrent.futures import ThreadPoolExecutor

from coordinator.fleet.ports import FleetStore, MetricStore
from shared.ids import DeviceId
from shared.session import Histogram, MetricBatch, Sample
from tests.contract.fleet_rows import ENTRY, device, token


def batch(number: int, spool: str = "a") -> MetricBatch:
    histogram = Histogram((1.0, 5.0), (3, 2, 1), 17.5)
    samples = (Sample("loss", 0.5), Sample("latency_ms", histogram, {"model": "digits"}))
    return MetricBatch(number, 10.0 + number, samples, spool)


def test_a_batch_sent_twice_is_counted_once(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")

    assert metrics.add(one, [batch(1), batch(2)], 20.0) == 2
    assert metrics.add(one, [batch(2), batch(2), batch(3)], 21.0) == 3
    assert metrics.latest() == {one: batch(3)}


def test_nothing_behind_a_gap_is_acknowledged(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")

    assert metrics.add(one, [batch(2)], 20.0) == 0
    assert metrics.add(one, [batch(1), batch(4)], 21.0) == 2
    assert metrics.add(one, [batch(3)], 22.0) == 4
    assert metrics.add(one, [batch(1)], 23.0) == 4


def test_numbers_that_json_lacks_come_back(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    endless = Histogram((1.0, math.inf), (1, 2, 0), math.inf)
    samples = (Sample("loss", math.nan), Sample("top", math.inf), Sample("latency_ms", endless))

    assert metrics.add(one, [MetricBatch(1, 1.0, samples)], 20.0) == 1

    nan, top, histogram = metrics.latest()[one].samples
    assert isinstance(nan.value, float)
    assert math.isnan(nan.value)
    assert (top.value, histogram.value) == (math.inf, endless)


def test_batches_at_the_same_time_are_stored_once_each(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: metrics.add(one, [batch(1), batch(2), batch(3)], 20.0), range(8)))

    assert metrics.add(one, [batch(4)], 21.0) == 4


def test_a_device_that_lost_its_spool_is_heard_again(metrics: MetricStore) -> None:
    """Its numbers begin at 1 again: they are another spool's, not batches that were stored before."""
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2), batch(3)], 20.0)

    assert metrics.add(one, [batch(1, "b")], 30.0) == 1
    assert metrics.latest() == {one: batch(1, "b")}
    assert metrics.add(one, [batch(4)], 31.0) == 4


def test_what_was_acknowledged_stays_so_when_old_batches_are_forgotten(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(3)], 30.0)

    assert metrics.forget(25.0) == 2
    assert metrics.latest() == {one: batch(3)}
    assert metrics.add(one, [batch(2)], 31.0) == 3, "a late repetition is not stored again"
    assert metrics.forget(40.0) == 1
    assert metrics.latest() == {}
    assert metrics.add(one, [batch(4)], 41.0) == 4


def test_an_old_spool_is_forgotten_once_the_device_has_another(metrics: MetricStore, fleet: FleetStore) -> None:
    fleet.add_tokens([token("t2")], ENTRY)
    fleet.enrol(device("dev2"), "t2", 2.0, ENTRY)
    one, away = DeviceId("dev-dev1"), DeviceId("dev-dev2")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(1, "b")], 30.0)
    metrics.add(away, [batch(1), batch(2)], 20.0)

    metrics.forget(40.0)

    assert metrics.add(away, [batch(3)], 41.0) == 3, "its only spool is remembered however long it was away"
    assert metrics.add(one, [batch(2, "b")], 41.0) == 2, "so is the newest"
    assert metrics.add(one, [batch(1)], 42.0) == 1, "what is left of the older one begins anew"


def test_a_spool_that_was_heard_of_lately_is_remembered_beside_a_newer_one(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(1, "b")], 30.0)

    metrics.forget(15.0)

    assert metrics.add(one, [batch(3)], 31.0) == 3
