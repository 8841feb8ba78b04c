"""The agent's link on real sockets: tasks, breaks, refusals, certificates, metrics."""

import asyncio
import json
import os
import signal
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from edge_agent.client_app import memory
from edge_agent.inference.probe import Probe
from edge_agent.link.credentials import Credentials
from edge_agent.storage import DataStore
from protos.fleet.v1 import blobs_pb2, blobs_pb2_grpc
from shared.client_apps import app_names
from shared.clock import SystemClock
from shared.errors import DigestMismatch, NotFound
from shared.flower import decode_records, encode_records
from shared.ids import Digest, JobId, TaskId, digest_of, new_task_id
from shared.learning.profile import GENERIC_X86
from shared.session import CancelTask, Hello, Part, Renew, RunTask, TaskResult
from shared.signing.certificates import to_pem
from tests.integration.agent_kit import FAST, MODEL, Kit, agent_serves, bundle, examples, kit, until, until_soon


def order(
    *parts: Part, app: str = "echo", kind: str = "train", secure: bool = False, timeout_s: float = 60.0
) -> RunTask:
    task_id = new_task_id()
    return RunTask(task_id, JobId("job-1"), 7, 11, 1, task_id, kind, app, timeout_s, secure, parts)


def million(value: float = 1.0) -> bytes:
    weights = np.random.default_rng(int(value)).standard_normal(1_000_000).astype(np.float32)
    return encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(weights)})}))


def small() -> Part:
    return Part(inline=encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(3, np.float32))})})))


def endless(k: Kit) -> RunTask:
    """Training that takes longer than these tests wait."""
    DataStore(k.home.data).ingest(*examples(400))
    weight, bias = np.zeros((3, 16), np.float32), np.zeros(3, np.float32)
    arrays = ArrayRecord({"weight": Array(weight), "bias": Array(bias)})
    records = RecordDict({"arrays": arrays, "config": ConfigRecord({"epochs": 1000})})
    return order(Part(inline=encode_records(records)), app="softmax")


async def test_a_task_is_fetched_run_and_answered_by_digest(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        blob = million()
        part = Part(digest=k.front.lasting.write(blob))
        async with k.agent():
            await k.attached()
            task = order(part)
            k.front.hub.send(k.device.id, task)
            result = await k.result(task.task_id)
            assert (result.error_code, result.error_reason) == (0, "")
            content = RecordDict()
            for piece in result.parts:
                content.update(decode_records(piece.inline or k.front.inbox.read(Digest(piece.digest or ""))))
            sent, found = (one.array_records["arrays"]["w"].numpy() for one in (decode_records(blob), content))
            np.testing.assert_array_equal(found, sent)
            await until(lambda: not list(k.home.outgoing.glob("[0-9a-f]*/*")))  # acknowledged, so forgotten


async def test_at_its_start_a_device_tells_its_profile_and_client_apps_and_sweeps_half_written_examples(
    tmp_path: Path,
) -> None:
    async with kit(tmp_path) as k:
        k.ingest()
        (chunk,) = DataStore(k.home.data).chunks()
        halves = [k.home.data / f".{chunk.name}.0011.tmp", k.home.state / "app" / f".{memory.FILE}.0011.tmp"]
        halves[1].parent.mkdir()
        for half in halves:
            half.write_bytes(b"half")
        async with k.agent():
            await k.attached()
            assert [half for half in halves if half.exists()] == []
            assert chunk.path.exists()
            hello = await k.hello()
            told = json.loads(hello.profile_json)
            assert told.pop("client_apps") == app_names()
            assert told == json.loads(json.dumps(asdict(GENERIC_X86)))
            assert json.loads(k.front.registry.device("cam-1").profile_json)["client_apps"] == app_names()


async def test_a_plain_task_is_refused_by_a_device_that_wants_secrecy(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent(replace(FAST, require_secure=True)):
        await k.attached()
        task = order(small())
        k.front.hub.send(k.device.id, task)
        result = await k.result(task.task_id)
        assert "secure aggregation only" in result.error_reason
        assert result.parts == ()


async def test_an_answer_is_repeated_until_it_is_acknowledged(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        task = order(small())
        k.front.hub.send(k.device.id, task)

        def answers() -> list[str]:
            return [
                kind
                for kind, _, event in k.front.recorder.events
                if isinstance(event, TaskResult) and event.task_id == task.task_id
            ]

        await until(lambda: len(answers()) == 1)
        k.front.hub._end(k.front.hub._streams[k.device.id], None)  # the session breaks
        await until(lambda: len(answers()) == 2)
        hello = [event for kind, _, event in k.front.recorder.events if kind == "attached"][-1]
        assert isinstance(hello, Hello)
        assert hello.running_tasks == (task.task_id,)
        assert len(set(answers())) == 1
        k.acknowledge(answers()[0])
        await until(lambda: agent._tasks.running == ())
        k.front.hub.send(k.device.id, task)  # known: not run again
        await k.attached()
        k.front.hub._end(k.front.hub._streams[k.device.id], None)
        await until(lambda: len([1 for kind, _, _ in k.front.recorder.events if kind == "attached"]) == 3)
        assert len(answers()) == 2


async def test_a_cancelled_task_gives_way_to_the_next(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent(inline=False) as agent:
        await k.attached()
        long, short = endless(k), order(small())
        k.front.hub.send(k.device.id, long)
        await until(lambda: agent._tasks._current == long.task_id)
        k.front.hub.send(k.device.id, short)
        k.front.hub.send(k.device.id, CancelTask(long.task_id))
        assert (await k.result(short.task_id)).error_code == 0
        assert not any(
            isinstance(event, TaskResult) and event.task_id == long.task_id for _, _, event in k.front.recorder.events
        )


async def test_a_trainer_that_is_killed_costs_one_task_and_no_request(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.ingest()
        k.publish(1, bundle())
        async with k.agent(inline=False) as agent:
            await k.attached()
            await k.receipt(k.install(1))
            probe = Probe(agent._parts.inference.address)
            long, short = endless(k), order(small())
            k.front.hub.send(k.device.id, long)
            trainer = agent._parts.trainer
            await until(lambda: agent._tasks._current == long.task_id and bool(trainer.pid))  # type: ignore[attr-defined]
            asking = asyncio.create_task(_ask(probe, 50))
            os.kill(trainer.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            result = await k.result(long.task_id)
            assert result.error_code != 0
            assert "died" in result.error_reason
            assert await asking == 50
            k.front.hub.send(k.device.id, short)
            assert (await k.result(short.task_id)).error_code == 0
            await probe.close()


async def _ask(probe: Probe, count: int) -> int:
    x, _ = examples(1)
    for _ in range(count):
        await probe.infer(MODEL, x)
    return count


async def test_a_killed_inference_service_comes_back_serving(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent(inline=False) as agent:
            await k.attached()
            await k.receipt(k.install(1))
            os.kill(agent._parts.inference.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            await until(lambda: agent._parts.inference.restarts == 1)  # type: ignore[attr-defined]
            await until_soon(agent_serves(agent, 1))
            probe = Probe(agent._parts.inference.address)
            assert await _ask(probe, 3) == 3
            await probe.close()


async def test_a_revoked_device_goes_on_serving_and_says_why(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent() as agent:
            await k.attached()
            await k.receipt(k.install(1))
            device = k.front.registry.revoke("cam-1", "test", "stolen")
            k.front.hub.device_changed(device)
            await until(lambda: agent._link.state.value == "barred")
            assert "was revoked" in agent._link.reason
            probe = Probe(agent._parts.inference.address)
            assert await _ask(probe, 3) == 3
            await probe.close()


async def test_a_certificate_is_renewed_without_a_restart_and_the_old_one_dies(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        before = Credentials(k.home.identity, SystemClock()).identity
        old_key, old_certificate = before.key_pem, before.certificate
        k.front.hub.send(k.device.id, Renew())
        await until(lambda: Credentials(k.home.identity, SystemClock()).identity.certificate != old_certificate)
        await until(lambda: len([1 for kind, _, _ in k.front.recorder.events if kind == "attached"]) == 2)
        task = order(small())
        await k.attached()
        k.front.hub.send(k.device.id, task)
        assert (await k.result(task.task_id)).error_code == 0
        assert agent._link.state.value == "attached"
        credentials = grpc.ssl_channel_credentials(
            to_pem(k.front.authority.certificate_der), old_key, to_pem(old_certificate)
        )
        async with grpc.aio.secure_channel(f"localhost:{k.front.fleet_port}", credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await blobs_pb2_grpc.BlobsStub(channel).Stat(blobs_pb2.StatRequest(digest="0" * 64))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(list(k.home.identity.glob("pair-*"))) == 1


async def test_a_download_resumes_where_it_stopped(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        blob = million()
        digest = k.front.lasting.write(blob)
        cache = agent._link.transfers.cache.blobs
        cache.append(digest, 0, blob[:3_000_000])
        paths = await asyncio.gather(*(agent._link.fetch(digest) for _ in range(5)))
        assert len(set(paths)) == 1
        assert paths[0].read_bytes() == blob
        assert agent._link.transfers.received_bytes < len(blob) / 2


async def test_an_upload_resumes_where_it_stopped(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        blob = million(2)
        file = tmp_path / "update"
        file.write_bytes(blob)
        digest = digest_of(blob)
        k.front.inbox.append(digest, 0, blob[:3_000_000], sender=k.device.id)
        await agent._link.transfers._upload(file, digest, TaskId("tsk-1"), -1)
        assert k.front.inbox.read(digest) == blob
        assert agent._link.transfers.sent_bytes < len(blob) / 2
        await agent._link.put(file, digest, TaskId("tsk-1"))  # again: nothing to do


async def test_a_blob_that_the_coordinator_spoiled_is_not_believed(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        digest = k.front.lasting.write(b"what was meant")
        k.front.lasting.path(digest).write_bytes(b"what is sent")
        with pytest.raises(DigestMismatch):
            await agent._link.fetch(digest)
        with pytest.raises(NotFound):
            await agent._link.fetch(Digest("0" * 64))
        assert not agent._link.transfers.cache.blobs.has(digest)


async def test_metrics_arrive_once_each_across_restarts(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.ingest()
        k.publish(1, bundle())
        for _ in range(2):
            async with k.agent():
                await k.attached()
                await k.receipt(k.install(1))
                await _two_more_batches(k)
        batch = k.front.metrics.latest()[k.device.id]
        names = {sample.name for sample in batch.samples}
        assert {
            "requests_total",
            "errors_total",
            "latency_ms",
            "batch_size",
            "accuracy",
            "loss",
            "rss_bytes",
            "cpu_seconds_total",
            "sent_bytes_total",
            "received_bytes_total",
        } <= names
        digest = next(sample.labels["digest"] for sample in batch.samples if sample.name == "accuracy")
        assert len(digest) == 64


async def _two_more_batches(k: Kit) -> None:
    def newest() -> int:
        batch = k.front.metrics.latest().get(k.device.id)
        return batch.sequence if batch else 0

    seen = newest()
    await until(lambda: newest() > seen + 1)


@pytest.mark.slow
async def test_the_cost_of_a_task_is_small(tmp_path: Path) -> None:
    """A million parameters there and back, through the real trainer process."""
    async with kit(tmp_path) as k, k.agent(inline=False):
        await k.attached()
        times = []
        for number in range(6):
            part = Part(digest=k.front.lasting.write(million(number)))
            task = order(part)
            begun = time.perf_counter()
            k.front.hub.send(k.device.id, task)
            assert (await k.result(task.task_id)).error_code == 0
            times.append(time.perf_counter() - begun)
        print(f"a task of 4 MB: {statistics.median(times[1:]) * 1e3:.0f} ms")
        assert statistics.median(times[1:]) < 1.0
