"""What a scrape shows, and that no device can spoil it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from coordinator.fleet.device import Device
from coordinator.fleet.states import DeviceState
from coordinator.rpc.prometheus import MAX_SERIES_PER_DEVICE, FleetCollector, Source, by_state
from coordinator.store.memory_fleet import MemoryMetricStore
from shared.ids import DeviceId, digest_of
from shared.session import Histogram, MetricBatch, Sample, Serving
from tests.unit.fleet.kit import Fleet


class Page:
    """Two devices, of which one is attached; `report` is what they send."""

    def __init__(self, *sources: Source) -> None:
        self.fleet = Fleet()
        self.metrics = MemoryMetricStore()
        self.one, self.two = self.fleet.join("dev1"), self.fleet.join("dev2")
        collector = FleetCollector(self.fleet.registry.devices, lambda: {self.one.id}, self.metrics, sources)
        self.registry = CollectorRegistry()
        self.registry.register(collector)

    def report(self, device: Device, *samples: Sample, sequence: int = 1) -> None:
        self.metrics.add(DeviceId(device.id), [MetricBatch(sequence, 0.0, samples)], 1.0)

    def series(self) -> dict[str, float]:
        """`name{labels}` → value, as a scraper reads it."""
        text = generate_latest(self.registry).decode()
        out: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                key = f"{sample.name}{{{labels}}}"
                assert key not in out, "a series twice"
                out[key] = sample.value
        return out


def test_the_fleet_is_counted_by_state_and_each_device_says_what_it_serves() -> None:
    page = Page()
    page.fleet.registry.quarantine("dev2", "admin", "odd")
    page.fleet.registry.seen(page.one.id, (Serving("digits", 3, digest_of(b"b"), True),))

    series = page.series()

    assert series["shoal_fleet_devices{state=active}"] == 1
    assert series["shoal_fleet_devices{state=quarantined}"] == 1
    assert series["shoal_fleet_devices{state=revoked}"] == 0
    assert series["shoal_fleet_attached{device=dev1}"] == 1
    assert series["shoal_fleet_attached{device=dev2}"] == 0
    assert series["shoal_fleet_serving{device=dev1,model=digits,proven=true,release=3}"] == 1
    assert series["shoal_fleet_last_seen_seconds{device=dev1}"] == page.fleet.clock.now()


def test_the_newest_numbers_of_each_device_are_shown() -> None:
    page = Page()
    page.report(page.one, Sample("loss", 0.9), sequence=1)
    page.report(page.one, Sample("loss", 0.5, {"model": "digits"}), Sample("requests_total", 12.0), sequence=2)
    page.report(page.two, Sample("loss", math.nan))

    series = page.series()

    assert series["shoal_device_loss{device=dev1,model=digits}"] == 0.5
    assert series["shoal_device_requests_total{device=dev1}"] == 12
    assert math.isnan(series["shoal_device_loss{device=dev2}"])
    assert "shoal_device_loss{device=dev1}" not in series


def test_a_histogram_is_shown_cumulative() -> None:
    page = Page()
    page.report(page.one, Sample("latency_ms", Histogram((1.0, 5.0), (3, 2, 1), 17.5)))

    series = page.series()

    buckets = [series[f"shoal_device_latency_ms_bucket{{device=dev1,le={le}}}"] for le in ("1.0", "5.0", "+Inf")]
    assert buckets == [3, 5, 6]
    assert series["shoal_device_latency_ms_count{device=dev1}"] == 6
    assert series["shoal_device_latency_ms_sum{device=dev1}"] == 17.5


def test_revoked_devices_leave_the_page() -> None:
    page = Page()
    page.report(page.one, Sample("loss", 0.5))
    page.fleet.registry.revoke("dev1", "admin", "stolen")

    assert not [name for name in page.series() if "dev1" in name]
    assert page.series()["shoal_fleet_devices{state=revoked}"] == 1


def test_other_nouns_add_their_own() -> None:
    def rounds() -> list[Metric]:
        metric = Metric("shoal_rounds_committed", "Rounds committed", "gauge")
        metric.add_sample(metric.name, {"job": "digits"}, 4.0)
        return [metric]

    assert Page(rounds).series()["shoal_rounds_committed{job=digits}"] == 4


def test_a_device_cannot_speak_for_another_or_forge_a_bucket() -> None:
    page = Page()
    page.report(page.one, Sample("loss", 0.1, {"device": "dev2", "le": "1"}))

    assert page.series()["shoal_device_loss{device=dev1}"] == 0.1
    assert "shoal_device_loss{device=dev2}" not in page.series()


def test_a_device_that_floods_is_cut_short() -> None:
    page = Page()
    page.report(page.one, *(Sample("loss", 1.0, {"n": str(n)}) for n in range(2 * MAX_SERIES_PER_DEVICE)))

    assert len([name for name in page.series() if name.startswith("shoal_device_loss")]) == MAX_SERIES_PER_DEVICE


HISTOGRAM = Histogram((1.0, math.inf), (1, 2, 0), 5.0)


@pytest.mark.parametrize(
    "samples",
    {
        "one name as number and as histogram": (Sample("x", 1.0), Sample("x", HISTOGRAM)),
        "one name as gauge and as counter": (Sample("x", 1.0), Sample("x_total", 2.0)),
        "the same series twice": (Sample("x", 1.0), Sample("x", 2.0)),
        "two names that clean to one": (Sample("a.b", 1.0), Sample("a-b", 2.0)),
        "a number named like part of a histogram": (Sample("x", HISTOGRAM), Sample("x_count", 9.0)),
        "two labels that clean to one": (Sample("x", 1.0, {"a.b": "1", "a-b": "2"}),),
        "labels that are no names": (Sample("x", 1.0, {"": "1", "9": "2", "__name__": "y", "é": "3"}),),
        "values that look like the format": (Sample("x", 1.0, {"a": 'b"} 1\n# HELP'}),),
    }.values(),
)
def test_nonsense_from_one_device_leaves_a_page_that_parses(samples: tuple[Sample, ...]) -> None:
    page = Page()
    page.report(page.one, *samples)
    page.report(page.two, Sample("loss", 0.25))

    assert page.series()["shoal_device_loss{device=dev2}"] == 0.25
    text = generate_openmetrics(page.registry).decode()  # type: ignore[no-untyped-call]
    assert list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
LABELS = st.dictionaries(st.text(max_size=4), st.text(st.characters(codec="utf-8"), max_size=6), max_size=3)
VALUES = st.one_of(st.floats(), st.just(HISTOGRAM))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Sample, NAMES, VALUES, LABELS), max_size=6))
def test_whatever_devices_send_the_page_parses(samples: list[Sample]) -> None:
    page = Page()
    page.report(page.one, *samples)
    assert page.series()["shoal_fleet_devices{state=active}"] == 2


def test_pending_devices_are_counted() -> None:
    page = Page()
    page.fleet.join("dev3", require_approval=True)
    assert page.series()[f"shoal_fleet_devices{{state={DeviceState.PENDING}}}"] == 1


def test_jobs_and_rollouts_are_counted_by_state() -> None:
    (metric,) = by_state("jobs", "Jobs by state", lambda: {"running": 2, "failed": 1})()

    assert metric.name == "shoal_fleet_jobs"
    assert {sample.labels["state"]: sample.value for sample in metric.samples} == {"running": 2, "failed": 1}
