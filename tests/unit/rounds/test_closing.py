"""When a round stops waiting: the rule by example, and its properties."""

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.closing import Close, Policy, Reason, WaitUntil, closing
from shared.clock import ManualClock

POLICY = Policy(timeout_s=100.0, quorum=0.5, quantile=0.75, grace_s=10.0)


def verdict(now: float, answered: list[float], failed: list[float], policy: Policy = POLICY) -> Close | WaitUntil:
    return closing(policy, now, 0.0, 8, answered=answered, failed=failed)


def test_it_closes_at_once_when_everybody_has_answered_or_failed() -> None:
    assert verdict(1.0, [1.0] * 5, [1.0] * 3) == Close(Reason.ALL_IN)


def test_before_the_quantile_it_waits_for_the_deadline() -> None:
    assert verdict(5.0, [1.0] * 5, []) == WaitUntil(100.0)
    assert verdict(100.0, [1.0] * 5, []) == Close(Reason.DEADLINE)


def test_once_the_quantile_is_reached_the_others_get_the_grace_from_that_moment() -> None:
    answered = [3.0, 1.0, 2.0, 7.0, 4.0, 5.0]
    assert verdict(8.0, answered, []) == WaitUntil(17.0)
    assert verdict(17.0, answered, []) == Close(Reason.LATE)


def test_failures_count_towards_the_quantile_but_not_towards_the_quorum() -> None:
    assert verdict(8.0, [1.0] * 4, [6.0] * 2) == WaitUntil(16.0)
    assert verdict(8.0, [1.0] * 3, [6.0] * 3) == WaitUntil(100.0)
    assert verdict(8.0, [1.0] * 3 + [7.0], [6.0] * 3) == WaitUntil(17.0)


def test_it_closes_at_once_when_the_quorum_cannot_be_reached_any_more() -> None:
    assert verdict(2.0, [], [1.0] * 4) == WaitUntil(100.0)
    assert verdict(2.0, [], [1.0] * 5) == Close(Reason.QUORUM_LOST)


def test_a_grace_never_outlasts_the_deadline() -> None:
    assert verdict(96.0, [95.0] * 6, []) == WaitUntil(100.0)


def test_an_exchange_with_nobody_is_over() -> None:
    assert closing(POLICY, 0.0, 0.0, 0, answered=[], failed=[]) == Close(Reason.ALL_IN)


times = st.floats(0.0, 200.0)
policies = st.builds(
    Policy,
    timeout_s=st.floats(1.0, 100.0),
    quorum=st.floats(0.0, 1.0),
    quantile=st.floats(0.01, 1.0),
    grace_s=st.floats(0.0, 50.0),
)


@given(policies, st.integers(1, 12), st.lists(times, max_size=12), st.data())
def test_time_alone_closes_it_exactly_when_it_said(
    policy: Policy, asked: int, moments: list[float], data: st.DataObject
) -> None:
    clock = ManualClock(max(moments, default=0.0))
    arrived = moments[:asked]
    failed = arrived[: data.draw(st.integers(0, len(arrived)))]
    answered = arrived[len(failed) :]

    first = closing(policy, clock.now(), 0.0, asked, answered=answered, failed=failed)
    if isinstance(first, Close):
        return
    assert clock.now() < first.at <= policy.timeout_s
    just_before = math.nextafter(first.at, 0.0)
    assert isinstance(closing(policy, just_before, 0.0, asked, answered=answered, failed=failed), WaitUntil)
    clock.advance(first.at - clock.now())
    assert isinstance(closing(policy, max(clock.now(), first.at), 0.0, asked, answered=answered, failed=failed), Close)


@given(policies, st.integers(1, 12), st.lists(times, max_size=11), times)
def test_an_answer_more_never_makes_it_wait_longer(
    policy: Policy, asked: int, answered: list[float], extra: float
) -> None:
    now = max([*answered, extra])
    few = closing(policy, now, 0.0, asked, answered=answered, failed=[])
    more = closing(policy, now, 0.0, asked, answered=[*answered, extra], failed=[])
    if isinstance(few, Close):
        assert isinstance(more, Close)
    elif isinstance(more, WaitUntil):
        assert more.at <= few.at


@given(policies, st.integers(1, 12), st.lists(times, max_size=12))
def test_after_a_grace_the_quorum_is_there(policy: Policy, asked: int, answered: list[float]) -> None:
    found = closing(policy, 150.0, 0.0, asked, answered=answered[:asked], failed=[])
    if found == Close(Reason.LATE):
        assert len(answered[:asked]) >= policy.quorum * asked - 1e-6
