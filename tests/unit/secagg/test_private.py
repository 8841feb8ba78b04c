"""A private vector: what bounds it, what noise it gets, and that nothing else is in it."""

import math
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import Malformed, ProtocolError, RoundAborted, Unsupported, UpdateRejected
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.clip import squared
from shared.privacy.events import CentralGaussian, Skellam, contributors
from shared.privacy.noise import discrete_gaussian, reach
from shared.secagg.graph import Rates
from shared.secagg.keys import Secret
from shared.secagg.masks import keystream
from shared.secagg.packing import MOST_BITS
from shared.secagg.policy import PrivacyPolicy
from shared.secagg.private import Mechanism, Privacy, central_noise, noise_multiplier, noised, stream_of
from shared.secagg.quantize import Total, Update, decode, encode
from shared.secagg.rotation import Rotation
from shared.secagg.schema import BITS, ArrayField, MetricField, Schema
from shared.secagg.terms import GroupTerms, Settings
from tests.unit.privacy.streams import chi_square, skellam_pmf
from tests.unit.secagg.test_quantize import add, levels
from tests.unit.secagg.vectors import plain

PRIVACY = Privacy(Mechanism.DISTRIBUTED, 8.0, 1e-6, 1.0, 10, 0.1)
PRIVATE = Settings(privacy=PRIVACY, feedback=False)
ROTATION = bytes(range(32))


def schema_of(size: int = 100, clients: int = 10, noise: float = 0.0, bits: int = 8) -> Schema:
    asked = replace(PRIVATE, bits=bits, noise=noise)
    return asked.schema(clients, {"w": np.zeros(size, "f4")}, ROTATION)


def change(size: int, seed: int, norm: float = 1.0) -> NDArray[Any]:
    values = np.random.default_rng(seed).standard_normal(size)
    return (values * (norm / np.linalg.norm(values))).astype("f4")


# ---- the sum


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 12),
    bits=st.sampled_from(BITS),
    size=st.sampled_from([1, 2, 50, 300]),
    noise=st.sampled_from([0.0, 0.01, 3.0, 5000.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_decodes_to_the_mean_of_the_noised_vectors_bit_for_bit(
    clients: int, bits: int, size: int, noise: float, seed: int
) -> None:
    schema = schema_of(size, clients, noise, bits)
    vectors = [plain(schema, {"w": change(size, seed + n, 3.0)}) for n in range(clients)]
    total = decode(schema, add(schema, vectors), clients)
    exact = np.sum([levels(schema, vector) for vector in vectors], axis=0)
    turned = Rotation(ROTATION, size, "f8").backward(exact * (schema.clip / schema.levels))
    assert np.array_equal(total.changes["w"], turned * (1.0 / clients * schema.arrays[0].scale))
    assert (total.count, total.weight, total.metrics, total.sizes, total.clipped) == (clients, clients, {}, {}, 0.0)


def test_the_mean_is_the_clipped_changes_mean_where_no_noise_is_added() -> None:
    schema = schema_of(2000, 3, bits=16)
    changes = [change(2000, seed, norm) for seed, norm in ((1, 0.5), (2, 1.0), (3, 40.0))]
    total = decode(schema, add(schema, [plain(schema, {"w": one}) for one in changes]), 3)
    expected = np.mean([one / max(1.0, float(np.linalg.norm(one))) for one in changes], axis=0)
    assert np.linalg.norm(total.changes["w"] - expected) < 1e-3


@pytest.mark.parametrize("clients", [1, 3, 10, 1000])
@pytest.mark.parametrize("noise", [0.001, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_extreme_sum_does_not_wrap_and_what_is_beyond_it_is_refused(clients: int, noise: float, sign: int) -> None:
    schema = schema_of(4, clients, noise)
    most = clients * schema.levels + reach(clients * noise)
    assert 2 * most + 1 <= 1 << schema.modulus_bits
    assert clients * ((1 << schema.bits) - 1) < 1 << schema.modulus_bits, "digits of the count neither"

    def sum_of(element: int) -> Total:
        quiet = replace(schema, noise=0.0)
        elements = quiet.layout.split(plain(quiet, {"w": np.zeros(4, "f4")})) * clients
        elements[schema.exact * schema.digits :] = element
        sent = schema.layout.join(elements)
        return decode(schema, schema.layout.unpack(schema.layout.pack(sent)), clients)

    turned = Rotation(ROTATION, 4, "f8").forward(sum_of(sign * most).changes["w"] * clients / schema.arrays[0].scale)
    assert np.allclose(turned * schema.levels / schema.clip, sign * most)
    if most + 1 < 1 << (schema.modulus_bits - 1):
        with pytest.raises(RoundAborted, match="larger than"):
            sum_of(sign * (most + 1))


def test_without_noise_a_private_element_takes_no_more_bits_than_any() -> None:
    assert schema_of(clients=100).modulus_bits == 8 + 7
    assert schema_of(clients=100, noise=1e4).modulus_bits > 8 + 7


def test_noise_that_no_word_holds_is_refused() -> None:
    with pytest.raises(Unsupported, match="does not fit into a word: state fewer bits"):
        replace(PRIVATE, bits=16, noise=2.0**30).schema(1 << 20, {"w": np.zeros(9, "f4")}, ROTATION)
    assert schema_of(9, 100, 2.0**30).modulus_bits <= MOST_BITS


# ---- the bound


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 10, 333, 4097]),
    bits=st.sampled_from(BITS),
    power=st.integers(-6, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_a_device_trained_its_rounded_vector_keeps_within_the_bound(
    size: int, bits: int, power: int, seed: int
) -> None:
    schema = schema_of(size, bits=bits)
    values = change(size, seed, 10.0**power)
    assert squared(levels(schema, plain(schema, {"w": values}))) <= schema.squared_norm


def test_the_bound_is_near_the_clipped_norm_and_so_is_a_clipped_vector() -> None:
    schema = schema_of(10_000)
    asked = (schema.norm * schema.levels / schema.clip) ** 2
    assert asked < schema.squared_norm < 1.02 * asked
    assert 0.97 * asked < squared(levels(schema, plain(schema, {"w": change(10_000, 1, 1e6)}))) <= schema.squared_norm


def test_one_large_element_is_bounded_as_the_whole_vector_is() -> None:
    schema, values = schema_of(5000), np.zeros(5000, "f4")
    values[17] = 1e9
    got = decode(schema, plain(schema, {"w": values}), 1).changes["w"]
    assert np.linalg.norm(got) <= math.sqrt(schema.squared_norm) * schema.clip / schema.levels * schema.arrays[0].scale
    assert got[17] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_leaves_nothing(poison: float) -> None:
    values = change(50, 1)
    values[3] = poison
    with pytest.raises(UpdateRejected, match="not finite"):
        plain(schema_of(50, noise=5.0), {"w": values})


def test_a_vector_that_cannot_be_rounded_within_its_bound_leaves_nothing() -> None:
    with pytest.raises(UpdateRejected, match="longer than its bound"):
        noised(schema_of(50), lambda: np.full(50, 127.0), os.urandom)


# ---- the noise


@pytest.mark.parametrize("variance", [0.3, 2.0, 60.0])
def test_a_vector_of_zeros_is_skellam_noise_of_the_variance(variance: float) -> None:
    drawn = levels(
        schema_of(100_000, noise=variance), plain(schema_of(100_000, noise=variance), {"w": np.zeros(100_000, "f4")})
    )
    most = int(abs(drawn).max())
    expected = 100_000 * skellam_pmf(variance, most)
    statistic, freedom = chi_square(np.bincount(drawn + most, minlength=2 * most + 1), expected)
    assert statistic < freedom + 10 * math.sqrt(2 * freedom) + 10


def test_noise_is_fresh_for_each_vector_and_of_no_use_to_a_second() -> None:
    schema = schema_of(1000, noise=50.0)
    first, second = (levels(schema, plain(schema, {"w": np.zeros(1000, "f4")})) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_rounding_and_noise_have_keys_of_their_own() -> None:
    asked: list[int] = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    update = Update(1, {}, {"w": change(10, 1, 0.5)}, {"w": np.zeros(10, "f4")})
    encode(schema_of(10, noise=9.0), update, entropy, feedback=False)
    assert len(asked) >= 2
    assert set(asked) == {32}


def test_a_stream_never_gives_a_byte_twice() -> None:
    stream = stream_of(bytes)
    parts = [stream(size) for size in (5, 16, 1, 40)]
    offsets = (0, 1, 2, 3)  # in blocks of 16 bytes
    whole = keystream(Secret(bytes(32)), 16 * 7)
    for part, block in zip(parts, offsets, strict=True):
        assert np.array_equal(part, whole[16 * block : 16 * block + part.size])


def test_central_noise_is_added_to_the_sum_before_it_is_read() -> None:
    schema = schema_of(1000, 3)
    vectors = [plain(schema, {"w": change(1000, n)}) for n in range(3)]
    noise = np.arange(1000, dtype=np.int64) * 10**6
    quiet, loud = decode(schema, add(schema, vectors), 3), decode(schema, add(schema, vectors), 3, noise)
    step = schema.clip / schema.levels * schema.arrays[0].scale / 3
    added = Rotation(ROTATION, 1000, "f8").forward(loud.changes["w"] - quiet.changes["w"])
    np.testing.assert_allclose(added, noise * step, rtol=1e-9, atol=1e-6)


def test_central_noise_has_the_variance_of_its_event() -> None:
    event = CentralGaussian(400.0, 900, 50_000)
    drawn = central_noise(event, os.urandom)
    assert (drawn.shape, drawn.dtype) == ((50_000,), np.dtype("i8"))
    assert drawn.var() == pytest.approx(400.0, rel=0.05)
    assert abs(drawn).max() <= discrete_gaussian(400.0).reach


# ---- nothing else


def test_the_count_is_all_that_is_exact() -> None:
    schema = schema_of(100)
    assert (schema.exact, schema.length) == (1, schema.digits + 100)
    a, b = (schema.layout.split(plain(replace(schema, noise=0.0), {"w": change(100, 1)})) for _ in range(2))
    zero = -(1 << (schema.bits - 1))  # of a digit
    assert a[: schema.digits].tolist() == b[: schema.digits].tolist() == [zero + 1, zero, zero, zero]


REFUSED: dict[str, Any] = {
    "metrics": lambda: Settings(privacy=PRIVACY, feedback=False, metrics=(MetricField("loss", 0.0, 1.0),)),
    "error feedback": lambda: Settings(privacy=PRIVACY),
    "integer arrays": lambda: PRIVATE.schema(3, {"w": np.zeros(3, "f4"), "n": np.zeros(1, "i8")}, ROTATION),
    "no float arrays": lambda: PRIVATE.schema(3, {}, ROTATION),
    "noise without a bound": lambda: Schema(3, 8, 1, arrays=(ArrayField("w", (3,), "float32", 1.0),), noise=4.0),
    "noise that is not a number": lambda: schema_of(noise=math.nan),
    "negative noise": lambda: schema_of(noise=-1.0),
    "epsilon zero": lambda: replace(PRIVACY, epsilon=0.0),
    "an infinite epsilon": lambda: replace(PRIVACY, epsilon=math.inf),
    "delta one": lambda: replace(PRIVACY, delta=1.0),
    "no norm": lambda: replace(PRIVACY, clip_norm=0.0),
    "a norm of NaN": lambda: replace(PRIVACY, clip_norm=math.nan),
    "no rounds": lambda: replace(PRIVACY, rounds=0),
    "everybody missing": lambda: replace(PRIVACY, missing=1.0),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_what_would_break_the_promise_is_refused_when_it_is_made(build: Any) -> None:
    with pytest.raises(Unsupported):
        build()


def test_feedback_and_what_is_owed_are_refused_by_the_codec_too() -> None:
    zeros = {"w": np.zeros(5, "f4")}
    with pytest.raises(Unsupported, match="carries nothing over"):
        encode(schema_of(5), Update(1, {}, zeros, zeros), os.urandom, feedback=True)
    with pytest.raises(Unsupported, match="carries nothing over"):
        encode(schema_of(5), Update(1, {}, zeros, zeros, zeros), os.urandom, feedback=False)


def test_a_sum_changes_nothing_about_the_next_exchange() -> None:
    asked = replace(PRIVATE, noise=4.0)
    schema = asked.schema(3, {"w": np.zeros(50, "f4")}, ROTATION)
    total = decode(schema, add(schema, [plain(schema, {"w": change(50, n, 99.0)}) for n in range(3)]), 3)
    assert asked.after(total) is asked


# ---- what both ends agree on

DIFFERENT: dict[str, dict[str, Any]] = {
    "mechanism": {"mechanism": Mechanism.CENTRAL},
    "epsilon": {"epsilon": 9.0},
    "delta": {"delta": 1e-7},
    "clip_norm": {"clip_norm": 2.0},
    "rounds": {"rounds": 11},
    "missing": {"missing": 0.2},
}


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT)
def test_settings_travel_whole_and_any_difference_changes_the_digest(other: dict[str, Any]) -> None:
    asked = replace(PRIVATE, noise=1 / 3)
    assert Settings.from_fields(asked.to_fields()) == asked
    arrays = {"w": np.zeros(7, "f4")}
    changed = replace(asked, privacy=replace(PRIVACY, **other))
    assert Settings.from_fields(changed.to_fields()) == changed
    assert changed.schema(5, arrays, ROTATION).digest != asked.schema(5, arrays, ROTATION).digest
    assert replace(asked, noise=0.25).schema(5, arrays, ROTATION).digest != asked.schema(5, arrays, ROTATION).digest


def test_settings_that_a_peer_made_up_are_malformed() -> None:
    fields = replace(PRIVATE, noise=4.0).to_fields()
    lies: list[dict[str, Any]] = [{"mechanism": "none"}, {"epsilon": -1.0}, {"missing": "few"}, {"feedback": 1}]
    for lie in lies:
        with pytest.raises(Malformed):
            Settings.from_fields({**fields, **lie})


def test_the_noise_is_the_least_that_keeps_all_rounds_within_the_budget() -> None:
    arrays = {"w": np.zeros((20, 5), "f4"), "b": np.zeros(100, "f8")}
    asked = PRIVATE.with_noise(20, 5, arrays)
    schema = asked.schema(20, arrays, ROTATION)
    event = PRIVACY.event(schema, 5, schema.noise)
    assert isinstance(event, Skellam)
    assert (event.contributors, event.dimension, event.squared_norm) == (13, 200, schema.squared_norm)
    assert 0.99 * PRIVACY.epsilon < epsilon({event: PRIVACY.rounds}, PRIVACY.delta) <= PRIVACY.epsilon
    assert epsilon({replace(event, variance=event.variance / 1.1): PRIVACY.rounds}, PRIVACY.delta) > PRIVACY.epsilon


def test_rounds_over_other_numbers_of_devices_keep_within_the_budget_together() -> None:
    arrays = {"w": np.zeros(500, "f4")}
    events = []
    for clients in range(8, 8 + PRIVACY.rounds):
        schema = PRIVATE.with_noise(clients, 2, arrays).schema(clients, arrays, ROTATION)
        events.append(PRIVACY.event(schema, 2, schema.noise))
    assert len(set(events)) > PRIVACY.rounds / 2
    assert epsilon(Counter(events), PRIVACY.delta) <= PRIVACY.epsilon


def test_central_noise_is_nothing_that_devices_add() -> None:
    arrays = {"w": np.zeros(500, "f4")}
    asked = replace(PRIVATE, privacy=replace(PRIVACY, mechanism=Mechanism.CENTRAL))
    assert asked.with_noise(10, 2, arrays) is asked


@pytest.mark.parametrize(
    ("clients", "missing", "dropped", "certain"), [(20, 0.1, 5, 13), (20, 0.0, 0, 20), (3, 0.1, 0, 2), (10, 0.11, 2, 6)]
)
def test_those_that_add_none_may_all_be_counted_and_those_that_drop_be_others(
    clients: int, missing: float, dropped: int, certain: int
) -> None:
    assert contributors(clients, missing, dropped) == certain


def test_a_round_in_which_nobody_surely_adds_noise_is_refused() -> None:
    with pytest.raises(Unsupported, match="none surely adds noise"):
        contributors(4, 0.5, 2)


# ---- what a device insists on

TERMS = GroupTerms("g", 20, 4, Rates(0.25, 0.05))


def admitted(policy: PrivacyPolicy, asked: Settings, *, training: bool = True) -> Any:
    return policy.admit(asked, asked.schema(20, {"w": np.zeros(100, "f4")}, ROTATION), TERMS, training=training)


def noisy() -> Settings:
    return PRIVATE.with_noise(20, 5, {"w": np.zeros(100, "f4")})


def test_a_device_reckons_for_itself_what_a_round_costs() -> None:
    event = admitted(PrivacyPolicy(Budget(9.0, 1e-6), noise=0.1), noisy())
    assert isinstance(event, Skellam)
    assert (event.contributors, event.variance) == (13, noisy().noise)


LESS: dict[str, tuple[PrivacyPolicy, Any]] = {
    "no noise at all, a budget": (PrivacyPolicy(Budget(9.0, 1e-6)), Settings),
    "no noise at all, a least noise": (PrivacyPolicy(noise=0.5), Settings),
    "noise by the coordinator": (
        PrivacyPolicy(Budget(9.0, 1e-6)),
        lambda: replace(PRIVATE, privacy=replace(PRIVACY, mechanism=Mechanism.CENTRAL)),
    ),
    "too little noise": (PrivacyPolicy(noise=100.0), noisy),
    "noise that is promised and not asked for": (PrivacyPolicy(), lambda: PRIVATE),
    "fewer missing than the group may have corrupt": (
        PrivacyPolicy(),
        lambda: replace(noisy(), privacy=replace(PRIVACY, missing=0.01)),
    ),
}


@pytest.mark.parametrize(("policy", "asked"), LESS.values(), ids=LESS)
def test_a_device_refuses_less_whatever_the_coordinator_asks(policy: PrivacyPolicy, asked: Any) -> None:
    with pytest.raises(ProtocolError):
        admitted(policy, asked())


def test_a_private_job_measures_nothing_on_devices() -> None:
    with pytest.raises(ProtocolError, match="measures nothing"):
        admitted(PrivacyPolicy(), noisy(), training=False)


def test_a_device_without_demands_trains_as_ever() -> None:
    assert admitted(PrivacyPolicy(), Settings()) is None
    assert admitted(PrivacyPolicy(), replace(PRIVATE, privacy=replace(PRIVACY, mechanism=Mechanism.CENTRAL))) is None


def test_the_noise_multiplier_is_of_the_noise_that_is_sure() -> None:
    assert noise_multiplier(Skellam(100.0, 9, 900, 5)) == pytest.approx(1.0)
    assert noise_multiplier(CentralGaussian(3600.0, 900, 5)) == pytest.approx(2.0)
