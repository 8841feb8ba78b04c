"""The trainer's child process: what it costs, what it may take, and a secret sum through three of them."""

import asyncio
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import AppRun, SecureGrid
from edge_agent.config import Home
from edge_agent.ledger import FileLedgers
from edge_agent.link.credentials import store_identity
from edge_agent.storage import DataStore
from edge_agent.trainer.ports import REFUSED, LocalTask, Piece
from edge_agent.trainer.process import Limits, ProcessTrainer
from edge_agent.trainer.worker import WorkerSettings
from shared.blobs import FolderBlobs
from shared.clock import SystemClock
from shared.errors import RoundAborted
from shared.flower import decode_records, encode_records, reply_error, reply_with, stamp
from shared.ids import TaskId
from shared.secagg.private import Mechanism, Privacy
from shared.signing.certificates import Authority
from shared.signing.identity import DeviceIdentity, FleetVerifier
from simulations.local_grid import AnsweringGrid
from tests.integration.agent_kit import examples

RUN_ID = 7
SMALL = encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(3, np.float32))})}))


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", SystemClock().now())


def device(folder: Path, name: str, authority: Authority) -> WorkerSettings:
    home = folder / name
    identity = home / "identity"
    own = DeviceIdentity.create(authority, name, now=SystemClock().now(), valid_for_s=1000.0)
    store_identity(identity, own, authority.certificate_der)
    return WorkerSettings(home, identity, home / "data", home / "state", home / "out")


def echo(number: int, *pieces: Piece) -> LocalTask:
    task_id = TaskId(f"tsk-{number}")
    return LocalTask(task_id, RUN_ID, 1, task_id, "train", "echo", False, 60.0, pieces)


async def test_it_runs_niced_and_capped_behind_a_socket_of_its_own(tmp_path: Path, authority: Authority) -> None:
    trainer = ProcessTrainer(tmp_path / "t.sock", device(tmp_path, "dev-1", authority), Limits(memory_mib=700))
    outcome = await trainer.run(echo(1, Piece(inline=SMALL)))
    try:
        assert outcome.error_code == 0
        assert trainer.pid is not None
        process = psutil.Process(trainer.pid)
        assert process.nice() == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
        assert process.rlimit(psutil.RLIMIT_DATA)[0] == 700 << 20
        assert (tmp_path / "t.sock").stat().st_mode & 0o077 == 0
        assert not any("torch" in Path(found.path).name for found in process.memory_maps())
    finally:
        await trainer.release()
    assert trainer.pid is None


async def test_a_task_that_wants_too_much_memory_costs_that_task(tmp_path: Path, authority: Authority) -> None:
    trainer = ProcessTrainer(tmp_path / "t.sock", device(tmp_path, "dev-1", authority), Limits(memory_mib=300))
    blobs = FolderBlobs(tmp_path / "in", durable=False)
    large = encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(40_000_000, np.float32))})}))
    try:
        path = blobs.path(blobs.write(large))
        outcome = await trainer.run(echo(1, Piece(path=path)))
        assert outcome.error_code != 0
        assert "MemoryError" in outcome.error_reason or "died" in outcome.error_reason
        assert (await trainer.run(echo(2, Piece(inline=SMALL)))).error_code == 0
    finally:
        await trainer.release()


LOUD = """
from flwr.app import MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from shared.flower import reply_with

def build(mods):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        for _ in range(60):
            print("x" * 10_000, flush=True)
        return reply_with(message, RecordDict({"metrics": MetricRecord({"num-examples": 1})}))

    return app
"""


async def test_an_app_that_prints_a_lot_is_not_held_up(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the trainer's standard output once it is ready; a pipe holds 64 KiB."""
    installed = tmp_path / "site" / "loud-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[shoal.client_apps]\nloud = loud:build\n")
    (installed.parent / "loud.py").write_text(LOUD)
    monkeypatch.setenv("PYTHONPATH", str(installed.parent))
    trainer = ProcessTrainer(tmp_path / "t.sock", device(tmp_path, "dev-1", authority), Limits())
    records = encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(3, np.float32))})}))
    try:
        task = replace(echo(1, Piece(inline=records)), client_app="loud", timeout_s=30.0)
        outcome = await trainer.run(task)
        assert (outcome.error_code, outcome.error_reason) == (0, "")
    finally:
        await trainer.release()


@pytest.mark.slow
async def test_four_megabytes_there_and_back_cost_milliseconds(tmp_path: Path, authority: Authority) -> None:
    trainer = ProcessTrainer(tmp_path / "t.sock", device(tmp_path, "dev-1", authority), Limits())
    blobs = FolderBlobs(tmp_path / "in", durable=False)
    weights = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    path = blobs.path(blobs.write(encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(weights)})}))))
    times = []
    try:
        for number in range(15):
            begun = time.perf_counter()
            outcome = await trainer.run(echo(number, Piece(path=path)))
            times.append(time.perf_counter() - begun)
            assert outcome.error_code == 0
    finally:
        await trainer.release()
    print(f"4 MB echo through the trainer: {statistics.median(times[2:]) * 1e3:.1f} ms")
    assert statistics.median(times[2:]) < 0.25  # 12 ms on an idle machine; this only catches a cost of another kind


class TrainerGrid(AnsweringGrid):
    """Flower's Grid on real trainers. Called from a thread, it runs tasks on the event loop."""

    run_id = RUN_ID

    def __init__(self, trainers: dict[int, ProcessTrainer], loop: asyncio.AbstractEventLoop) -> None:
        self._trainers = trainers
        self._loop = loop
        self._tasks = 0
        self.sent: list[bytes] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self._trainers)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            self._tasks += 1
            stamp(message, run_id=RUN_ID, message_id=f"tsk-{self._tasks}")
            future = asyncio.run_coroutine_threadsafe(self._ask(message), self._loop)
            yield future.result(60)

    async def _ask(self, message: Message) -> Message:
        meta = message.metadata
        task = LocalTask(
            task_id=TaskId(meta.message_id),
            run_id=RUN_ID,
            node_id=meta.dst_node_id,
            message_id=meta.message_id,
            message_type=meta.message_type,
            client_app="softmax",
            secure=True,
            timeout_s=60.0,
            pieces=(Piece(inline=encode_records(message.content)),),
        )
        outcome = await self._trainers[meta.dst_node_id].run(task)
        if outcome.error_code:
            return reply_error(message, outcome.error_code, outcome.error_reason)
        content = RecordDict()
        for piece in outcome.pieces:
            data = piece.inline or (piece.path.read_bytes() if piece.path else b"")
            self.sent.append(data)
            content.update(decode_records(data))
        return reply_with(message, content)


@pytest.mark.slow
async def test_three_trainers_add_up_in_secret(tmp_path: Path, authority: Authority) -> None:
    """The real certificates, processes and mod: the sums come out, and no single update left a process. The second sum is of the
    same group, whose keys the processes still have; one that was started anew has none.
    """
    trainers = {}
    for node in (1, 2, 3):
        settings = device(tmp_path, f"dev-{node}", authority)
        x, y = examples(60 * node)
        DataStore(settings.data).ingest(x[: 30 * node], y[: 30 * node])
        trainers[node] = ProcessTrainer(tmp_path / f"{node}.sock", settings, Limits(memory_mib=1024))
    inner = TrainerGrid(trainers, asyncio.get_running_loop())
    metrics = {"train_loss": (0.0, 100.0), "eval_acc_before": (0.0, 1.0), "eval_loss_before": (0.0, 100.0)}
    verifier = FleetVerifier(authority.certificate_der, SystemClock().now)
    grid = SecureGrid(inner, SecureConfig(train_metrics=metrics), verifier, app=AppRun("softmax"))
    arrays = {"weight": Array(np.zeros((3, 16), np.float32)), "bias": Array(np.zeros(3, np.float32))}

    def messages() -> list[Message]:
        content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"server-round": 1})})
        return [grid.create_message(content, "train", node, "") for node in trainers]

    try:
        (reply,) = await asyncio.to_thread(lambda: list(grid.send_and_receive(messages())))
        assert not reply.has_error()
        weight = reply.content.array_records["arrays"]["weight"].numpy()
        assert 0 < float(np.abs(weight).max()) < 8
        counted = [DataStore(tmp_path / f"dev-{node}" / "data").split().train_y.size for node in trainers]
        assert reply.content.metric_records["metrics"]["num-examples"] == sum(counted)
        names = [name for data in inner.sent for name in decode_records(data)]
        assert "arrays" not in names
        assert "metrics" not in names
        arrays["weight"] = reply.content.array_records["arrays"]["weight"]
        (reply,) = await asyncio.to_thread(lambda: list(grid.send_and_receive(messages())))
        assert reply.content.metric_records["metrics"]["num-examples"] == sum(counted)
        phases = [
            str(record["phase"]) for data in inner.sent for record in decode_records(data).config_records.values()
        ]
        assert (phases.count("keys"), phases.count("masked")) == (3, 6)
        await trainers[2].release()
        with pytest.raises(RoundAborted, match="only 2 devices sent vectors"):
            await asyncio.to_thread(lambda: list(grid.send_and_receive(messages())))
        (reply,) = await asyncio.to_thread(lambda: list(grid.send_and_receive(messages())))
        assert reply.content.metric_records["metrics"]["num-examples"] == sum(counted)
    finally:
        for trainer in trainers.values():
            await trainer.release()


@pytest.mark.slow
async def test_three_trainers_add_noise_of_their_own_and_keep_account_on_disk(
    tmp_path: Path, authority: Authority
) -> None:
    """The real processes, with a budget that one of them keeps to itself: it outlives them, and ends what it does not allow."""
    trainers, homes = {}, {}
    for node in (1, 2, 3):
        settings = replace(device(tmp_path, f"dev-{node}", authority), max_epsilon=4.0 if node == 1 else 0.0)
        DataStore(settings.data).ingest(*examples(30 * node))
        homes[node] = settings
        trainers[node] = ProcessTrainer(tmp_path / f"{node}.sock", settings, Limits(memory_mib=1024))
    inner = TrainerGrid(trainers, asyncio.get_running_loop())
    verifier = FleetVerifier(authority.certificate_der, SystemClock().now)
    privacy = Privacy(Mechanism.DISTRIBUTED, 3.0, 1e-6, 1.0, 1, 0.1)
    config = SecureConfig(privacy=privacy, feedback=False)
    arrays = {"weight": Array(np.zeros((3, 16), np.float32)), "bias": Array(np.zeros(3, np.float32))}

    def ask() -> RecordDict:
        grid = SecureGrid(inner, config, verifier, app=AppRun("softmax"))
        content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"server-round": 1})})
        (reply,) = grid.send_and_receive([grid.create_message(content, "train", node, "") for node in trainers])
        return reply.content

    def spent(node: int) -> list[int]:
        ledgers = FileLedgers(Home(homes[node].home).ledger, DataStore(homes[node].data).epochs)
        assert set(ledgers.read()) == ledgers.epochs()
        return [len(ledger.spends) for ledger in ledgers.read().values()]

    try:
        content = await asyncio.to_thread(ask)
        assert dict(content.metric_records["metrics"]) == {"num-examples": 3}
        assert [spent(node) for node in trainers] == [[1], [1], [1]]
        await trainers[1].release()
        with pytest.raises(RoundAborted):
            await asyncio.to_thread(ask)
        assert [spent(node) for node in trainers] == [[1], [1], [1]]
    finally:
        for trainer in trainers.values():
            await trainer.release()


async def test_a_device_with_a_budget_trains_for_nobody_who_adds_no_noise(tmp_path: Path, authority: Authority) -> None:
    settings = replace(device(tmp_path, "dev-1", authority), max_epsilon=4.0)
    trainer = ProcessTrainer(tmp_path / "t.sock", settings, Limits())
    try:
        outcome = await trainer.run(echo(1, Piece(inline=SMALL)))
        assert outcome.error_code == REFUSED
    finally:
        await trainer.release()
