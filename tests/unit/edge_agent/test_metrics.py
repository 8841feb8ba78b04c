"""What a device says about itself, and what it keeps to itself."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.inference.ports import Histogram as Served
from edge_agent.inference.ports import ModelStatus, ServiceStatus, SlotStatus
from edge_agent.journal import Journal, Proven
from edge_agent.metrics import LastTask, Sampler, Traffic, model_samples
from shared.clock import ManualClock
from shared.errors import StorageFull, Unavailable
from shared.ids import Digest
from shared.session import Histogram, MetricBatch

DIGEST = Digest("a" * 64)
STATUS = ModelStatus(
    model="digits",
    live=SlotStatus(3, DIGEST, "openvino", "live", 0.0),
    slots=(),
    requests=7,
    errors=1,
    rejected=2,
    expired=3,
    queued=0,
    batch_limit=32,
    latency_ms=Served((1.0,), (5, 2), 9.0),
    batch_rows=Served((1.0,), (7, 0), 7.0),
    since=0.0,
)
PROVEN = Proven("digits", 3, Digest("b" * 64), "f", DIGEST, "openvino", (1,), accuracy=0.9, loss=0.3)


def test_a_models_figures_carry_the_digest_that_serves() -> None:
    samples = {sample.name: sample for sample in model_samples(STATUS, [PROVEN])}
    assert samples["requests_total"].value == 7
    assert samples["rejected_total"].value == 5
    assert samples["latency_ms"].value == Histogram((1.0,), (5, 2), 9.0)
    assert samples["accuracy"].value == 0.9
    assert all(sample.labels["digest"] == DIGEST for sample in samples.values())


def test_accuracy_of_another_graph_is_not_reported() -> None:
    other = Proven("digits", 2, DIGEST, "f", Digest("c" * 64), "openvino", (1,), accuracy=0.1)
    assert "accuracy" not in {sample.name for sample in model_samples(STATUS, [other])}


def names(last: LastTask) -> set[str]:
    return {sample.name for sample in last.samples}


def test_what_travelled_masked_does_not_follow_in_clear() -> None:
    measured = {"train_loss": 0.5, "eval_acc_before": 0.9, "drift": 0.2, "num-examples": 10}
    last = LastTask()
    last.learn("image-classifier", measured, secure=True)
    assert names(last) == {"drift_score"}
    last.learn("image-classifier", measured, secure=False)
    assert names(last) == {"drift_score", "train_loss", "eval_accuracy"}
    willing = LastTask(share_secure=True)
    willing.learn("image-classifier", measured, secure=True)
    assert names(willing) == {"drift_score", "train_loss", "eval_accuracy"}


def test_a_value_that_is_no_number_is_left_out() -> None:
    last = LastTask()
    last.learn("echo", {"loss": float("nan")}, secure=False)
    assert last.samples == ()


class Coordinator:
    """Stores batches, or is away."""

    def __init__(self) -> None:
        self.away = True
        self.stored: list[int] = []

    async def report(self, batches: Sequence[MetricBatch]) -> int:
        if self.away:
            raise Unavailable("away")
        self.stored += [batch.sequence for batch in batches]
        return batches[-1].sequence


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def sampler(journal: Journal, coordinator: Coordinator, limit: int = 100) -> Sampler:
    async def status() -> ServiceStatus:
        return ServiceStatus((STATUS,), 1, 0.0)

    return Sampler(
        journal,
        ManualClock(),
        status,
        lambda: Traffic(1, 2),
        coordinator.report,
        limit=limit,
        share_secure=False,
    )


async def test_batches_wait_on_disk_until_they_are_acknowledged(journal: Journal) -> None:
    coordinator = Coordinator()
    found = sampler(journal, coordinator)
    for _ in range(3):
        await found.sample()
        await found.flush()
    assert journal.spool_size() == 3
    coordinator.away = False
    await found.flush()
    await found.flush()
    assert coordinator.stored == [1, 2, 3]
    assert journal.spool_size() == 0


async def test_a_full_disk_under_a_report_ends_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageFull("no space left")

    coordinator = Coordinator()
    coordinator.away = False
    found = sampler(journal, coordinator)
    await found.sample()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "forget", full)
        await found.flush()
    assert journal.spool_size() == 1
    await found.flush()
    assert coordinator.stored == [1, 1]  # the coordinator counts a number once
    assert journal.spool_size() == 0


async def test_sampling_pauses_while_the_spool_is_full(journal: Journal) -> None:
    coordinator = Coordinator()
    found = sampler(journal, coordinator, limit=2)
    for _ in range(5):
        await found.sample()
    assert [batch.sequence for batch in journal.spooled(10)] == [1, 2]
