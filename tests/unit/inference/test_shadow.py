"""What a candidate's answers to copies of live requests count for."""

import asyncio

import numpy as np
import pytest

from edge_agent.inference.generation import Job, Output, Reply
from edge_agent.inference.shadow import Shadow

LIVE = np.array([[1.0, 2.0, 3.0]], np.float32)


def reply(version: int, values: np.ndarray) -> Reply:
    output = Output("logits", "float32", tuple(values.shape), values.astype(np.float32).tobytes())
    return Reply((output,), version, "digest", "runtime", 1.0)


async def shadowed(live: np.ndarray, candidate: np.ndarray, wanted: int = 3) -> Shadow:
    shadow = Shadow(1, 2, wanted, lambda job: job.future.set_result(reply(2, candidate)))
    for _ in range(wanted):
        shadow.see(Job({}, 1, (), 0.0, 0.0, None), reply(1, live))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # its comparison
    return shadow


@pytest.mark.parametrize(
    "answer",
    [np.full((1, 3), np.nan), np.array([[1.0, np.inf, 3.0]]), np.ones((1, 2)), np.ones((2, 3))],
    ids=["no numbers", "one that is infinite", "too few values", "too many rows"],
)
async def test_an_answer_that_no_caller_could_use_is_an_error(answer: np.ndarray) -> None:
    shadow = await shadowed(LIVE, answer)
    report = shadow.report()
    assert (report.errors, report.requests, report.agreement) == (3, 0, 0.0)
    assert shadow.done.is_set()


async def test_a_candidate_that_differs_is_compared_and_not_blamed() -> None:
    report = (await shadowed(LIVE, np.array([[3.0, 2.0, 1.0]]))).report()
    assert (report.errors, report.requests, report.agreement, report.max_abs_diff) == (0, 3, 0.0, 2.0)


async def test_a_request_that_the_live_version_cannot_answer_either_is_not_held_against_the_candidate() -> None:
    nothing = np.full((1, 3), np.nan, np.float32)
    report = (await shadowed(nothing, nothing)).report()
    assert (report.errors, report.requests, report.agreement) == (0, 3, 0.0)
