"""Noise follows its distribution to the stated error, and its shares add up."""

import math
from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.privacy.noise import (
    MAX_GAUSSIAN_VARIANCE,
    MAX_VARIANCE,
    MIN_VARIANCE,
    Pair,
    Table,
    discrete_gaussian,
    inexactness,
    reach,
    skellam,
)
from tests.unit.privacy.streams import chi_square, fixed, scripted, skellam_masses, skellam_pmf

SIZE = 200_000


def probabilities(table: Table) -> list[Fraction]:
    """What a draw gives, exactly, from the thresholds."""
    pairs = zip(table._high.tolist(), table._low.tolist(), strict=True)
    thresholds = [0, *((high << 64) + low for high, low in pairs), 1 << 128]
    return [Fraction(above - below, 1 << 128) for below, above in pairwise(thresholds)]


def counts(values: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    assert np.abs(values).max() <= most
    return np.bincount(values + most, minlength=2 * most + 1)


@pytest.mark.parametrize("variance", [2.0**-20, 0.1, 1.0, 7.25, 60.0])
def test_a_table_of_skellam_noise_is_within_its_stated_distance_of_the_exact_probabilities(variance: float) -> None:
    table = skellam(variance)
    far = table.reach + 40
    right = skellam_masses(Fraction(variance), far)
    whole = right[0] + 2 * sum(right[1:])
    inside = [right[abs(k)] / whole for k in range(-table.reach, table.reach + 1)]
    distance = sum(abs(given - wanted) for given, wanted in zip(probabilities(table), inside, strict=True))
    distance = (distance + 2 * sum(right[table.reach + 1 :]) / whole) / 2
    assert distance <= Fraction(inexactness(variance))
    assert inexactness(variance) < 2.0**-105


@pytest.mark.parametrize("variance", [0.3, 1.0, 40.0])
def test_a_table_of_gaussian_noise_has_the_ratios_of_its_density(variance: float) -> None:
    table = discrete_gaussian(variance)
    assert isinstance(table, Table)
    given = probabilities(table)
    middle = given[table.reach]
    for k in range(int(6 * math.sqrt(variance)) + 1):
        wanted = math.exp(-k * k / (2 * variance))
        assert float(given[table.reach + k] / middle) == pytest.approx(wanted, rel=1e-9)
        assert abs(given[table.reach + k] - given[table.reach - k]) <= Fraction(2, 1 << 128)


@pytest.mark.parametrize("variance", [0.2, 5.0, 300.0, 2.0**20])
def test_skellam_noise_has_mean_variance_and_kurtosis_of_skellam(variance: float) -> None:
    drawn = skellam(variance).draw(SIZE, fixed(1)).astype(np.float64)
    deviation = math.sqrt(variance)
    assert abs(drawn.mean()) < 5 * deviation / math.sqrt(SIZE)
    fourth = 3 * variance**2 + variance  # the excess kurtosis is 1 / v
    assert abs((drawn**2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / SIZE)
    assert (drawn**4).mean() == pytest.approx(fourth, rel=0.15)


@pytest.mark.parametrize("variance", [0.5, 6.0, 90.0])
def test_skellam_noise_passes_a_chi_square_test_against_the_exact_probabilities(variance: float) -> None:
    most = skellam(variance).reach
    seen = counts(skellam(variance).draw(SIZE, fixed(2)), most)
    statistic, freedom = chi_square(seen, SIZE * skellam_pmf(variance, most))
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    wrong, freedom = chi_square(seen, SIZE * skellam_pmf(variance * 1.03, most))  # the test has teeth
    assert wrong > freedom + 5 * math.sqrt(2 * freedom)


def test_the_tables_of_two_shares_convolve_to_the_table_of_their_sum() -> None:
    one, two, both = (probabilities(skellam(variance)) for variance in (1.5, 2.0, 3.5))
    together = np.convolve(np.array([float(item) for item in one]), np.array([float(item) for item in two]))
    whole = np.array([float(item) for item in both])
    centre, most = together.size // 2, whole.size // 2
    assert np.abs(together[centre - most : centre + most + 1] - whole).max() < 1e-15


def test_the_sum_of_many_shares_is_noise_of_their_total_variance() -> None:
    share, devices = 0.7, 20
    total = sum(skellam(share).draw(SIZE, fixed(100 + device)).astype(np.int64) for device in range(devices))
    assert isinstance(total, np.ndarray)
    most = 60
    statistic, freedom = chi_square(counts(total, most), SIZE * skellam_pmf(share * devices, most))
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_wide_gaussian_noise_is_a_pair_with_moments_and_tails_of_its_own_variance() -> None:
    variance = 2.0**30
    pair = discrete_gaussian(variance)
    assert isinstance(pair, Pair)
    drawn = pair.draw(SIZE, fixed(3)).astype(np.float64) / math.sqrt(variance)
    assert abs(drawn.mean()) < 5 / math.sqrt(SIZE)
    assert abs((drawn**2).mean() - 1) < 5 * math.sqrt(2 / SIZE)
    beyond = math.erfc(2 / math.sqrt(2))
    assert abs((np.abs(drawn) > 2).mean() - beyond) < 5 * math.sqrt(beyond / SIZE)
    odd = pair.draw(SIZE, fixed(4)) % pair.factor  # every residue of the factor is equally likely: no comb
    statistic, freedom = chi_square(np.bincount(odd, minlength=pair.factor), np.full(pair.factor, SIZE / pair.factor))
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_pair_convolves_to_the_density_of_the_total_variance() -> None:
    """The lemma that `discrete_gaussian` rests on, at a size where it can be summed: u / (1 + m^2) = 5 is exp(-98)."""
    share, factor = 50.0, 3
    one = np.array(
        [float(item) for item in probabilities(Table([int(2**90 * math.exp(-k * k / 100)) for k in range(90)]))]
    )
    spread = np.zeros(factor * (one.size - 1) + 1)
    spread[::factor] = one
    both = np.convolve(one, spread)
    k = np.arange(both.size) - both.size // 2
    density = np.exp(-(k**2) / (2 * share * (1 + factor**2)))
    inner = np.abs(k) < 100
    assert np.abs(both / both.max() - density)[inner].max() < 1e-14


def test_the_first_sixteen_bits_alone_already_give_the_probabilities_of_all_settled_outcomes() -> None:
    table = skellam(4.0)
    first = np.arange(1 << 16, dtype="<u2")
    open_cells = int((table._table == table._open).sum())
    assert 0 < open_cells <= 2 * table.reach
    drawn = table.draw(1 << 16, scripted([first.tobytes(), fixed(8)(8 * open_cells).tobytes()]))
    share = counts(drawn, table.reach) / (1 << 16)
    assert np.abs(share - skellam_pmf(4.0, table.reach)).max() < 2.0**-15


def test_a_draw_at_a_threshold_is_decided_by_all_128_bits() -> None:
    """Also far out, where many thresholds begin with the same 64 bits."""
    table = skellam(2.0)
    thresholds = [(high << 64) + low for high, low in zip(table._high.tolist(), table._low.tolist(), strict=True)]
    for value in {near for threshold in thresholds for near in (threshold - 1, threshold, threshold + 1)} - {
        -1,
        1 << 128,
    }:
        first, more, rest = value >> 112, value >> 64 & (1 << 48) - 1, value & (1 << 64) - 1
        parts = [first.to_bytes(2, "little"), (more << 16).to_bytes(8, "little"), rest.to_bytes(8, "little")]
        assert table.draw(1, scripted(parts))[0] == bisect_right(thresholds, value) - table.reach


def test_the_same_keystream_gives_the_same_noise_and_another_another() -> None:
    one, again, other = (skellam(9.0).draw(1000, fixed(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert skellam(9.0).draw(0, fixed(5)).shape == (0,)


@pytest.mark.parametrize("variance", [0.01, 1.0, 30.0, 1e4, 1e9])
@pytest.mark.parametrize("bits", [20, 60, 120])
def test_the_reach_is_the_least_that_the_bound_gives_and_grows_with_the_variance(variance: float, bits: int) -> None:
    assert reach(variance, bits) <= reach(2 * variance, bits) <= reach(2 * variance, bits + 1)
    assert reach(variance, bits) >= math.floor(math.sqrt(2 * bits * math.log(2) * variance)) - 1


def test_a_tail_beyond_the_reach_is_as_rare_as_promised() -> None:
    for variance, bits in [(0.5, 8), (4.0, 20), (60.0, 30)]:
        right = skellam_masses(Fraction(variance), reach(variance, bits) + 200, 80)
        whole = right[0] + 2 * sum(right[1:])
        assert sum(right[reach(variance, bits) + 1 :]) / whole <= Fraction(1, 2**bits)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, MIN_VARIANCE / 2, MAX_GAUSSIAN_VARIANCE * 2])
def test_noise_of_an_impossible_variance_is_refused(variance: float) -> None:
    for kind in (skellam, discrete_gaussian):
        with pytest.raises(Unsupported, match="another step of the grid"):
            kind(variance)
    with pytest.raises(Unsupported, match="another step of the grid"):
        skellam(MAX_VARIANCE * 2)
    if not 0 < variance < math.inf:
        with pytest.raises(Unsupported, match="positive, finite"):
            reach(variance)
