"""Loading, swapping, shadowing and shutting down, without a transport."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.engine import Engine
from edge_agent.inference.generation import Reply
from edge_agent.inference.ports import ModelSpec
from shared.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    DigestMismatch,
    Malformed,
    NotFound,
    ShoalError,
    Unavailable,
    Unsupported,
)
from shared.ids import Digest
from tests.unit.inference.onnx_models import external_data_model, ones, scaling_model, spec_of, two_input_model


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    await engine.close(1.0)


async def ask(engine: Engine, version: str = "", rows: int = 1) -> Reply:
    return await engine.model("digits").infer(version, {"x": ones(rows)})


async def go_live(engine: Engine, spec: ModelSpec) -> None:
    await engine.load(spec)
    await engine.swap(spec.model, spec.version)


def value(reply: Reply) -> float:
    return float(reply.outputs[0].array()[0, 0])


async def test_a_loaded_version_answers_to_its_number_only_until_it_is_live(engine: Engine, tmp_path: Path) -> None:
    await engine.load(spec_of(tmp_path, scaling_model(1.0)))
    with pytest.raises(NotFound, match="no live version"):
        await ask(engine)
    assert value(await ask(engine, "1")) == 1.0
    await engine.swap("digits", 1)
    assert (await ask(engine)).version == 1


async def test_a_swap_and_a_revert_change_who_answers(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    second = spec_of(tmp_path, scaling_model(2.0), version=2)
    await go_live(engine, second)
    reply = await ask(engine)
    assert (reply.version, reply.digest, value(reply)) == (2, second.digest, 2.0)
    assert (await engine.revert("digits")).version == 1
    assert value(await ask(engine)) == 1.0
    assert value(await ask(engine, "2")) == 2.0
    with pytest.raises(Conflict):
        await engine.revert("digits")


async def test_a_released_version_is_gone_and_makes_room(engine: Engine, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        await go_live(engine, spec_of(tmp_path, scaling_model(version), version=version))
        if version > 1:
            await engine.release("digits", version - 1)
    with pytest.raises(NotFound):
        await ask(engine, "1")
    status = (await engine.status()).model("digits")
    assert status is not None
    assert [slot.version for slot in status.slots] == [3]


async def test_the_same_load_again_is_answered_from_the_slot(engine: Engine, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    await go_live(engine, spec)
    again = await engine.load(spec)
    assert (again.slot.state, again.load_s) == ("live", 0.0)
    with pytest.raises(Conflict, match="another file"):
        await engine.load(spec_of(tmp_path, scaling_model(9.0)))


def _oversize(folder: Path) -> ModelSpec:
    return spec_of(folder, scaling_model(2.0) + bytes(4096), version=2)


def _missing(folder: Path) -> ModelSpec:
    spec = spec_of(folder, scaling_model(2.0), version=2)
    spec.path.unlink()
    return spec


def _folder(folder: Path) -> ModelSpec:
    return replace(spec_of(folder, scaling_model(2.0), version=2), path=folder)


def _renamed(folder: Path) -> ModelSpec:
    """Good bytes, under a name that would make a runtime try another format on them."""
    spec = spec_of(folder, scaling_model(2.0), version=2)
    return replace(spec, path=spec.path.rename(folder / "model.pte"))


REFUSED = {
    "missing": (_missing, NotFound),
    "an artifact that the runtime does not load": (_renamed, Unsupported),
    "a folder": (_folder, NotFound),
    "larger than the limit": (_oversize, Malformed),
    "changed since it was named": (
        lambda folder: replace(spec_of(folder, scaling_model(2.0), version=2), digest=Digest("0" * 64)),
        DigestMismatch,
    ),
    "no graph": (lambda folder: spec_of(folder, b"not a model", version=2), Malformed),
    "with weights in another file": (lambda folder: spec_of(folder, external_data_model(), version=2), Malformed),
    "with NaN for weights": (lambda folder: spec_of(folder, scaling_model(float("nan")), version=2), Malformed),
    "of another width": (lambda folder: spec_of(folder, scaling_model(2.0, width=5), version=2), Conflict),
    "with other inputs": (lambda folder: spec_of(folder, two_input_model(), version=2), Conflict),
    "with another output": (lambda folder: spec_of(folder, scaling_model(2.0, output="y"), version=2), Conflict),
    "with a fixed batch": (lambda folder: spec_of(folder, scaling_model(2.0, rows=1), version=2), Conflict),
    "for a runtime that is not here": (
        lambda folder: spec_of(folder, scaling_model(2.0), version=2, runtime="abacus"),
        Unsupported,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_model_is_refused_and_the_live_one_does_not_notice(tmp_path: Path, case: str) -> None:
    engine = Engine(max_model_bytes=4096)
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    make, error = REFUSED[case]
    with pytest.raises(error) as refusal:
        await engine.load(make(tmp_path))
    assert value(await ask(engine)) == 1.0
    status = (await engine.status()).model("digits")
    assert status is not None
    assert status.live is not None
    assert status.live.version == 1
    assert (status.slots[1].state, status.slots[1].reason) == ("failed", refusal.value.message)
    await go_live(engine, spec_of(tmp_path, scaling_model(3.0), version=3))  # the failed one does not take a slot
    assert value(await ask(engine)) == 3.0
    await engine.close(1.0)


async def test_an_unreadable_file_is_our_own_fault(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))

    def fail(_: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(Corrupt, match="cannot read"):
        await engine.load(spec)


@pytest.mark.parametrize("values", [{"version": 0}, {"threads": 0}, {"digest": "ABC"}, {"model": "../../etc"}], ids=str)
def test_an_impossible_spec_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises((ConfigError, Malformed)):
        replace(spec_of(tmp_path, scaling_model(1.0)), **values)  # type: ignore[arg-type]


async def test_requests_that_do_not_fit_are_refused_before_they_queue(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    model = engine.model("digits")
    for inputs in ({"y": ones()}, {"x": ones().astype(np.float64)}, {"x": ones(1, 3)}, {"x": ones(9)}):
        with pytest.raises(Malformed):
            await model.infer("", inputs)
    assert model.status().requests == 0


@pytest.mark.parametrize("version", ["2", "-1", "one", "1.0", "٣", "9" * 400])
async def test_a_version_that_is_not_loaded_is_not_found(engine: Engine, tmp_path: Path, version: str) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    with pytest.raises(NotFound):
        await ask(engine, version)


async def test_a_shadowed_candidate_is_compared_on_live_requests_only(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    await engine.load(spec_of(tmp_path, scaling_model(1.5), version=2))
    shadow = asyncio.create_task(engine.shadow("digits", 2, requests=3, timeout_s=20))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    while not shadow.done():
        reply = await engine.model("digits").infer("", {"x": x})
        assert reply.version == 1
    report = await shadow
    assert (report.requests, report.rows, report.errors) == (3, 6, 0)
    assert (report.agreement, report.max_abs_diff) == (1.0, 3.5)
    assert report.live_p50_ms > 0
    assert report.candidate_p50_ms > 0
    status = (await engine.status()).model("digits")
    assert status is not None
    assert status.latency_ms.counts[-1] == 0
    assert status.requests == sum(status.latency_ms.counts)  # the copies are not counted as requests


async def test_a_candidate_that_disagrees_is_seen(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    await engine.load(spec_of(tmp_path, scaling_model(-1.0), version=2))
    shadow = asyncio.create_task(engine.shadow("digits", 2, requests=2, timeout_s=20))
    while not shadow.done():
        await engine.model("digits").infer("", {"x": np.arange(4, dtype=np.float32).reshape(1, 4)})
    assert (await shadow).agreement == 0.0


async def test_a_shadow_without_traffic_reports_nothing_compared(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    await engine.load(spec_of(tmp_path, scaling_model(1.0), version=2))
    report = await engine.shadow("digits", 2, requests=3, timeout_s=0.05)
    assert (report.requests, report.agreement) == (0, 0.0)


async def test_the_live_version_cannot_shadow_itself(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    with pytest.raises(Conflict):
        await engine.shadow("digits", 1, requests=1, timeout_s=1.0)


async def test_several_models_are_served_side_by_side(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    await go_live(engine, spec_of(tmp_path, two_input_model(), model="sums", runtime="openvino"))
    reply = await engine.model("sums").infer("", {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 3), np.int64)})
    assert reply.outputs[0].array().tolist() == [[2.0] * 3]
    await engine.remove("sums")
    with pytest.raises(NotFound):
        engine.model("sums")
    assert value(await ask(engine)) == 1.0


async def test_the_same_release_may_move_between_runtimes(engine: Engine, tmp_path: Path) -> None:
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0)))
    await go_live(engine, spec_of(tmp_path, scaling_model(2.0), version=2, runtime="openvino"))
    reply = await ask(engine)
    assert (reply.runtime, value(reply)) == ("openvino", 2.0)


async def test_a_load_whose_caller_gave_up_still_ends_warm(engine: Engine, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    load = asyncio.create_task(engine.load(spec))
    await asyncio.sleep(0)  # let it take its slot
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert (await engine.load(spec)).slot.state == "warm"  # joins the one under way
    assert value(await ask(engine, "1")) == 1.0


async def test_closing_answers_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    engine = Engine()
    await go_live(engine, spec_of(tmp_path, scaling_model(1.0), policy=BatchPolicy(max_batch=2)))
    model = engine.model("digits")
    asked = [asyncio.create_task(model.infer("", {"x": ones()})) for _ in range(20)]
    await asyncio.sleep(0)  # let them queue
    await engine.close(10.0)
    assert [reply.version for reply in await asyncio.gather(*asked)] == [1] * 20
    with pytest.raises(Unavailable):
        await engine.load(spec_of(tmp_path, scaling_model(1.0)))
    with pytest.raises(ShoalError):
        engine.model("digits")
