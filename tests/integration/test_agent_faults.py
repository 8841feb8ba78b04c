"""What a real agent does when its disk is full, when it is killed at a bad moment, and when something fails that nobody foresaw."""

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc.aio
import numpy as np
import pytest

from edge_agent import agent as agent_module
from edge_agent.inference.probe import Answer, Probe
from edge_agent.journal import InstallRecord, Journal
from edge_agent.link import credentials as credentials_module
from edge_agent.trainer.inline import InlineTrainer
from edge_agent.updater import updater as updater_module
from protos.fleet.v1 import blobs_pb2, blobs_pb2_grpc
from shared.errors import DeadlineExceeded, StorageFull, Unavailable
from shared.ids import CommandId, Digest, RolloutId, new_rollout_id
from shared.rpc_errors import typed_errors
from shared.session import Install, InstallReport, Renew, Withdraw
from shared.signing.identity import FleetVerifier
from shared.signing.receipts import verify_receipt
from tests.integration.agent_kit import (
    GATE,
    MODEL,
    Kit,
    Rollout,
    agent_serves,
    bundle,
    kit,
    serving,
    until,
    until_soon,
)
from tests.integration.test_agent_link import order, small


def full(*_: object, **__: object) -> NoReturn:
    raise StorageFull("no space left")


def failing_once(real: Callable[..., Any], error: Exception) -> tuple[list[Exception], Callable[..., Any]]:
    """What it raised, and a method that raises `error` the first time."""
    raised: list[Exception] = []

    def method(*arguments: object) -> object:
        if not raised:
            raised.append(error)
            raise error
        return real(*arguments)

    return raised, method


async def test_a_refused_withdrawal_is_not_carried_out_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusal could not be written any more; the order may not lie in the journal as one that was taken."""
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        with monkeypatch.context() as patch:
            async with k.agent():
                await k.attached()
                await k.receipt(k.install(1))
                tried: list[object] = []

                def decline(*_: object) -> NoReturn:
                    tried.append(1)
                    full()

                patch.setattr(Journal, "decline", decline)
                withdrawal = k.withdraw(1, signed=False)
                await until(lambda: bool(tried))
        async with k.agent() as agent:
            await k.attached()
            metadata = k.repository.bundle_of_metadata()
            again = Withdraw(withdrawal.id, MODEL, 1, metadata)
            k.front.hub.send(k.device.id, again, command_id=withdrawal.command)  # as it is when nothing answered it
            assert (await k.receipt(withdrawal)).state == "refused"
            assert await agent_serves(agent, 1)()


UNSIGNED: dict[str, tuple[int, Callable[[RolloutId, int], Install | Withdraw], str]] = {
    "a withdrawal": (1, lambda rollout, release: Withdraw(rollout, MODEL, release, {}), "was not withdrawn"),
    "an unknown release": (
        3,
        lambda rollout, release: Install(rollout, MODEL, release, {}, GATE),
        "is not in the signed",
    ),
    "other bytes": (2, lambda rollout, release: Install(rollout, MODEL, release, {}, GATE), "is not the one that was"),
}


@pytest.mark.parametrize("case", UNSIGNED)
async def test_an_order_in_the_journal_that_nobody_signed_is_refused(tmp_path: Path, case: str) -> None:
    """Whatever wrote it there: at a restart it is checked against the metadata that is trusted."""
    release, make, why = UNSIGNED[case]
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        k.publish(2, bundle(2.0))
        async with k.agent():
            await k.attached()
            await k.receipt(k.install(1))
        forged = Rollout(new_rollout_id(), CommandId("cmd-forged"), release)
        left_in_the_journal(k, forged, make(forged.id, release))
        async with k.agent() as agent:
            await k.attached()
            receipt = await k.receipt(forged)
            assert (receipt.state, why in receipt.reason) == ("refused", True)
            assert await agent_serves(agent, 1)()


def left_in_the_journal(k: Kit, rollout: Rollout, order: Install | Withdraw) -> None:
    """An order that looks like one that was verified before the agent died."""
    journal = Journal(k.home.journal)
    journal.begin(InstallRecord(rollout.command, order, Digest("a" * 64), 10))
    journal.close()


async def test_an_order_is_refused_while_no_release_metadata_is_trusted(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            await k.receipt(k.install(1))
        (k.home.trust / "current" / "targets.json").write_bytes(b"{}")
        left = Rollout(new_rollout_id(), CommandId("cmd-left"), 1)
        left_in_the_journal(k, left, Withdraw(left.id, MODEL, 1, {}))
        async with k.agent() as agent:
            await k.attached()
            receipt = await k.receipt(left)
            assert (receipt.state, "no release metadata" in receipt.reason) == ("refused", True)
            assert await agent_serves(agent, 1)()
            assert (await k.receipt(k.install(1))).state == "proven"  # new metadata mends it


async def test_the_way_back_does_not_lead_to_a_release_that_was_withdrawn_too(tmp_path: Path) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        await k.receipt(k.install(2))
        k.repository.withdraw(MODEL, 1, k.front.clock.now())  # while it was not serving
        receipt = await k.receipt(k.withdraw(2))
        assert (receipt.state, "was unloaded" in receipt.reason) == ("reverted", True)
        assert (await agent.status())["models"] == []


def failing_live(monkeypatch: pytest.MonkeyPatch, batch_rows: Callable[[int], bool], times: int) -> list[int]:
    """The live release fails this many of the requests with so many examples."""
    real = Probe.infer
    failed: list[int] = []

    async def infer(self: Probe, model: str, x: np.ndarray, version: str = "") -> Answer:
        if version == "" and batch_rows(len(x)) and len(failed) < times:
            failed.append(len(x))
            raise DeadlineExceeded("no answer in time")
        return await real(self, model, x, version)

    monkeypatch.setattr(Probe, "infer", infer)
    return failed


@pytest.mark.parametrize("alone", [False, True], ids=["in a batch", "alone"])
async def test_a_ruined_release_is_not_let_in_when_the_good_one_fails_one_request_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    async with serving(tmp_path, bundle(ruined=True)) as (k, agent):
        failed = failing_live(monkeypatch, lambda rows: (rows == 1) is alone, times=1)
        receipt = await k.receipt(k.install(2))
        assert failed
        assert (receipt.state, receipt.accuracy_before) == ("refused", 1.0)  # measured again
        assert "accuracy falls from 1.000" in receipt.reason
        assert await agent_serves(agent, 1)()


async def test_a_release_that_cannot_be_compared_is_never_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, bundle(ruined=True)) as (k, agent):
        failing_live(monkeypatch, lambda rows: rows > 1, times=10_000)
        receipt = await k.receipt(k.install(2))
        assert (receipt.state, receipt.answers) == ("failed", 0)
        assert "to be compared on" in receipt.reason
        assert await agent_serves(agent, 1)()


async def test_what_nobody_foresaw_fails_the_install_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_space(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "a password is in this text")

    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        k.publish(2, bundle(2.0))
        async with k.agent() as agent:
            await k.attached()
            await k.receipt(k.install(1))
            with monkeypatch.context() as patch:
                patch.setattr(InlineTrainer, "specialise", no_space)
                receipt = await k.receipt(k.install(2))
            assert (receipt.state, "password" in receipt.reason) == ("failed", False)
            assert await agent_serves(agent, 1)()
        async with k.agent() as agent:
            await k.attached()
            assert (await k.receipt(k.install(2))).state == "proven"


@pytest.mark.parametrize("write", ["begin", "decline", "prove", "end"])
async def test_an_order_waits_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr(updater_module, "_FULL_S", 0.01)
    async with kit(tmp_path) as k:
        k.ingest()
        k.publish(1, bundle())
        k.publish(2, bundle(ruined=True))
        raised, method = failing_once(getattr(Journal, write), StorageFull("no space left"))
        monkeypatch.setattr(Journal, write, method)
        async with k.agent() as agent:
            await k.attached()
            states = [(await k.receipt(one)).state for one in (k.install(1), k.withdraw(1, signed=False), k.install(2))]
            assert (states, len(raised)) == (["proven", "refused", "refused"], 1)
            assert await agent_serves(agent, 1)()


async def test_a_receipt_that_cannot_be_forgotten_is_acknowledged_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        raised, method = failing_once(Journal.acknowledge, StorageFull("no space left"))
        monkeypatch.setattr(Journal, "acknowledge", method)
        async with k.agent() as agent:
            await k.attached()
            await k.receipt(k.install(1))
            await until(lambda: bool(raised))
            (event,) = agent._parts.journal.outbox()
            k.acknowledge(event.event_id)
            await until(lambda: agent._parts.journal.outbox() == [])


async def test_a_full_disk_does_not_keep_an_agent_from_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            await k.receipt(k.install(1))
        monkeypatch.setattr(agent_module, "atomic_file", full)
        monkeypatch.setattr(Journal, "spool", full)
        monkeypatch.setattr(Journal, "forget", full)
        async with k.agent() as agent:
            await k.attached()
            await until_soon(agent_serves(agent, 1))
            task = order(small())
            k.front.hub.send(k.device.id, task)
            assert (await k.result(task.task_id)).error_code == 0


async def test_a_certificate_that_cannot_be_stored_is_asked_for_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[object] = []

    def no_space(*arguments: object) -> NoReturn:
        stored.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(credentials_module, "store_pair", no_space)
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        before = agent._link._credentials.identity.certificate
        k.front.hub.send(k.device.id, Renew())
        await until(lambda: bool(stored))
        task = order(small())
        k.front.hub.send(k.device.id, task)
        assert (await k.result(task.task_id)).error_code == 0
        assert agent._link._credentials.identity.certificate == before


async def test_a_receipt_signed_before_a_renewal_still_verifies_after_it(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        k.publish(1, bundle())
        await k.attached()
        rollout = k.install(1)
        await k.receipt(rollout, acknowledge=False)
        before = agent._link._credentials.identity.certificate
        k.front.hub.send(k.device.id, Renew())
        await until(lambda: len(reports(k, rollout)) == 2)  # at the session with the new certificate
        assert agent._link._credentials.identity.certificate != before
        verifier = FleetVerifier(k.front.authority.certificate_der, k.front.clock.now)
        for report in reports(k, rollout):
            assert report.certificate == before
            receipt = verify_receipt(verifier, report.receipt_json, report.signature, report.certificate, k.device.id)
            assert receipt.state == "proven"


def reports(k: Kit, rollout: Rollout) -> Sequence[InstallReport]:
    events = [event for _, _, event in k.front.recorder.events]
    return [one for one in events if isinstance(one, InstallReport) and one.command_id == rollout.command]


async def test_a_call_on_a_channel_that_was_closed_is_tried_again_later() -> None:
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    stub = blobs_pb2_grpc.BlobsStub(channel)
    await channel.close()
    with pytest.raises(Unavailable), typed_errors():
        await stub.Stat(blobs_pb2.StatRequest(digest="0" * 64))


async def test_a_call_whose_channel_is_closed_under_it_does_not_look_like_a_stop() -> None:
    channel = grpc.aio.insecure_channel("127.0.0.1:1", options=(("grpc.initial_reconnect_backoff_ms", 60_000),))
    stub = blobs_pb2_grpc.BlobsStub(channel)

    async def call() -> None:
        with typed_errors():
            await stub.Stat(blobs_pb2.StatRequest(digest="0" * 64), wait_for_ready=True)

    calling = asyncio.create_task(call())
    await asyncio.wait([calling], timeout=0.05)
    await channel.close()
    with pytest.raises(Unavailable):
        await calling
