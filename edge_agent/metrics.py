"""What the device reports about itself: sampled every few seconds, spooled on disk, sent until it is acknowledged."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import structlog

from edge_agent.inference.ports import Histogram as ServedHistogram
from edge_agent.inference.ports import ModelStatus, ServiceStatus
from edge_agent.journal import Journal, Proven
from shared.clock import Clock
from shared.errors import ShoalError, StorageFull
from shared.session import Histogram, MetricBatch, Sample

_log = structlog.get_logger()
_BATCHES_A_CALL = 500
# What apps call it → what we report it as. The first that an app measured counts.
_TASK_NAMES: Mapping[str, Sequence[str]] = {
    "train_loss": ("train_loss", "train-loss", "loss"),
    "eval_loss": ("eval_loss", "eval-loss", "eval_loss_before"),
    "eval_accuracy": ("eval_acc", "eval-acc", "eval_acc_before", "accuracy"),
}
_DRIFT_NAMES = ("drift_score", "drift")


@dataclass
class LastTask:
    """What the last task measured. After a secure round loss and accuracy stay here unless the owner says otherwise: they
    travelled masked, and must not follow in clear."""

    share_secure: bool = False
    samples: tuple[Sample, ...] = field(default=())

    def learn(self, client_app: str, metrics: Mapping[str, float], *, secure: bool) -> None:
        names = dict(_TASK_NAMES) if self.share_secure or not secure else {}
        names["drift_score"] = _DRIFT_NAMES
        found = {sample.name: sample for sample in self.samples}
        for name, spellings in names.items():
            value = next((metrics[spelling] for spelling in spellings if spelling in metrics), None)
            if value is not None and math.isfinite(value):
                found[name] = Sample(name, float(value), {"client_app": client_app})
        self.samples = tuple(found.values())


@dataclass(frozen=True)
class Traffic:
    sent_bytes: int
    received_bytes: int


def model_samples(status: ModelStatus, proven: Iterable[Proven]) -> list[Sample]:
    """One model's figures, labelled with the digest that serves."""
    labels = {"model": status.model}
    if status.live is not None:
        labels |= {"digest": status.live.digest, "runtime": status.live.runtime, "release": str(status.live.version)}
    out = [
        Sample("requests_total", float(status.requests), labels),
        Sample("errors_total", float(status.errors), labels),
        Sample("rejected_total", float(status.rejected + status.expired), labels),
        Sample("latency_ms", _histogram(status.latency_ms), labels),
        Sample("batch_size", _histogram(status.batch_rows), labels),
    ]
    for one in proven:
        if status.live is not None and one.variant_digest == status.live.digest:
            out += [
                Sample(name, value, labels)
                for name, value in (("accuracy", one.accuracy), ("loss", one.loss))
                if value is not None and math.isfinite(value)
            ]
    return out


def _histogram(found: ServedHistogram) -> Histogram:
    return Histogram(tuple(map(float, found.bounds)), found.counts, found.total)


def process_samples(root: psutil.Process) -> list[Sample]:
    """Memory and CPU of the agent and its children, and each one's own memory."""
    parts = {"agent": root}
    for child in root.children(recursive=True):
        parts.setdefault(_role(child), child)
    memory: dict[str, float] = {}
    cpu = 0.0
    for role, process in parts.items():
        try:
            memory[role] = float(process.memory_info().rss)
            times = process.cpu_times()
        except psutil.Error:
            continue
        cpu += times.user + times.system
        if process.pid == root.pid:
            cpu += times.children_user + times.children_system
    out = [Sample("rss_bytes", value, {"part": role}) for role, value in memory.items()]
    return [*out, Sample("cpu_seconds_total", cpu)]


def _role(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    for role in ("inference", "trainer"):
        if f"edge_agent.{role}" in words:
            return role
    return f"pid-{process.pid}"


class Sampler:
    """`status` asks the inference service; `report` sends batches and returns the number up to which all are stored."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        status: Callable[[], Awaitable[ServiceStatus]],
        traffic: Callable[[], Traffic],
        report: Callable[[Sequence[MetricBatch]], Awaitable[int]],
        *,
        limit: int,
        share_secure: bool,
    ) -> None:
        self.last_task = LastTask(share_secure)
        self._journal = journal
        self._clock = clock
        self._status = status
        self._traffic = traffic
        self._report = report
        self._limit = limit
        self._root = psutil.Process()

    async def sample(self) -> None:
        """Measure once, and keep it. Nothing is lost while the spool is full but what is measured then."""
        samples = [*process_samples(self._root), *self.last_task.samples]
        try:
            for model in (await self._status()).models:
                samples += model_samples(model, self._journal.proven(model.model))
        except ShoalError as error:
            _log.debug("inference service not sampled", reason=error.message)
        traffic = self._traffic()
        samples += [
            Sample("sent_bytes_total", float(traffic.sent_bytes)),
            Sample("received_bytes_total", float(traffic.received_bytes)),
        ]
        await asyncio.to_thread(self._keep, samples)

    def _keep(self, samples: Sequence[Sample]) -> None:
        try:
            if self._journal.spool_size() < self._limit:
                self._journal.spool(self._clock.now(), samples)
        except StorageFull as error:
            _log.warning("metrics not kept", reason=error.message)

    async def flush(self) -> None:
        """Send what is spooled. A coordinator that is away is no error: it is sent later."""
        while batches := await asyncio.to_thread(self._journal.spooled, _BATCHES_A_CALL):
            try:
                stored = await self._report(batches)
            except ShoalError as error:
                _log.debug("metrics not sent", reason=error.message)
                return
            if stored < batches[0].sequence:
                return
            try:
                await asyncio.to_thread(self._journal.forget, stored)
            except StorageFull as error:  # they are sent again, and not counted twice
                _log.warning("metrics that were sent are kept", reason=error.message)
                return
