"""The queue with its worker, on sessions that answer when the test lets them."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.generation import Generation, Job, Reply
from edge_agent.inference.lane import Lane
from edge_agent.inference.ports import ModelSpec
from edge_agent.runtimes import TensorSpec
from edge_agent.runtimes.port import Array
from shared.clock import ManualClock
from shared.errors import ChildFailed, DeadlineExceeded, Malformed, NotFound, Overloaded, Unavailable
from shared.ids import Digest
from tests.unit.inference.onnx_models import ones

POLICY = BatchPolicy(max_batch=4, queue_limit=6)


class GatedSession:
    """`logits = x * factor` once `open` is set; keeps the rows of every batch. NaN is `Malformed`, infinity a crash."""

    outputs = (TensorSpec("logits", (-1, 4), "float32"),)

    def __init__(self, factor: float, *, rows: int = -1) -> None:
        self.inputs = (TensorSpec("x", (rows, 4), "float32"),)
        self.batches: list[int] = []
        self.open = threading.Event()
        self.started = threading.Event()
        self._factor = factor

    def run(self, inputs: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        self.started.set()
        self.open.wait(30)
        x = inputs["x"]
        self.batches.append(len(x))
        if np.isnan(x).any():
            raise Malformed("NaN is not a pixel")
        if np.isinf(x).any():
            raise RuntimeError("the runtime crashed")
        answer = (x * self._factor).astype(np.float32)
        if out is None:
            return {"logits": answer}
        np.copyto(out["logits"], answer)
        return dict(out)

    def close(self) -> None:
        self.open.set()


def generation(version: int, *, rows: int = -1, opened: bool = False) -> tuple[Generation, GatedSession]:
    session = GatedSession(float(version), rows=rows)
    if opened:
        session.open.set()
    spec = ModelSpec("digits", version, Digest("ab" * 32), Path("model.onnx"), "onnxruntime", policy=POLICY)
    return Generation(spec, "onnx", session, fitting=4), session


def job(x: Array | None = None, *, deadline: float = math.inf) -> Job:
    array = ones() if x is None else x
    return Job(
        {"x": array},
        len(array),
        (array.shape[1:],),
        time.monotonic(),
        deadline,
        asyncio.get_running_loop().create_future(),
    )


class Bench:
    """A lane on whichever version `live` is."""

    def __init__(self, live: Generation | None) -> None:
        self.live = live
        self.seen: list[Reply] = []
        self.lane = Lane(
            "digits", lambda: self.live, POLICY, ManualClock(), tap=lambda _, reply: self.seen.append(reply)
        )

    def ask(self, *jobs: Job) -> list[Job]:
        for each in jobs:
            self.lane.submit(each)
        return list(jobs)


@pytest.fixture
async def one() -> AsyncIterator[tuple[Bench, GatedSession]]:
    live, session = generation(1)
    bench = Bench(live)
    yield bench, session
    session.open.set()
    bench.lane.close()


async def answers(jobs: list[Job]) -> list[Reply]:
    return await asyncio.gather(*(each.future for each in jobs))


async def test_requests_that_arrive_during_a_batch_share_the_next_one(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job() for _ in range(5)))
    session.open.set()
    await answers(jobs)
    assert session.batches == [1, 4]


async def test_each_caller_gets_its_own_rows_of_a_shared_batch(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job(ones(1 + index % 2) * index) for index in range(4)))
    session.open.set()
    for index, reply in enumerate(await answers(jobs)):
        assert reply.outputs[0].array().tolist() == [[float(index)] * 4] * (1 + index % 2)


async def test_no_batch_is_ever_answered_by_two_versions(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job() for _ in range(6)))
    second, other = generation(2, opened=True)
    bench.live = second  # the swap: one reference, while a batch runs and five requests wait
    session.open.set()
    replies = await answers(jobs)
    assert [reply.version for reply in replies] == [1, 2, 2, 2, 2, 2]
    assert all(reply.outputs[0].array().tolist() == [[float(reply.version)] * 4] for reply in replies)
    assert (session.batches, sum(other.batches)) == ([1], 5)


async def test_a_full_queue_refuses_and_serves_on_when_it_has_emptied(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job() for _ in range(1 + POLICY.queue_limit)))
    with pytest.raises(Overloaded, match="full"):
        bench.lane.submit(job())
    session.open.set()
    assert len(await answers(jobs)) == 7
    await answers(bench.ask(job()))
    assert (bench.lane.stats.answered, bench.lane.stats.rejected) == (8, 1)


async def test_requests_whose_callers_left_make_room_in_a_full_queue(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job() for _ in range(1 + POLICY.queue_limit)))
    jobs[3].future.cancel()
    late = bench.ask(job())
    session.open.set()
    await answers(late)
    assert sum(session.batches) == 7
    assert bench.lane.stats.expired == 1


async def test_a_request_past_its_deadline_costs_no_compute(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    first, stale, fresh = bench.ask(job(), job(deadline=time.monotonic()), job())
    session.open.set()
    await answers([first, fresh])
    with pytest.raises(DeadlineExceeded):
        await stale.future
    assert session.batches == [1, 1]


async def test_a_deadline_behind_the_head_of_the_queue_is_honoured_too(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    first, fresh, stale = bench.ask(job(), job(), job(deadline=time.monotonic()))
    session.open.set()
    await answers([first, fresh])
    with pytest.raises(DeadlineExceeded):
        await stale.future
    assert session.batches == [1, 1]


async def test_one_callers_bad_values_do_not_fail_its_neighbours(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(job(), job(), job(ones() * np.nan), job())
    session.open.set()
    results = await asyncio.gather(*(each.future for each in jobs), return_exceptions=True)
    assert [type(result) for result in results] == [Reply, Reply, Malformed, Reply]
    assert session.batches == [1, 3, 1, 1, 1]


async def test_a_runtime_that_crashes_fails_its_batch_and_the_worker_lives_on(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    session.open.set()
    with pytest.raises(ChildFailed):
        await bench.ask(job(ones() * np.inf))[0].future
    assert (await answers(bench.ask(job())))[0].version == 1
    assert bench.lane.stats.failed == 1


async def test_a_model_with_a_fixed_batch_size_answers_one_request_at_a_time() -> None:
    live, session = generation(1, rows=1, opened=True)
    bench = Bench(live)
    await answers(bench.ask(*(job() for _ in range(4))))
    assert session.batches == [1, 1, 1, 1]
    bench.lane.close()


async def test_different_shapes_never_share_a_batch(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    wide = job()
    wide.key = ((9,),)
    jobs = bench.ask(job(), job(), wide, job())
    session.open.set()
    await answers(jobs)
    assert session.batches == [1, 1, 1, 1]


async def test_requests_that_wait_when_the_model_goes_are_told_so(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    first, waiting = bench.ask(job(), job())
    bench.live = None
    session.open.set()
    await first.future
    with pytest.raises(NotFound, match="removed"):
        await waiting.future


async def test_closing_answers_what_runs_fails_what_waits_and_refuses_the_rest(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    running, waiting = bench.ask(job(), job())
    bench.lane.close()
    with pytest.raises(Unavailable):
        await waiting.future
    with pytest.raises(Unavailable):
        bench.lane.submit(job())
    session.open.set()
    assert (await running.future).version == 1


async def test_a_patient_policy_waits_for_company_and_no_longer() -> None:
    live, session = generation(1, opened=True)
    bench = Bench(live)
    bench.lane.adopt(BatchPolicy(max_batch=4, max_delay_ms=20), 4)
    await answers(bench.ask(job(), job(), job()))
    assert session.batches == [3]
    bench.lane.close()


async def test_idle_returns_when_the_last_answer_is_out(one: tuple[Bench, GatedSession]) -> None:
    bench, session = one
    jobs = bench.ask(*(job() for _ in range(5)))
    session.open.set()
    await bench.lane.idle()
    assert all(each.future.done() for each in jobs)
    assert [reply.version for reply in bench.seen] == [1] * 5
