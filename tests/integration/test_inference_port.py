"""One suite for both ways of running the inference service: as a child process and inside this one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference.inline import InlineInference
from edge_agent.inference.ports import InferencePort, ModelSpec
from edge_agent.inference.process import InferenceProcess
from shared.errors import Conflict, DigestMismatch, Malformed, NotFound, ShoalError, Unavailable, Unsupported
from shared.ids import Digest
from tests.integration.inference_load import Load, go_live, probing
from tests.unit.inference.onnx_models import ones, scaling_model, spec_of, two_input_model


def _make(kind: str, folder: Path) -> InferencePort:
    return InferenceProcess(folder / "run") if kind == "process" else InlineInference()


@pytest.fixture(params=["process", "inline"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InferencePort]:
    service = _make(request.param, tmp_path)
    await service.start()
    yield service
    await service.stop()


async def test_a_probe_gets_the_answer_and_who_gave_it(service: InferencePort, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(2.0))
    await go_live(service, spec)
    async with probing(service) as probe:
        answer = await probe.infer("digits", ones(3).astype(np.float64))
    assert answer.logits.tolist() == [[2.0] * 4] * 3
    assert (answer.version, answer.digest, answer.runtime) == (1, spec.digest, "onnxruntime")


async def test_a_candidate_answers_to_its_number_only(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    await service.slots.load(spec_of(tmp_path, scaling_model(2.0), version=2))
    async with probing(service) as probe:
        assert (await probe.infer("digits", ones())).version == 1
        assert (await probe.infer("digits", ones(), version="2")).version == 2


async def test_hot_swaps_under_load_lose_no_request_and_no_client_goes_back(
    service: InferencePort, tmp_path: Path
) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    async with Load(service, clients=8) as load:
        for version in range(2, 27):
            runtime = ("onnxruntime", "openvino")[version % 2]
            await go_live(service, spec_of(tmp_path, scaling_model(version), version=version, runtime=runtime))
            await load.seen(version)
            await service.slots.release("digits", version - 1)
    assert not load.errors, load.errors[0]
    assert load.wrong == []
    for answers in load.answers:
        versions = [answer.version for answer in answers]
        assert versions == sorted(versions)
        assert len(answers) >= 25
    status = (await service.slots.status()).model("digits")
    assert status is not None
    assert status.requests == sum(len(answers) for answers in load.answers) == sum(status.latency_ms.counts)
    assert (status.errors, status.rejected, status.expired) == (0, 0, 0)


async def test_a_revert_under_load_brings_the_old_version_back(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    await go_live(service, spec_of(tmp_path, scaling_model(2.0), version=2))
    async with Load(service, clients=4) as load:
        await load.seen(2)
        reverted = await service.slots.revert("digits")
        await load.seen(1)
    assert (reverted.version, reverted.state) == (1, "live")
    assert not load.errors, load.errors[0]
    assert load.wrong == []
    assert all(answers[-1].version == 1 for answers in load.answers)


async def test_a_candidate_is_compared_with_the_live_version(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    await service.slots.load(spec_of(tmp_path, scaling_model(1.25), version=2))
    async with Load(service, clients=2):
        report = await service.slots.shadow("digits", 2, requests=20, timeout_s=30)
    assert (report.live_version, report.version, report.requests, report.errors) == (1, 2, 20, 0)
    assert (report.agreement, report.max_abs_diff) == (1.0, 0.25)


REFUSED: dict[str, tuple[Callable[[ModelSpec], ModelSpec], type[ShoalError]]] = {
    "missing": (lambda spec: replace(spec, path=spec.path.with_name("absent.onnx")), NotFound),
    "of another digest": (lambda spec: replace(spec, digest=Digest("0" * 64)), DigestMismatch),
    "for an unknown runtime": (lambda spec: replace(spec, runtime="abacus"), Unsupported),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_keeps_its_class_and_the_live_model_answers_on(
    service: InferencePort, tmp_path: Path, case: str
) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    change, error = REFUSED[case]
    with pytest.raises(error):
        await service.slots.load(change(spec_of(tmp_path, scaling_model(2.0), version=2)))
    async with probing(service) as probe:
        assert (await probe.infer("digits", ones())).version == 1
        with pytest.raises(NotFound):
            await probe.infer("digits", ones(), version="2")


async def test_a_model_that_does_not_fit_or_is_no_model_is_refused(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    with pytest.raises(Malformed):
        await service.slots.load(spec_of(tmp_path, scaling_model(2.0)[:50], version=2))
    with pytest.raises(Conflict):
        await service.slots.load(spec_of(tmp_path, two_input_model(), version=2))
    with pytest.raises(Conflict):
        await service.slots.swap("digits", 2)
    with pytest.raises(NotFound):
        await service.slots.swap("letters", 1)
    async with probing(service) as probe:
        assert (await probe.infer("digits", ones())).version == 1


async def test_status_tells_slots_counts_and_histograms(service: InferencePort, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, scaling_model(1.0))
    await go_live(service, spec)
    async with probing(service) as probe:
        for rows in (1, 2, 8):
            await probe.infer("digits", ones(rows))
        with pytest.raises(Malformed):
            await probe.infer("digits", ones(9))
    status = (await service.slots.status()).model("digits")
    assert status is not None
    assert status.live is not None
    assert (status.live.version, status.live.digest, status.live.state) == (1, spec.digest, "live")
    assert (status.requests, status.errors) == (3, 0)
    assert status.batch_rows.total == 11
    assert sum(status.latency_ms.counts) == 3
    assert len(status.latency_ms.counts) == len(status.latency_ms.bounds) + 1


async def test_a_removed_model_is_not_found(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    await service.slots.remove("digits")
    async with probing(service) as probe:
        with pytest.raises(NotFound):
            await probe.infer("digits", ones())
    assert (await service.slots.status()).models == ()


async def test_stopping_answers_what_is_under_way(service: InferencePort, tmp_path: Path) -> None:
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    async with probing(service) as probe:
        await probe.infer("digits", ones())
        asked = [asyncio.create_task(probe.infer("digits", ones())) for _ in range(50)]
        await asked[0]
        await service.stop()
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert not [
        result for result in results if isinstance(result, BaseException) and not isinstance(result, Unavailable)
    ]
    with pytest.raises(Unavailable):
        _ = service.address
    await service.stop()  # safe to repeat


async def test_it_starts_again_on_the_port_it_had(service: InferencePort, tmp_path: Path) -> None:
    address = service.address
    await service.stop()
    await service.start()
    assert service.address == address
    await go_live(service, spec_of(tmp_path, scaling_model(1.0)))
    async with probing(service) as probe:
        assert (await probe.infer("digits", ones())).version == 1
