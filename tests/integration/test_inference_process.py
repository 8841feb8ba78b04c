"""The inference service as a process: stock clients, overload, deadlines, death and what is left behind."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.process import InferenceProcess
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import GRPCInferenceServiceStub
from shared.errors import ChildFailed, ConfigError, Overloaded, Unavailable
from tests.integration.inference_load import Load, go_live, probing, running, wait_for_end
from tests.unit.inference.onnx_models import ones, scaling_model, slow_model, spec_of

HERE = Path(__file__).parent


def _request(rows: int = 1, **changes: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=(rows, 4))
    request.raw_input_contents.append(ones(rows).tobytes())
    for name, value in changes.items():
        setattr(request, name, value)
    return request


async def _code(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest, timeout: float = 20) -> grpc.StatusCode:
    try:
        await stub.ModelInfer(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_the_stock_triton_client_is_served(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(2.0))
    async with running(tmp_path) as service:
        await go_live(service, spec)
        command = (sys.executable, str(HERE / "triton_session.py"), service.address)
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    seen = json.loads(out)
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["absent_ready"]) == (True, True, True, False)
    assert seen["server"]["name"] == "shoal"
    assert seen["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert seen["model"]["platform"] == "onnx_onnxruntime"
    assert seen["logits"] == [[2.0] * 4] * 2
    assert (seen["id"], seen["version"]) == ("r-1", "1")
    assert seen["parameters"] == {"digest": spec.digest, "runtime": "onnxruntime"}
    assert "NOT_FOUND" in seen["unknown_model"]
    assert "NOT_FOUND" in seen["unknown_version"]
    assert "INVALID_ARGUMENT" in seen["wrong_width"]
    assert seen["stream"] == [[[2.0 * value] * 4] for value in range(5)]
    assert seen["statistics"]["model_stats"][0]["inference_stats"]["success"]["count"] == "6"
    assert [(model["name"], model["state"]) for model in seen["index"]["models"]] == [("digits", "READY")]


async def test_typed_contents_are_answered_with_typed_contents(tmp_path: Path) -> None:
    async with running(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
        await go_live(service, spec_of(tmp_path, scaling_model(2.0)))
        request = pb.ModelInferRequest(model_name="digits")
        request.inputs.add(name="x", datatype="FP32", shape=(1, 4)).contents.fp32_contents.extend([1, 2, 3, 4])
        response = await GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert list(response.outputs[0].contents.fp32_contents) == [2, 4, 6, 8]
    assert not response.raw_output_contents


async def test_each_kind_of_bad_request_has_its_status_and_harms_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
        await go_live(service, spec_of(tmp_path, scaling_model(2.0)))
        stub = GRPCInferenceServiceStub(channel)
        renamed, half, typed = _request(), _request(), _request()
        renamed.inputs[0].name = "image"
        half.raw_input_contents[0] = bytes(3)
        typed.inputs[0].datatype = "FP64"
        assert await _code(stub, renamed) is grpc.StatusCode.INVALID_ARGUMENT
        assert await _code(stub, half) is grpc.StatusCode.INVALID_ARGUMENT
        assert await _code(stub, typed) is grpc.StatusCode.INVALID_ARGUMENT
        assert await _code(stub, _request(rows=9)) is grpc.StatusCode.INVALID_ARGUMENT
        assert await _code(stub, _request(model_name="letters")) is grpc.StatusCode.NOT_FOUND
        assert await _code(stub, _request(model_version="2")) is grpc.StatusCode.NOT_FOUND
        assert await _code(stub, pb.ModelInferRequest()) is grpc.StatusCode.NOT_FOUND
        assert await _code(stub, _request()) is grpc.StatusCode.OK


async def test_overload_is_refused_at_once_and_the_service_is_healthy_after(tmp_path: Path) -> None:
    policy = BatchPolicy(max_batch=1, queue_limit=4)
    async with running(tmp_path) as service, probing(service) as probe:
        await go_live(service, spec_of(tmp_path, slow_model(20, size=1024), policy=policy))
        results = await asyncio.gather(*(probe.infer("digits", ones()) for _ in range(64)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, BaseException)]
        assert {type(error) for error in refused} == {Overloaded}
        assert 64 - len(refused) >= 1 + policy.queue_limit
        assert (await probe.infer("digits", ones())).version == 1
        status = (await service.slots.status()).model("digits")
        assert status is not None
        assert (status.rejected, status.queued) == (len(refused), 0)


async def test_a_deadline_is_honoured_and_what_it_cut_off_is_not_computed(tmp_path: Path) -> None:
    policy = BatchPolicy(max_batch=1)
    async with running(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
        loaded = await service.slots.load(spec_of(tmp_path, slow_model(200, size=1024), policy=policy))
        await service.slots.swap("digits", 1)
        stub = GRPCInferenceServiceStub(channel)
        busy = [asyncio.create_task(_code(stub, _request())) for _ in range(6)]
        too_short = loaded.warm_up_ms / 2e3
        hasty = [asyncio.create_task(_code(stub, _request(), timeout=too_short)) for _ in range(6)]
        assert set(await asyncio.gather(*hasty)) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert set(await asyncio.gather(*busy)) == {grpc.StatusCode.OK}
        assert await _code(stub, _request()) is grpc.StatusCode.OK
        status = (await service.slots.status()).model("digits")
        assert status is not None
        assert 7 <= status.requests <= 8  # at most one of the hasty ones found the worker free


async def test_a_killed_service_comes_back_on_its_port_and_the_supervisor_loads_again(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    loaded = asyncio.Event()

    async def load_again() -> None:
        await go_live(service, spec)
        loaded.set()

    service = InferenceProcess(tmp_path / "run", on_restart=load_again)
    await service.start()
    await go_live(service, spec)
    address, first = service.address, service.pid
    async with probing(service) as probe:
        await probe.infer("digits", ones())
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            await loaded.wait()
        assert service.address == address
        assert service.pid != first
        assert service.restarts == 1
        assert (await probe.infer("digits", ones())).digest == spec.digest  # over the channel it had
    await service.stop()
    assert wait_for_end(first)


async def test_a_service_comes_back_whatever_kept_it_from_starting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that is not one of ours, of a file say, may end neither the watch nor the device's service."""
    back = asyncio.Event()

    async def came_back() -> None:
        back.set()

    service = InferenceProcess(tmp_path, on_restart=came_back)
    await service.start()
    real = InferenceProcess._open_log
    failed: list[int] = []

    def open_log(self: InferenceProcess) -> Any:
        if len(failed) < 2:
            failed.append(1)
            raise IsADirectoryError("a folder has the log's name")
        return real(self)

    monkeypatch.setattr(InferenceProcess, "_open_log", open_log)
    try:
        os.kill(service.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await back.wait()
        assert len(failed) == 2
        assert (await service.slots.status()).models == ()
    finally:
        await service.stop()


async def test_a_service_killed_under_load_fails_requests_only_while_it_is_away(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    second = spec_of(tmp_path, scaling_model(2.0), version=2)

    async def load_again() -> None:
        await go_live(service, second)

    service = InferenceProcess(tmp_path / "run", on_restart=load_again)
    await service.start()
    await go_live(service, spec)
    async with Load(service, clients=4) as load:
        await load.seen(1)
        os.kill(service.pid, signal.SIGKILL)
        await load.seen(2)
    assert load.wrong == []
    assert load.errors
    assert all(answers[-1].version == 2 for answers in load.answers)
    await service.stop()


async def test_stopping_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    service = InferenceProcess(tmp_path / "run")
    await service.start()
    pid = service.pid
    await service.stop()
    assert wait_for_end(pid)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["inference.log"]


async def test_a_service_that_is_stuck_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    service = InferenceProcess(tmp_path / "run")
    await service.start()
    pid = service.pid
    os.kill(pid, signal.SIGSTOP)
    stopping = asyncio.create_task(service.stop(timeout_s=0.1))
    async with asyncio.timeout(30):
        await stopping
    assert wait_for_end(pid)


async def test_only_the_agents_user_can_open_the_control_socket(tmp_path: Path) -> None:
    async with running(tmp_path):
        mode = (tmp_path / "run" / "inference.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


async def test_the_ready_file_names_the_process_and_its_port(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        ready = json.loads((tmp_path / "run" / "inference.json").read_text())
        assert ready == {
            "pid": service.pid,
            "port": int(service.address.rpartition(":")[2]),
            "address": service.address,
        }


async def test_it_listens_on_the_loopback_address_only(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        port = int(service.address.rpartition(":")[2])
        rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()]
        listening = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    assert len(listening) == 1
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, also as IPv6 writes it


_SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from edge_agent.inference.process import InferenceProcess

async def main():
    service = InferenceProcess(Path(sys.argv[1]))
    await service.start()
    print(service.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_dies_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    command = (sys.executable, "-c", _SUPERVISOR, str(tmp_path / "run"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        os.kill(pid, 0)  # it runs
        supervisor.kill()
        assert wait_for_end(pid)


@pytest.mark.slow
async def test_a_port_that_is_taken_is_named_and_never_shared(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChildFailed, match=f"127.0.0.1:{port} is taken"):
            await InferenceProcess(tmp_path / "run", port=port).start()


async def test_a_run_folder_too_deep_for_a_socket_is_refused_before_anything_starts(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    with pytest.raises(ConfigError, match="Unix socket"):
        await InferenceProcess(deep).start()
    assert not deep.exists()


def test_nothing_answers_before_start(tmp_path: Path) -> None:
    service = InferenceProcess(tmp_path / "run")
    for read in (lambda: service.address, lambda: service.slots, lambda: service.pid):
        with pytest.raises(Unavailable):
            read()


_IMPORTED = """
import asyncio, json, sys
import edge_agent.inference.__main__
from edge_agent.inference.engine import Engine
from edge_agent.inference.ports import ModelSpec
from pathlib import Path

async def main():
    engine = Engine()
    for version, runtime in enumerate(("onnxruntime", "openvino"), 1):
        await engine.load(ModelSpec("digits", version, sys.argv[2], Path(sys.argv[1]), runtime))
    await engine.close(1.0)

asyncio.run(main())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None})))
"""


def test_the_service_imports_neither_torch_nor_flower_nor_a_database_nor_telemetry(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    command = (sys.executable, "-c", _IMPORTED, str(spec.path), spec.digest)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(json.loads(result.stdout))
    assert {"grpc", "numpy", "onnxruntime", "openvino", "edge_agent"} <= imported
    assert not imported & {
        "torch",
        "torchao",
        "flwr",
        "ray",
        "sqlalchemy",
        "onnx",
        "cryptography",
        "openvino_telemetry",
    }
