"""The rotation is orthogonal, undone by its inverse, the same for the same seed, and spreads whatever it gets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.secagg.rotation import Rotation, turn

SEED = b"s" * 32
EDGES = [0, 1, 2, 3, 31, 32, 33, 1000, 1023, 1024, 1025, 1032, 1500, 2048, 10_001]


def vector(length: int, kind: str = "f8", seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
    return np.random.default_rng(seed).standard_normal(length).astype(kind)


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize(("kind", "slack"), [("f4", 1e-4), ("f8", 1e-10)])
def test_it_keeps_lengths_and_its_inverse_undoes_it(length: int, kind: str, slack: float) -> None:
    values = vector(length, kind)
    rotation = Rotation(SEED, length, kind)
    turned = rotation.forward(values.copy())
    assert turned.dtype == np.dtype(kind)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=slack)
    assert abs(rotation.backward(turned.copy()) - values).max(initial=0) < slack


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_it_is_linear_and_undone_at_any_length(length: int, seed: int) -> None:
    one, other = vector(length, seed=seed), vector(length, seed=seed + 1)
    rotation = Rotation(SEED, length, "f8")
    turned = rotation.forward(one.copy()) + rotation.forward(other.copy())
    assert np.allclose(turned, rotation.forward(one + other), atol=1e-10)
    assert np.allclose(rotation.backward(turned), one + other, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 33, 200])
def test_its_matrix_is_orthogonal(length: int) -> None:
    rotation = Rotation(SEED, length, "f8")
    matrix = np.array([rotation.forward(row.copy()) for row in np.eye(length)])
    assert np.allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)


@pytest.mark.parametrize("length", [250, 750, 1024, 1025, 1032, 1500, 3072, 10_000])
def test_it_flattens_a_spike_wherever_it_is(length: int) -> None:
    """To about the square root of the block's length; also where the blocks overlap by almost all of their length."""
    rotation = Rotation(SEED, length, "f8")
    block = min(1024, 1 << (length.bit_length() - 1))
    for place in [*range(0, length, 193), length - 1]:
        spike = np.zeros(length)
        spike[place] = 1.0
        assert abs(rotation.forward(spike)).max() < 6 / np.sqrt(block)


def test_it_flattens_a_constant_vector() -> None:
    """Which a Hadamard matrix alone, without random signs, turns into a spike."""
    for length in (1024, 1500):
        turned = Rotation(SEED, length, "f8").forward(np.ones(length))
        assert abs(turned).max() < 8


@pytest.mark.parametrize("length", [100, 5000])
def test_the_same_seed_gives_the_same_rotation_and_another_seed_another(length: int) -> None:
    values = vector(length, "f4")
    turned = Rotation(SEED, length).forward(values.copy())
    assert (turned == Rotation(SEED, length).forward(values.copy())).all()
    assert not np.allclose(turned, Rotation(b"t" * 32, length).forward(values.copy()), atol=1e-3)


def test_a_known_answer() -> None:
    """Signs are the first bits of the seed's keystream, which for a seed of zeros begins with dc; then comes Sylvester's matrix."""
    turned = Rotation(bytes(32), 4, "f8").forward(np.array([1.0, 2.0, 3.0, 4.0]))
    signs = 1 - 2 * np.unpackbits(np.frombuffer(bytes.fromhex("dc"), "u1"))[:4].astype(float)
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    assert np.allclose(turned, hadamard @ (signs * [1.0, 2.0, 3.0, 4.0]))


# ---- subsampling


@pytest.mark.parametrize("length", [1, 7, 200, 4097, 10_001])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_what_is_kept_comes_back_as_its_part_of_the_vector(length: int, share: float) -> None:
    """Keeping is a projection: done again it changes nothing, and what it drops is at right angles to what it keeps."""
    kept = int(np.ceil(share * length))
    rotation = Rotation(SEED, length, "f8", kept=kept)
    values = vector(length)
    turned = rotation.forward(values.copy())
    assert turned.shape == (kept,)
    part = rotation.backward(turned.copy())
    assert part.shape == (length,)
    assert np.allclose(rotation.forward(part.copy()), turned, atol=1e-10)
    assert np.dot(part, values - part) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("length", [300, 4100])
def test_every_coordinate_is_as_likely_to_be_kept_as_any_other(length: int) -> None:
    """The last ones too, which no whole block holds."""
    kept, seeds = length // 4, 400
    mean = np.zeros(length)
    for seed in range(seeds):
        rotation = Rotation(seed.to_bytes(32, "big"), length, "f8", kept=kept)
        mean += rotation.backward(rotation.forward(np.ones(length)))
    mean /= seeds
    assert mean.mean() == pytest.approx(0.25, abs=0.02)
    assert mean[-length % 256 - 1 :].mean() == pytest.approx(0.25, abs=0.1)
    assert mean.min() > 0.05
    assert mean.max() < 0.45


@pytest.mark.parametrize("whole", [1, 40, 199])
def test_what_comes_first_is_kept_whole_and_the_rest_in_part(whole: int) -> None:
    length = 200
    kept = whole + (length - whole) // 4
    values = vector(length)
    turned = turn(SEED, length, "f8", kept=kept, whole=whole).forward(values.copy())
    assert turned.shape == (kept,)
    part = turn(SEED, length, "f8", kept=kept, whole=whole).backward(turned.copy())
    np.testing.assert_allclose(part[:whole], values[:whole], atol=1e-10)
    assert not np.allclose(part[whole:], values[whole:], atol=1e-3)
    assert np.dot(part, values - part) == pytest.approx(0, abs=1e-8)
    assert not np.allclose(abs(turned[:whole]), abs(values[:whole])) or whole == 1, "it is turned as well"
