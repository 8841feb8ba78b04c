"""What a release costs is never less than the exact divergence says, and hardly more than the Gaussian's."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.privacy.accountant import ORDERS, Budget, calibrate, epsilon, renyi
from shared.privacy.events import CentralGaussian, Event, Skellam, contributors
from shared.privacy.noise import discrete_gaussian, inexactness

Floats = NDArray[np.float64]


def log_skellam(variance: float, most: int) -> Floats:
    """ln P(-most) … ln P(most), from a Poisson convolution in logarithms."""
    half = variance / 2
    counts = np.arange(int(most + half + 12 * math.sqrt(half) + 60))
    poisson = counts * math.log(half) - half - np.array([math.lgamma(k + 1) for k in counts])
    right = []
    for k in range(most + 1):
        terms = poisson[k:] + poisson[: poisson.size - k]
        right.append(float(terms.max() + math.log(np.exp(terms - terms.max()).sum())))
    return np.array(right[:0:-1] + right)


def divergence(logs: Floats, shift: int, order: float) -> float:
    """Rényi's, of order `order`, of the distribution shifted by `shift` from itself."""
    here, there = logs[shift:], logs[: logs.size - shift]
    terms = order * here - (order - 1) * there
    return float((terms.max() + math.log(np.exp(terms - terms.max()).sum())) / (order - 1))


@pytest.mark.parametrize("variance", [0.4, 2.0, 12.0, 80.0])
def test_the_skellam_bound_is_above_the_exact_divergence_in_one_dimension_and_close_to_it(variance: float) -> None:
    logs = log_skellam(variance, 400)
    for shift in (1, 2, 5):
        bounds = dict(zip(ORDERS, renyi(Skellam(variance, 1, shift**2, 1)), strict=True))
        for order in (2, 3, 5, 9, 16):
            exact = max(divergence(logs, shift, order), divergence(logs[::-1], shift, order))
            gaussian = order * shift**2 / (2 * variance)
            assert exact <= bounds[order] * (1 + 1e-9)
            assert gaussian * (1 - 1e-9) <= bounds[order]
            if variance >= 12 and order * shift < variance:
                assert bounds[order] <= 1.25 * exact


@pytest.mark.parametrize(
    ("variance", "dimension", "bound"),
    [
        (10.0, 9, 2 * 4 / 20 + (3 * 4 + 6 * 4) / 400),
        (10.0, 1, 2 * 4 / 20 + (3 * 4 + 6 * 2) / 400),  # one element: D1 is D2
        (0.5, 9, 2 * 4 / 1 + 3 * 4 / 1),  # little noise: the other term
    ],
)
def test_the_skellam_bound_is_the_published_one(variance: float, dimension: int, bound: float) -> None:
    """Order 2, D2 = 2, ten devices; exact divergences are below even the Gaussian's here, so they alone would not tell."""
    assert renyi(Skellam(variance / 10, 10, 4, dimension))[0] == pytest.approx(bound, rel=1e-12)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30).filter(any),
    st.sampled_from([1.5, 7.0]),
    st.sampled_from([2, 4, 11]),
)
def test_the_skellam_bound_is_above_the_exact_divergence_of_vectors(
    moved: list[int], variance: float, order: int
) -> None:
    logs = LOGS[variance]
    exact = sum(divergence(logs, abs(part), order) for part in moved if part)
    squared_norm = sum(part**2 for part in moved)
    bound = renyi(Skellam(variance, 1, squared_norm, len(moved)))[ORDERS.index(order)]
    assert exact <= bound * (1 + 1e-9)


LOGS = {variance: log_skellam(variance, 300) for variance in (1.5, 7.0)}


@pytest.mark.parametrize(("variance", "delta"), [(3.0, 1e-3), (20.0, 1e-5), (20.0, 0.01), (200.0, 1e-7)])
def test_epsilon_is_enough_for_the_exact_delta_of_one_release(variance: float, delta: float) -> None:
    for shift in (1, 3):
        found = epsilon({Skellam(variance, 1, shift**2, 1): 1}, delta)
        logs = log_skellam(variance, 300)
        here, there = np.exp(logs[shift:]), np.exp(logs[: logs.size - shift])
        exact = max(
            np.maximum(here - math.exp(found) * there, 0).sum(), np.maximum(there - math.exp(found) * here, 0).sum()
        )
        assert exact <= delta
        assert variance < 20 or exact >= delta / 1000  # and not by being absurdly careful


def library(ratio: float, rounds: int, delta: float) -> float:
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent, rdp  # type: ignore[import-not-found, import-untyped, unused-ignore]

    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(ratio), rounds))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("ratio", "rounds"), [(1.0, 1), (4.0, 50), (20.0, 1000)])
def test_fine_grids_cost_what_the_gaussian_costs(ratio: float, rounds: int) -> None:
    squared_norm, devices = 5000**2, 100
    event = Skellam(ratio**2 * squared_norm / devices, devices, squared_norm, 100_000)
    central = CentralGaussian(ratio**2 * squared_norm, squared_norm, 100_000)
    wanted = library(ratio, rounds, 1e-6)
    assert wanted <= epsilon({event: rounds}, 1e-6) <= wanted * 1.001
    assert epsilon({central: rounds}, 1e-6) == pytest.approx(wanted, rel=1e-9)


def test_known_values_of_the_gaussian() -> None:
    """Sigma 1 once, and sigma 10 a hundred times, at delta 1e-5: by hand from a / 2 s^2 + ln(1 - 1/a) - ln(a delta) / (a - 1)."""
    by_hand = min(a / 2 + math.log1p(-1 / a) - math.log(a * 1e-5) / (a - 1) for a in range(2, 100))
    assert epsilon({CentralGaussian(1.0, 1, 1): 1}, 1e-5) == pytest.approx(by_hand)
    assert epsilon({CentralGaussian(100.0, 1, 1): 100}, 1e-5) == pytest.approx(by_hand)
    assert 4.7 < by_hand < 4.8


def test_central_noise_has_the_divergence_that_is_accounted_for() -> None:
    """The discrete Gaussian as drawn, against the continuous one's bound."""
    variance = 6.0
    reach = discrete_gaussian(variance).reach
    logs = -(np.arange(-3 * reach, 3 * reach + 1) ** 2) / (2 * variance)
    logs -= math.log(np.exp(logs).sum())
    for shift, order in [(1, 2), (1, 8), (3, 2), (3, 5)]:
        exact = divergence(logs, shift, order)
        assert exact <= renyi(CentralGaussian(variance, shift**2, 1))[ORDERS.index(order)] * (1 + 1e-9)


BASE = Skellam(30.0, 20, 100, 50)
MORE: dict[str, tuple[Callable[[Skellam], Skellam], int]] = {
    "more noise": (lambda event: replace(event, variance=event.variance * 1.5), -1),
    "more contributors": (lambda event: replace(event, contributors=event.contributors + 5), -1),
    "longer vectors": (lambda event: replace(event, squared_norm=event.squared_norm * 2), 1),
    "more dimensions": (lambda event: replace(event, dimension=event.dimension * 100), 1),
}


@pytest.mark.parametrize("change", MORE)
@given(st.floats(0.5, 1e4), st.integers(1, 500), st.integers(1, 10_000), st.sampled_from([1e-9, 1e-5, 0.01]))
def test_epsilon_moves_the_right_way(
    change: str, variance: float, devices: int, squared_norm: int, delta: float
) -> None:
    step, sign = MORE[change]
    event = replace(BASE, variance=variance, contributors=devices, squared_norm=squared_norm)
    before, after = epsilon({event: 3}, delta), epsilon({step(event): 3}, delta)
    assert after >= before if sign > 0 else after <= before
    assert epsilon({event: 4}, delta) >= epsilon({event: 3}, delta) >= epsilon({event: 3}, 2 * delta)


def test_no_release_costs_nothing() -> None:
    assert epsilon({}, 1e-6) == epsilon({BASE: 0}, 1e-6) == 0.0


def test_the_order_of_events_makes_no_difference_at_all() -> None:
    events: list[Event] = [replace(BASE, variance=3.0 + 0.1 * i, squared_norm=10 + i) for i in range(12)]
    events.append(CentralGaussian(77.0, 3, 5))
    forward = epsilon(dict.fromkeys(events, 3), 1e-6)
    assert forward == epsilon(dict.fromkeys(reversed(events), 3), 1e-6)


def without_error(event: Event, delta: float) -> float:
    pairs = zip(ORDERS, renyi(event), strict=True)
    return min(float(cost) + math.log1p(-1 / order) - math.log(order * delta) / (order - 1) for order, cost in pairs)


def test_the_error_of_the_draws_is_paid_for() -> None:
    event = Skellam(4.0, 1000, 100, 1_000_000)
    error = event.inexactness
    assert error == 1e9 * inexactness(4.0) > 0
    assert without_error(event, 1e-9) <= epsilon({event: 1}, 1e-9) < without_error(event, 1e-9) * 1.0001
    delta = 50 * error
    found = epsilon({event: 1}, delta)
    assert found >= without_error(event, delta - error * (1 + math.exp(found))) > without_error(event, delta) * 1.0002
    assert epsilon({event: 1}, error) == math.inf  # as large as the error itself: nothing can be promised


TARGETS = [(Budget(8.0, 1e-5), 1), (Budget(1.0, 1e-6), 100), (Budget(0.5, 1e-7), 10)]


@pytest.mark.parametrize(("budget", "rounds"), TARGETS)
@pytest.mark.parametrize("event", [BASE, CentralGaussian(1.0, 100, 50)], ids=["skellam", "central"])
def test_a_calibrated_variance_is_enough_and_hardly_more(
    event: Skellam | CentralGaussian, budget: Budget, rounds: int
) -> None:
    found = calibrate(event, rounds, budget)
    assert epsilon({found: rounds}, budget.delta) <= budget.epsilon
    less = replace(found, variance=found.variance * (1 - 1e-5))
    assert epsilon({less: rounds}, budget.delta) > budget.epsilon


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"fewer secure\.bits"):
        calibrate(Skellam(1.0, 1, 10**12, 10**6), 1000, Budget(0.01, 1e-9))
    assert calibrate(Skellam(1.0, 10**9, 1, 1), 1, Budget(1.0, 1e-6)).variance == 2.0**-20


def test_only_devices_that_surely_add_noise_count() -> None:
    assert contributors(100, 0.0) == 100
    assert contributors(100, 0.3) == 70
    assert contributors(10, 0.25) == 7  # half a device adds nothing
    for clients, missing in [(1, 0.5), (10, 0.95), (0, 0.0)]:
        with pytest.raises(Unsupported, match="none surely adds noise"):
            contributors(clients, missing)
    for missing in (1.0, -0.1, math.nan):
        with pytest.raises(Unsupported, match="share"):
            contributors(10, missing)


BAD: dict[str, Callable[[], object]] = {
    "no variance": lambda: replace(BASE, variance=0.0),
    "variance not a number": lambda: replace(BASE, variance=math.nan),
    "variance that cannot be drawn": lambda: replace(BASE, variance=2.0**31),
    "no contributors": lambda: replace(BASE, contributors=0),
    "no sensitivity": lambda: replace(BASE, squared_norm=0),
    "no dimension": lambda: CentralGaussian(1.0, 1, 0),
    "no epsilon": lambda: Budget(0.0, 0.1),
    "infinite epsilon": lambda: Budget(math.inf, 0.1),
    "no delta": lambda: Budget(1.0, 0.0),
    "delta of one": lambda: Budget(1.0, 1.0),
}


@pytest.mark.parametrize("case", BAD)
def test_what_means_nothing_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match=r"variance|contributor|positive|budget"):
        BAD[case]()
