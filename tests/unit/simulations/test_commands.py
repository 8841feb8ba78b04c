"""The output of the product's commands, made by the product's own renderer, as values."""

import json

import pytest

from coordinator.cli.render import to_plain
from protos.fleet.v1 import admin_pb2
from shared.errors import Malformed
from simulations import commands


def test_a_device_says_what_it_serves() -> None:
    message = admin_pb2.Device(id="dev-1", name="a", state="active", connected=True)
    message.models.add(model="digits", release=2, bundle_digest="d" * 64, proven=True)
    device = commands.device(json.loads(json.dumps(to_plain(message))))
    assert device.connected
    assert device.serves("digits") == commands.Serving("digits", 2, "d" * 64, True)
    assert device.serves("faces") is None


def test_a_round_keeps_its_devices_apart_by_outcome() -> None:
    message = admin_pb2.Round(job="job-1", round=3, attempt=1, state="COMMITTED", bytes_up=10, metrics={"loss": 0.5})
    message.devices.add(name="a", outcome="counted", bytes_up=6)
    message.devices.add(name="b", outcome="recovered", reason="gone", bytes_up=4)
    found = commands.round_(json.loads(json.dumps(to_plain(message))))
    assert (found.round, found.metrics, found.bytes_up) == (3, {"loss": 0.5}, 10)
    assert [one.name for one in found.with_outcome("counted")] == ["a"]
    assert found.with_outcome("recovered")[0].reason == "gone"


def test_a_rollout_holds_receipts_and_events() -> None:
    message = admin_pb2.Rollout(id="rol-1", model="digits", release=2, state="DONE", stage=3, stages=3)
    message.devices.add(name="a", stage=1, state="PROVEN", receipt_json='{"runtime": "openvino"}')
    message.devices.add(name="b", stage=2, state="PENDING")
    message.events.add(at=1.5, kind="stage", detail_json='{"stage": 1}')
    found = commands.rollout(json.loads(json.dumps(to_plain(message))))
    assert found.devices[0].receipt == {"runtime": "openvino"}
    assert found.devices[1].receipt == {}
    assert found.events == (commands.Event(1.5, 0, "stage", {"stage": 1}),)


def test_a_job_and_a_release_are_read() -> None:
    job = admin_pb2.Job(id="job-1", state="completed", rounds_committed=8, rounds_total=8, model="digits", release=2)
    assert commands.job(to_plain(job)).release == 2
    model = admin_pb2.Model(name="digits", release=2, bundle_digest="d" * 64, report_json='{"accuracy": 0.97}')
    model.files["weights.safetensors"] = 98_000
    found = commands.release(to_plain(model))
    assert found.files == {"weights.safetensors": 98_000}
    assert found.report == {"accuracy": 0.97}
    assert found.lineage == {}


def test_output_that_is_no_json_is_named() -> None:
    with pytest.raises(Malformed, match="coordinator job show did not print JSON"):
        commands.parsed("Traceback", "coordinator job show")
