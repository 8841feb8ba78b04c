"""The builder and its real child process; children that misbehave are small scripts."""

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.builder import BlockingBuilder, Builder, CheckBundle, Initial, MakeBundle, Prune
from coordinator.rounds.ports import ModelState
from shared.bundle import inspect_bundle, read_bundle, write_bundle
from shared.errors import (
    ChildFailed,
    ConfigError,
    DeadlineExceeded,
    DigestMismatch,
    InputError,
    Malformed,
    UpdateRejected,
)
from shared.learning.spec import ModelSpec
from shared.learning.state import unpack_state
from shared.settings import Scalar
from tests.integration.agent_kit import bundle as linear
from tests.integration.agent_kit import until
from tests.unit.learning.pictures import pictures

ARGUMENTS: dict[str, Scalar] = {"shape": "1x12x12", "width": 8}


@pytest.fixture
def public(tmp_path: Path) -> str:
    x, y = pictures(300)
    np.savez(tmp_path / "public.npz", x=x, y=y)
    return str(tmp_path / "public.npz")


def script(tmp_path: Path, body: str) -> tuple[str, str]:
    path = tmp_path / "child.py"
    path.write_text(body)
    return sys.executable, str(path)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_model_is_trained_pruned_and_bundled(tmp_path: Path, public: str) -> None:
    said: list[str] = []
    builder = Builder(tmp_path / "scratch", progress=said.append)
    trained = await builder.initial(Initial("cnn-small", dict(ARGUMENTS), public, epochs=4))
    assert trained.accuracy is not None
    assert trained.accuracy > 0.8
    assert sum(line.startswith("epoch") for line in said) == 4

    pruned = await builder.prune(Prune(trained.state.model_json, 0.5, public, round_to=4), trained.state.arrays)
    spec = ModelSpec.from_json(pruned.model_json)
    assert spec.history
    assert len(pruned.arrays) < len(trained.state.arrays)

    out = tmp_path / "bundle"
    lineage: dict[str, Scalar] = {"job": "job-0123456789", "round": 3}
    report = await builder.bundle(MakeBundle(pruned.model_json, public, str(out), lineage), pruned.arrays)
    bundle = read_bundle(out)
    assert bundle.spec == spec
    assert bundle.report == report
    assert report.lineage == lineage
    assert report.examples > 30
    assert report.accuracy is not None
    assert report.accuracy_float is not None
    assert abs(report.accuracy - report.accuracy_float) < 0.1
    assert report.max_logit_difference is not None
    assert report.max_logit_difference < 0.25
    assert report.graph_bytes == inspect_bundle(out)["model.onnx"].size
    assert len(report.probe.indices) == 16

    await builder.check(CheckBundle(str(out), inspect_bundle(out)))
    ruined = tmp_path / "ruined"
    name = min(bundle.state)
    write_bundle(ruined, replace(bundle, state={**bundle.state, name: np.zeros(3, np.float32)}))
    with pytest.raises(Malformed, match=rf"weights.safetensors: {name} has shape \[3\]"):
        await builder.check(CheckBundle(str(ruined), inspect_bundle(ruined)))
    with pytest.raises(DigestMismatch):  # it changed after it was judged
        await builder.check(CheckBundle(str(ruined), inspect_bundle(out)))


async def test_weights_of_a_network_that_is_not_installed_here_are_left_to_the_devices(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder, linear())
    await Builder(tmp_path / "scratch").check(CheckBundle(str(folder), inspect_bundle(folder)))
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_job_threads_get_a_fresh_model_or_a_reason() -> None:
    builder = BlockingBuilder(Builder())
    state = builder.initial("cnn-small", ARGUMENTS)
    assert ModelSpec.from_json(state.model_json).arguments == {"width": 8}
    assert "0.0.weight" in unpack_state(state.arrays)
    with pytest.raises(ConfigError, match="cnn-small"):
        builder.initial("resnet-9000", {})
    with pytest.raises(InputError, match="leaves every layer"):  # as it would the next time
        builder.prune(state, 0.001, "")


async def test_a_child_that_dies_is_told_with_its_last_line(tmp_path: Path) -> None:
    body = "import sys\nprint('first', file=sys.stderr)\nprint('out of memory', file=sys.stderr)\nsys.exit(3)\n"
    with pytest.raises(ChildFailed, match="out of memory"):
        await Builder(command=script(tmp_path, body)).initial(Initial("cnn-small"))


async def test_a_child_that_floods_its_output_is_not_believed_and_does_not_hang(tmp_path: Path) -> None:
    body = "import sys\nsys.stderr.write('x' * 3_000_000)\nsys.stdout.write('y' * 3_000_000)\n"
    with pytest.raises(ChildFailed):
        await Builder(command=script(tmp_path, body)).initial(Initial("cnn-small"))


FAMILY = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({pids!r}).write_text(str(child.pid))
print("ready", flush=True)
time.sleep(600)
"""


async def test_at_the_deadline_the_child_and_its_children_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    builder = Builder(command=script(tmp_path, FAMILY.format(pids=str(pids))), deadline_s=3)
    with pytest.raises(DeadlineExceeded, match="3 s"):
        await builder.initial(Initial("cnn-small"))
    await until(lambda: not alive(int(pids.read_text())))  # the kernel takes a moment


async def test_cancelling_kills_the_child_and_its_children(tmp_path: Path) -> None:
    pids, ready = tmp_path / "pids", asyncio.Event()
    builder = Builder(
        command=script(tmp_path, FAMILY.format(pids=str(pids))), progress=lambda line: ready.set(), deadline_s=60
    )
    work = asyncio.create_task(builder.initial(Initial("cnn-small")))
    await ready.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not alive(int(pids.read_text())))  # the kernel takes a moment


def test_killing_ends_the_worker_and_its_children_and_whoever_waits_is_told(tmp_path: Path) -> None:
    pids, ready = tmp_path / "pids", threading.Event()
    command = script(tmp_path, FAMILY.format(pids=str(pids)))
    builder = BlockingBuilder(Builder(command=command, progress=lambda line: ready.set(), deadline_s=60))
    told: list[str] = []

    def waits() -> None:
        with pytest.raises(ChildFailed) as caught:
            builder.prune(ModelState("{}", b""), 0.5, "")
        told.append(str(caught.value))

    thread = threading.Thread(target=waits)
    thread.start()
    assert ready.wait(30)
    builder.kill()
    thread.join(30)
    assert told == ["the worker was stopped, as the coordinator stops"]
    asyncio.run(until(lambda: not alive(int(pids.read_text()))))

    pids.unlink()
    with pytest.raises(ChildFailed):
        builder.initial("cnn-small", {})
    assert not pids.exists()  # nothing more is started


async def test_an_error_class_that_is_not_ours_is_not_raised(tmp_path: Path) -> None:
    body = (
        "import json, pathlib, sys\n"
        "value = {'error': 'SystemExit', 'message': 'gotcha'}\n"
        "(pathlib.Path(sys.argv[1]) / 'result.json').write_text(json.dumps(value))\n"
    )
    with pytest.raises(ChildFailed, match="gotcha"):
        await Builder(command=script(tmp_path, body)).initial(Initial("cnn-small"))


def test_the_coordinators_side_loads_no_torch() -> None:
    code = "import sys, coordinator.builder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_bad_requests_are_told_by_their_own_class_and_leave_nothing(tmp_path: Path, public: str) -> None:
    builder = Builder(tmp_path / "scratch")
    state = ModelState('{"factory":"cnn-small","schema":{"shape":[1,5,5],"classes":["a","b"]}}', b"junk")
    with pytest.raises(ConfigError, match="the model takes"):
        await builder.initial(Initial("cnn-small", {"shape": "1x5x5"}, public))
    out = tmp_path / "bundle"
    with pytest.raises(UpdateRejected, match="not safetensors"):
        await asyncio.to_thread(BlockingBuilder(builder).bundle, state, public, out, {})
    assert not out.exists()
    assert list((tmp_path / "scratch").iterdir()) == []
