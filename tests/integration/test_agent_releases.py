"""Releases on a real agent: verified, judged, swapped, proven, reported, and taken back."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_agent.inference.probe import Probe
from edge_agent.inference.process import InferenceProcess
from edge_agent.journal import Journal
from edge_agent.state import InstallEvent, InstallState
from edge_agent.storage import DataStore
from edge_agent.trainer.ports import SpecialiseRequest
from edge_agent.trainer.variant import Variant
from shared.ids import CommandId
from shared.session import Install, InstallReport
from tests.integration.agent_kit import (
    GATE,
    MODEL,
    agent_serves,
    bundle,
    examples,
    kit,
    serving,
    until,
    until_soon,
)


async def test_a_release_is_installed_proven_and_reported(tmp_path: Path) -> None:
    """What is served is told at once, not with the next heartbeat."""
    async with kit(tmp_path, heartbeat_s=300.0) as k:
        k.ingest()
        manifest = k.publish(1, bundle())
        async with k.agent() as agent:
            await k.attached()
            receipt = await k.receipt(k.install(1))
            assert (receipt.state, receipt.reason, receipt.bundle_digest) == ("proven", "", manifest.digest)
            assert receipt.accuracy_after == 1.0
            assert receipt.answers >= GATE.min_answers
            assert receipt.latency_after_ms is not None
            assert receipt.variant_digest == manifest.files["model.onnx"].digest
            status = await agent.status()
            assert status["models"][0]["proven"] is True
            await until(lambda: k.front.registry.device("cam-1").serving != ())
            assert k.front.registry.device("cam-1").serving[0].release == 1

            async def acknowledged() -> bool:
                return bool((await agent.status())["unacknowledged"] == 0)

            await until_soon(acknowledged)
    journal = Journal(k.home.journal)
    assert [record.state for record in journal.installs()] == [InstallState.REPORTED]
    assert journal.outbox() == []
    journal.close()


async def test_a_ruined_release_is_refused_and_the_good_one_goes_on_answering(tmp_path: Path) -> None:
    async with serving(tmp_path, bundle(ruined=True)) as (k, agent):
        receipt = await k.receipt(k.install(2))
        assert receipt.state == "refused"
        assert "accuracy falls from 1.000" in receipt.reason
        assert receipt.accuracy_before == 1.0
        assert receipt.accuracy_after is not None
        assert receipt.accuracy_after < 0.5
        models = (await agent.status())["models"]
        assert [(one["release"], one["proven"]) for one in models] == [(1, True)]
        slots = (await agent._parts.inference.slots.status()).model(MODEL)
        assert slots is not None
        assert [slot.version for slot in slots.slots] == [1]
        await until(lambda: len(list((k.home.models / MODEL).iterdir())) == 1)


async def test_examples_with_labels_that_the_model_lacks_are_left_out_of_judging_it(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        x, y = examples()
        y[::10] = 77
        DataStore(k.home.data).ingest(x, y)
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            receipt = await k.receipt(k.install(1, replace(GATE, requantize=True)))
            assert (receipt.state, receipt.accuracy_after) == ("proven", 1.0)


async def test_a_release_for_other_examples_than_this_devices_is_refused(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        chunk = DataStore(k.home.data).ingest(np.ones((9, 1, 2, 2), np.float32), np.zeros(9, np.int64)).chunk
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            receipt = await k.receipt(k.install(1))
            assert receipt.state == "refused"
            assert f"{chunk.id} has shape [1, 2, 2], the model takes [1, 4, 4]" in receipt.reason


async def test_a_better_release_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        probe = Probe(agent._parts.inference.address)
        x, _ = examples(1)
        seen: list[int] = []
        done = asyncio.Event()

        async def load() -> None:
            while not done.is_set():
                seen.append((await probe.infer(MODEL, x)).version)

        asking = asyncio.create_task(load())
        receipt = await k.receipt(k.install(2))
        done.set()
        await asking
        await probe.close()
        assert (receipt.state, receipt.accuracy_before, receipt.accuracy_after) == ("proven", 1.0, 1.0)
        assert sorted(seen) == seen  # never back
        assert set(seen) == {1, 2}
        await until(lambda: len(list((k.home.models / MODEL).iterdir())) == 2)


async def test_a_withdrawn_release_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        await k.receipt(k.install(2), acknowledge=False)  # the way back is still warm
        receipt = await k.receipt(k.withdraw(2))
        assert (receipt.state, receipt.reason) == ("reverted", "release 1 serves again")
        assert [one["release"] for one in (await agent.status())["models"]] == [1]
    async with k.agent() as agent:
        assert [one["release"] for one in (await agent.status())["models"]] == [1]


async def test_a_withdrawal_works_after_the_old_slot_was_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        await k.receipt(k.install(2))

        async def one_slot() -> bool:
            status = (await agent._parts.inference.slots.status()).model(MODEL)
            return status is not None and len(status.slots) == 1

        await until_soon(one_slot)
        assert (await k.receipt(k.withdraw(2))).state == "reverted"
        assert [one["release"] for one in (await agent.status())["models"]] == [1]


async def test_an_unsigned_withdrawal_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (k, agent):
        receipt = await k.receipt(k.withdraw(1, signed=False))
        assert receipt.state == "refused"
        assert "was not withdrawn" in receipt.reason
        assert [one["release"] for one in (await agent.status())["models"]] == [1]


async def test_rollback_to_an_older_release_is_refused(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.ingest()
        k.publish(1, bundle())
        k.publish(2, bundle(2.0))
        async with k.agent() as agent:
            await k.attached()
            await k.receipt(k.install(2))
            receipt = await k.receipt(k.install(1))
            assert receipt.state == "refused"
            assert "roll back" in receipt.reason
            assert [one["release"] for one in (await agent.status())["models"]] == [2]


async def test_metadata_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent() as agent:
            await k.attached()
            metadata = k.repository.bundle_of_metadata()
            forged = json.loads(metadata["timestamp.json"])
            forged["signed"]["version"] = 99
            metadata["timestamp.json"] = json.dumps(forged).encode()
            rollout = k.order(1, lambda rollout: Install(rollout, MODEL, 1, metadata, GATE))
            receipt = await k.receipt(rollout)
            assert receipt.state == "refused"
            assert "not signed by enough trusted keys" in receipt.reason
            assert (await agent.status())["models"] == []


async def test_a_blob_that_is_not_what_was_signed_is_refused(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        manifest = k.publish(1, bundle())
        k.front.lasting.path(manifest.files["model.onnx"].digest).write_bytes(b"something else")
        async with k.agent() as agent:
            await k.attached()
            receipt = await k.receipt(k.install(1))
            assert receipt.state == "refused"
            assert "do not match digest" in receipt.reason
            assert (await agent.status())["models"] == []
    assert not (k.home.models / MODEL).exists() or list((k.home.models / MODEL).iterdir()) == []


async def test_a_full_disk_refuses_the_release_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        monkeypatch.setattr("edge_agent.updater.install.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        receipt = await k.receipt(k.install(2))
        assert receipt.state == "refused"
        assert "free some" in receipt.reason
        assert [one["release"] for one in (await agent.status())["models"]] == [1]


async def test_a_device_without_examples_serves_what_it_is_given(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            receipt = await k.receipt(k.install(1, replace(GATE, requantize=True)))
            assert (receipt.state, receipt.accuracy_after) == ("proven", None)


async def test_an_order_that_comes_twice_is_carried_out_once(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent() as agent:
            await k.attached()
            rollout = k.install(1)
            await k.receipt(rollout)
            order = k.repository.bundle_of_metadata()
            k.front.hub.send(k.device.id, Install(rollout.id, MODEL, 1, order, GATE), command_id=rollout.command)
            later = k.withdraw(1, signed=False)
            await k.receipt(later)  # so the order before it was taken
            assert [one["rollout"] for one in (await agent.status())["installs"]] == [rollout.id, later.id]
            receipts = {kind for kind, _, event in k.front.recorder.events if isinstance(event, InstallReport)}
            assert len(receipts) == 2


async def test_a_release_that_serves_already_is_proven_again(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            first = await k.receipt(k.install(1))
            again = await k.receipt(k.install(1))
            assert (again.state, again.variant_digest) == ("proven", first.variant_digest)


async def test_a_restarted_agent_serves_before_it_reaches_the_coordinator(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with k.agent():
            await k.attached()
            await k.receipt(k.install(1), acknowledge=False)
    # the coordinator is gone
    async with k.agent() as agent:
        probe = Probe(agent._parts.inference.address)
        answer = await probe.infer(MODEL, np.zeros((1, 1, 4, 4), np.float32))
        assert answer.version == 1
        await probe.close()
        assert (await agent.status())["session"] != "attached"
        assert (await agent.status())["unacknowledged"] == 1


async def test_a_release_withdrawn_while_it_is_installed_never_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, bundle(2.0)) as (k, agent):
        begun, never = asyncio.Event(), asyncio.Event()

        async def endless(request: SpecialiseRequest) -> Variant:
            begun.set()
            await never.wait()
            raise AssertionError("unreachable")

        monkeypatch.setattr(agent._parts.trainer, "specialise", endless)
        install = k.install(2)
        await asyncio.wait_for(begun.wait(), 10)
        withdrawal = k.withdraw(2)
        receipt = await k.receipt(install)
        assert (receipt.state, receipt.reason) == ("reverted", "it was withdrawn while it was being installed")
        receipt = await k.receipt(withdrawal)
        assert (receipt.state, receipt.reason) == ("reverted", "it was not serving")
        assert [one["release"] for one in (await agent.status())["models"]] == [1]


@pytest.mark.slow
async def test_an_inference_service_that_dies_under_an_install_does_not_fail_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, bundle(2.0), inline=False) as (k, agent):
        journal, inference = agent._parts.journal, agent._parts.inference
        assert isinstance(inference, InferenceProcess)
        advance, killed = journal.advance, list[int]()

        def killing(command_id: CommandId, event: InstallEvent, reason: str = "") -> InstallState:
            """Once the variant is made, before it is loaded."""
            state = advance(command_id, event, reason)
            if state is InstallState.SPECIALISED and not killed:
                killed.append(inference.pid)
                os.kill(inference.pid, signal.SIGKILL)
            return state

        monkeypatch.setattr(journal, "advance", killing)
        install = k.install(2)
        receipt = await k.receipt(install, timeout_s=60)
        assert (receipt.state, receipt.accuracy_before, receipt.accuracy_after) == ("proven", 1.0, 1.0)
        assert killed
        assert inference.pid not in killed
        await until_soon(agent_serves(agent, 2))
