"""The load generator against real inference services on loopback, one of which is killed and comes back elsewhere."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from simulations.answers import Answers, Outcome, load_answers
from simulations.data import Dataset
from simulations.loadgen import Load, LoadPlan, Target
from simulations.processes import read_ready
from simulations.shards import write_shard

# Answers with the label that the first pixel gives away, except where it is told to answer nonsense.
SERVICE = """
import json, os, sys
from concurrent import futures
import grpc, numpy as np
from protos import inference_pb2 as v2
from protos.inference_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

class Service(GRPCInferenceServiceServicer):
    def ModelMetadata(self, request, context):
        reply = v2.ModelMetadataResponse(name=request.name)
        reply.inputs.add(name="image", datatype="FP32", shape=[-1, 1, 2, 2])
        return reply

    def ModelInfer(self, request, context):
        assert request.inputs[0].name == "image" and list(request.inputs[0].shape) == [1, 1, 2, 2]
        pixels = np.frombuffer(request.raw_input_contents[0], "<f4")
        reply = v2.ModelInferResponse(model_name=request.model_name, model_version=sys.argv[2])
        reply.parameters["digest"].string_param = "d" * 63 + sys.argv[2]
        logits = np.full((1, 2), np.nan) if sys.argv[3] == "nonsense" else np.eye(2)[[int(pixels[0])]]
        reply.outputs.add(name="logits", datatype="FP32", shape=[1, 2])
        reply.raw_output_contents.append(logits.astype("<f4").tobytes())
        return reply

server = grpc.server(futures.ThreadPoolExecutor(2))
add_GRPCInferenceServiceServicer_to_server(Service(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with open(sys.argv[1] + ".tmp", "w") as file:
    json.dump({"pid": os.getpid(), "inference": f"127.0.0.1:{port}"}, file)
os.replace(sys.argv[1] + ".tmp", sys.argv[1])
server.wait_for_termination()
"""


@contextmanager
def _service(ready: Path, version: str = "1", mood: str = "good") -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(ready), version, mood]) as process:
        try:
            yield process
        finally:
            process.kill()


def _plan(folder: Path, *names: str) -> LoadPlan:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    images = np.zeros((40, 1, 2, 2), np.float32)
    images[:, 0, 0, 0] = labels
    write_shard(folder / "shard", Dataset(images, labels, ("a", "b")))
    targets = tuple(Target(name, folder / f"{name}.json", folder / "shard", rate_hz=80) for name in names)
    return LoadPlan("digits", folder / "answers", targets, timeout_s=5)


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(1500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come true")


def _versions(answers: Answers, device: str) -> set[str]:
    """Of the models that answered on a device."""
    rows = answers.where(device=device) & (answers.outcome == Outcome.ANSWERED)
    return {answers.words[place] for place in answers.version[rows]}


@pytest.mark.slow
async def test_a_kill_on_purpose_cuts_requests_and_fails_none_and_the_device_is_found_again(tmp_path: Path) -> None:
    load, commands = Load(_plan(tmp_path, "a", "b")), asyncio.StreamReader()
    with _service(tmp_path / "a.json"), _service(tmp_path / "b.json") as victim:
        running = asyncio.create_task(load.run(commands))
        await _until(lambda: load.status().answered >= 60)
        victim.kill()
        commands.feed_data(json.dumps({"killed": "b", "at": load.now()}).encode() + b"\n")
        await _until(lambda: load.status().held_back >= 10)
        with _service(tmp_path / "b.json", version="2"):
            client = load.clients["b"]
            await _until(lambda: client.version == "2")
            commands.feed_data(b'{"stop": true}\n')
            await running
    answers = load_answers(tmp_path / "answers")
    assert answers.count(Outcome.FAILED) == 0, answers.reasons()
    assert answers.accuracy() == 1.0
    assert [outage.device for outage in answers.outages] == ["b"]
    assert _versions(answers, "b") == {"1", "2"}
    assert _versions(answers, "a") == {"1"}
    assert answers.held_back >= 10
    assert answers.count(Outcome.ANSWERED) > 60
    assert 0 < answers.latency().p50 <= answers.latency().p99


@pytest.mark.slow
async def test_a_death_that_nobody_announced_and_nonsense_answers_are_failures(tmp_path: Path) -> None:
    load, commands = Load(_plan(tmp_path, "a", "b")), asyncio.StreamReader()
    with _service(tmp_path / "a.json", mood="nonsense"), _service(tmp_path / "b.json") as dying:
        running = asyncio.create_task(load.run(commands))
        await _until(lambda: load.status().answered >= 10)
        dying.kill()
        await _until(lambda: all(client.bad for client in load.clients.values()))
        commands.feed_eof()
        await running
    reasons = load_answers(tmp_path / "answers").reasons()
    assert set(reasons) == {"WRONG_ANSWER", "UNAVAILABLE"}


@pytest.mark.slow
def test_the_generator_is_a_process_that_tells_and_obeys_in_lines(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "a")
    (tmp_path / "plan.json").write_text(
        json.dumps(
            {
                "model": plan.model,
                "out": str(plan.out),
                "targets": [
                    {"name": "a", "ready": str(tmp_path / "a.json"), "shard": str(tmp_path / "shard"), "rate_hz": 50}
                ],
            }
        )
    )
    argv = [sys.executable, "-m", "simulations.loadgen", str(tmp_path / "plan.json")]
    with (
        _service(tmp_path / "a.json"),
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator,
    ):
        assert generator.stdin is not None
        assert generator.stdout is not None
        status = {"answered": 0}
        while status["answered"] < 20:
            status = json.loads(generator.stdout.readline())
        generator.stdin.write('{"stop": true}\n')
        generator.stdin.close()
        assert generator.wait(20) == 0
    assert load_answers(plan.out).count(Outcome.ANSWERED) >= 20
    assert read_ready(tmp_path / "a.json")["pid"] > 0
