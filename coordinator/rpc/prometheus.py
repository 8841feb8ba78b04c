"""`/metrics` for Prometheus: the fleet, and each device's newest batch, asked for at each scrape.

Devices name their samples themselves. One that sends nonsense must not spoil the page for all: names are cleaned, the first kind
of a name wins, a series appears once, and a device gets a limited number of them.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

from coordinator.fleet.device import Device
from coordinator.fleet.ports import MetricStore
from coordinator.fleet.states import DeviceState
from coordinator.rpc.listening import cannot_listen, family, joined
from shared.ids import DeviceId
from shared.session import Histogram, MetricBatch, Sample

MAX_SERIES_PER_DEVICE = 500
_PREFIX = "shoal_device_"  # of what devices name; our own names begin with shoal_fleet_, so they cannot meet
_UNCLEAN = re.compile(r"[^a-zA-Z0-9_]")
_OURS = frozenset({"device", "le"})
_HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")

Source = Callable[[], Iterable[Metric]]


class FleetCollector(Collector):
    """`devices`, `attached` and `sources` (of rounds and rollouts, say) are called from the scraping thread."""

    def __init__(
        self,
        devices: Callable[[], Iterable[Device]],
        attached: Callable[[], Collection[DeviceId]],
        metrics: MetricStore,
        sources: Sequence[Source] = (),
    ) -> None:
        self._devices = devices
        self._attached = attached
        self._metrics = metrics
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        devices, attached = list(self._devices()), self._attached()
        yield from _of_fleet(devices, attached)
        names = {device.id: device.name for device in devices if device.state is not DeviceState.REVOKED}
        yield from _of_devices(names, self._metrics.latest())
        for source in self._sources:
            yield from source()

    def describe(self) -> Iterable[Metric]:
        """Nothing: asking would read the database before there is one."""
        return ()


def by_state(name: str, what: str, counts: Callable[[], Mapping[str, int]]) -> Source:
    """A source of one gauge, `shoal_fleet_NAME`, with a series a state."""

    def gauge() -> Iterator[Metric]:
        metric = Metric(f"shoal_fleet_{name}", what, "gauge")
        for state, number in sorted(counts().items()):
            metric.add_sample(metric.name, {"state": state}, number)
        yield metric

    return gauge


def _of_fleet(devices: Sequence[Device], attached: Collection[DeviceId]) -> Iterator[Metric]:
    counts = Counter(device.state for device in devices)
    states = Metric("shoal_fleet_devices", "Devices by state", "gauge")
    for state in DeviceState:
        states.add_sample("shoal_fleet_devices", {"state": str(state)}, counts[state])
    up = Metric("shoal_fleet_attached", "1 while the device's session is open", "gauge")
    seen = Metric("shoal_fleet_last_seen_seconds", "When the device was last heard of, since the epoch", "gauge")
    serving = Metric("shoal_fleet_serving", "1 for each model that the device says it serves", "gauge")
    for device in devices:
        if device.state is DeviceState.REVOKED:
            continue
        name = {"device": device.name}
        up.add_sample(up.name, name, float(device.id in attached))
        seen.add_sample(seen.name, name, device.last_seen_at)
        for item in device.serving:
            labels = {"model": item.model, "release": str(item.release), "proven": str(item.proven).lower()}
            serving.add_sample(serving.name, name | labels, 1.0)
    yield from (states, up, seen, serving)


def _of_devices(names: Mapping[DeviceId, str], batches: Mapping[DeviceId, MetricBatch]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    taken: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for device, batch in sorted(batches.items()):
        if device not in names:
            continue
        for sample in batch.samples[:MAX_SERIES_PER_DEVICE]:
            name, kind = _family(sample)
            labels = _labels(sample, names[device])
            series = (name, tuple(sorted(labels.items())))
            family = families.setdefault(name, Metric(name, f"As reported by devices: {sample.name}", kind))
            if family.type == kind and series not in taken:
                taken.add(series)
                _add(family, sample.value, labels)
    parts = {
        name + part for name, family in families.items() if family.type == "histogram" for part in _HISTOGRAM_PARTS
    }
    yield from (family for name, family in families.items() if name not in parts and family.samples)


def _family(sample: Sample) -> tuple[str, str]:
    """Prometheus' name and kind. A number whose name ends in `_total` is a counter, and its family lacks the ending."""
    name = _PREFIX + _UNCLEAN.sub("_", sample.name)
    if isinstance(sample.value, Histogram):
        return name, "histogram"
    return (name.removesuffix("_total"), "counter") if name.endswith("_total") else (name, "gauge")


def _labels(sample: Sample, device: str) -> dict[str, str]:
    cleaned = {"_" + key if key[:1].isdigit() else key: value for key, value in _clean_keys(sample.labels)}
    return {key: value for key, value in cleaned.items() if key and key not in _OURS} | {"device": device}


def _clean_keys(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in labels.items():
        yield _UNCLEAN.sub("_", key).lstrip("_"), value


def _add(family: Metric, value: float | Histogram, labels: dict[str, str]) -> None:
    if not isinstance(value, Histogram):
        family.add_sample(family.name + ("_total" if family.type == "counter" else ""), labels, value)
        return
    reached, buckets = 0, {}
    for bound, count in zip((*value.bounds, math.inf), value.counts, strict=True):
        reached += count
        buckets["+Inf" if bound == math.inf else str(bound)] = reached
    for bound_text, below in buckets.items():
        family.add_sample(f"{family.name}_bucket", labels | {"le": bound_text}, below)
    family.add_sample(f"{family.name}_count", labels, reached)
    family.add_sample(f"{family.name}_sum", labels, value.sum)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def _server_class(host: str) -> type[_Server]:
    """The standard library has the family of addresses as an attribute of the class."""
    return type("_Server", (_Server,), {"address_family": family(host)})


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the standard library
        """A scrape every few seconds is not news."""


@dataclass(frozen=True)
class MetricsPage:
    """The running page. `port` is the one that was really bound."""

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(collector: Collector, host: str, port: int) -> MetricsPage:
    """Serve `/metrics`, with the coordinator's own process figures. Port 0 lets the system choose. Raises `LocalError`."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server = make_server(host, port, make_wsgi_app(registry), _server_class(host), _Quiet)
    except OSError as error:
        raise cannot_listen(joined(host, port), "--metrics-port") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics page", daemon=True)
    thread.start()
    return MetricsPage(server.server_port, server, thread)
