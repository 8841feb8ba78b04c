"""The trainer's port, on a child process and inside this one."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from edge_agent.link.credentials import store_identity
from edge_agent.storage import DataStore
from edge_agent.trainer import ports
from edge_agent.trainer.inline import InlineTrainer
from edge_agent.trainer.ports import LocalTask, Piece, SignedFile, SpecialiseRequest, TaskOutcome, TrainerPort
from edge_agent.trainer.process import Limits, ProcessTrainer
from edge_agent.trainer.worker import WorkerSettings
from shared.blobs import FolderBlobs, hash_file
from shared.bundle import inspect_bundle, write_bundle
from shared.clock import SystemClock
from shared.errors import DigestMismatch
from shared.flower import decode_records, encode_records
from shared.ids import Digest, TaskId
from shared.secagg.messages import RECORD
from shared.session import NODE_UNAVAILABLE, Gate
from shared.signing.certificates import Authority
from shared.signing.identity import DeviceIdentity
from tests.integration.agent_kit import bundle, examples

MEMORY_MIB = 1024


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """A device's folders, with a key and a certificate."""
    identity, now = tmp_path / "identity", SystemClock().now()
    authority = Authority.create("test", now)
    own = DeviceIdentity.create(authority, "dev-1", now=now, valid_for_s=1000.0)
    store_identity(identity, own, authority.certificate_der)
    return WorkerSettings(tmp_path, identity, tmp_path / "data", tmp_path / "state", tmp_path / "out")


@pytest.fixture(params=["process", "inline"])
async def trainer(
    request: pytest.FixtureRequest, settings: WorkerSettings, tmp_path: Path
) -> AsyncIterator[TrainerPort]:
    found: TrainerPort
    if request.param == "inline":
        found = InlineTrainer(settings)
    else:
        found = ProcessTrainer(tmp_path / "t.sock", settings, Limits(MEMORY_MIB))
    yield found
    await found.release()


def task(*pieces: Piece, number: int = 1, app: str = "echo", kind: str = "train", secure: bool = False) -> LocalTask:
    task_id = TaskId(f"tsk-{number}")
    return LocalTask(task_id, 7, 11, task_id, kind, app, secure, 60.0, pieces)


def content(outcome: TaskOutcome) -> RecordDict:
    found = RecordDict()
    for piece in outcome.pieces:
        found.update(decode_records(piece.inline if piece.path is None else piece.path.read_bytes()))
    return found


def arrays(count: int) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(count, dtype=np.float32))})})


def softmax(epochs: int) -> Piece:
    weight, bias = np.zeros((3, 16), np.float32), np.zeros(3, np.float32)
    records = RecordDict(
        {
            "arrays": ArrayRecord({"weight": Array(weight), "bias": Array(bias)}),
            "config": ConfigRecord({"epochs": epochs, "server-round": 1}),
        }
    )
    return Piece(inline=encode_records(records))


def endless(settings: WorkerSettings) -> LocalTask:
    """Training that takes longer than these tests wait."""
    DataStore(settings.data).ingest(*examples(2000))
    return task(softmax(1000), app="softmax")


async def test_it_runs_an_app_on_what_was_sent(trainer: TrainerPort) -> None:
    outcome = await trainer.run(task(Piece(inline=encode_records(arrays(3)))))
    assert outcome.error_code == 0
    np.testing.assert_array_equal(content(outcome).array_records["arrays"]["w"].numpy(), [0, 1, 2])
    assert outcome.metrics == {"num-examples": 1.0}


async def test_pieces_join_into_one_message_and_large_ones_travel_as_files(
    trainer: TrainerPort, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path / "in")
    large = blobs.write(encode_records(arrays(50_000)))
    small = RecordDict(
        {"config": ConfigRecord({"spread": 0.0}), "other": ArrayRecord({"b": Array(np.ones(2, np.float32))})}
    )
    outcome = await trainer.run(task(Piece(path=blobs.path(large)), Piece(inline=encode_records(small))))
    found = content(outcome)
    assert found.array_records["arrays"]["w"].numpy().size == 50_000
    assert found.array_records["other"]["b"].numpy().size == 2
    files = [piece for piece in outcome.pieces if piece.path is not None]
    assert len(files) == 1
    assert files[0].path is not None
    assert hash_file(files[0].path) == files[0].digest


async def test_an_unknown_app_is_an_error_code_and_names_what_there_is(trainer: TrainerPort) -> None:
    outcome = await trainer.run(task(Piece(inline=encode_records(arrays(1))), app="no-such-app"))
    assert outcome.error_code == ports.APP_NOT_LOADED
    assert "echo" in outcome.error_reason


async def test_bytes_that_are_no_records_cost_one_task(trainer: TrainerPort) -> None:
    outcome = await trainer.run(task(Piece(inline=b"junk")))
    assert outcome.error_code == ports.APP_RAISED
    assert "not a record blob" in outcome.error_reason
    assert (await trainer.run(task(Piece(inline=encode_records(arrays(1))), number=2))).error_code == 0


@pytest.mark.parametrize("kind", ["train", "evaluate"])
async def test_plain_content_in_a_secure_task_is_refused(trainer: TrainerPort, kind: str) -> None:
    outcome = await trainer.run(task(Piece(inline=encode_records(arrays(3))), kind=kind, secure=True))
    assert outcome.error_code == ports.REFUSED
    assert "secure aggregation" in outcome.error_reason
    assert outcome.pieces == ()


async def test_a_malformed_secure_aggregation_message_never_reaches_the_app(trainer: TrainerPort) -> None:
    records = arrays(3)
    records[RECORD] = ConfigRecord({"phase": "keys", "round_id": "r"})
    outcome = await trainer.run(task(Piece(inline=encode_records(records)), secure=True))
    assert outcome.error_code == ports.REFUSED
    assert outcome.metrics == {}


async def test_what_an_app_raises_is_not_quoted_to_the_coordinator(trainer: TrainerPort) -> None:
    outcome = await trainer.run(
        task(Piece(inline=encode_records(arrays(1))), kind="query")
    )  # echo has no such function
    assert outcome.error_code == ports.APP_RAISED
    assert outcome.error_reason == "the app raised ValueError; see the device's log"


async def test_an_app_learns_from_this_devices_examples(trainer: TrainerPort, settings: WorkerSettings) -> None:
    DataStore(settings.data).ingest(*examples(200))
    outcome = await trainer.run(task(softmax(3), app="softmax"))
    assert outcome.error_code == 0, outcome.error_reason
    assert outcome.metrics["num-examples"] > 100
    assert float(np.abs(content(outcome).array_records["arrays"]["weight"].numpy()).max()) > 0


async def test_a_task_over_its_deadline_is_ended_and_the_next_one_runs(
    trainer: TrainerPort, settings: WorkerSettings
) -> None:
    await trainer.run(task(Piece(inline=encode_records(arrays(1)))))  # so that it is up
    outcome = await trainer.run(replace(endless(settings), timeout_s=0.1))
    assert outcome.error_code == NODE_UNAVAILABLE
    assert "0.1 s" in outcome.error_reason
    if isinstance(trainer, ProcessTrainer):  # a thread cannot be stopped, so there the next task would wait for it
        assert (await trainer.run(task(Piece(inline=encode_records(arrays(1))), number=2))).error_code == 0


async def test_a_task_that_nobody_waits_for_is_stopped(trainer: TrainerPort, settings: WorkerSettings) -> None:
    await trainer.run(task(Piece(inline=encode_records(arrays(1)))))  # so that it is up
    running = asyncio.create_task(trainer.run(endless(settings)))
    await asyncio.wait([running], timeout=0.1)
    assert not running.done()
    async with asyncio.timeout(5):
        running.cancel()
        await asyncio.wait([running])
    assert running.cancelled()
    if isinstance(trainer, ProcessTrainer):  # a thread cannot be stopped, so there the next task would wait for it
        assert (await trainer.run(task(Piece(inline=encode_records(arrays(1))), number=2))).error_code == 0


async def test_a_task_that_is_taken_back_before_its_turn_is_never_run(
    trainer: TrainerPort, settings: WorkerSettings, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path / "in")
    large = Piece(path=blobs.path(blobs.write(encode_records(arrays(50_000)))))  # echoed, it would leave a file
    small = Piece(inline=encode_records(arrays(1)))
    before, back, after = (
        asyncio.create_task(trainer.run(task(piece, number=number)))
        for number, piece in enumerate((small, large, small))
    )
    await asyncio.sleep(0)  # they stand in line now
    back.cancel()
    assert [outcome.error_code for outcome in await asyncio.gather(before, after)] == [0, 0]
    assert back.cancelled()
    assert not [path for path in settings.outgoing.rglob("*") if path.is_file()]


async def test_a_trainer_that_was_let_go_comes_back(trainer: TrainerPort) -> None:
    await trainer.run(task(Piece(inline=encode_records(arrays(1)))))
    await trainer.release()
    await trainer.release()
    assert (await trainer.run(task(Piece(inline=encode_records(arrays(1))), number=2))).error_code == 0


async def test_it_makes_a_release_fit_the_device(
    trainer: TrainerPort, settings: WorkerSettings, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", bundle())
    files = {name: SignedFile(entry.digest, entry.size) for name, entry in inspect_bundle(tmp_path / "bundle").items()}
    gate = Gate(requantize=False)
    request = SpecialiseRequest(tmp_path / "bundle", tmp_path / "variant", gate, 1, 0, 60.0, files)
    variant = await trainer.specialise(request)
    assert variant.digest == files["model.onnx"].digest
    assert variant.runtime in ("onnxruntime", "openvino")
    assert (tmp_path / "variant" / "model.onnx").exists()
    forged = {**files, "model.onnx": SignedFile(Digest("0" * 64), 1)}
    with pytest.raises(DigestMismatch):
        await trainer.specialise(replace(request, out_dir=tmp_path / "again", files=forged))
    assert not (tmp_path / "again").exists()


def test_error_codes_are_flowers() -> None:
    from flwr.common.constant import ErrorCode

    assert ports.APP_NOT_LOADED == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
    assert ports.APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert NODE_UNAVAILABLE == ErrorCode.NODE_UNAVAILABLE
    assert ports.REFUSED == ErrorCode.MOD_FAILED_PRECONDITION
    assert ports.APP_CRASHED == ErrorCode.CLIENT_APP_CRASHED
