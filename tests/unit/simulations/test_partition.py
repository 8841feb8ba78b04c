import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from simulations.partition import dirichlet_split, holdout, natural_split, public_split

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def labels_and_devices(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    devices = draw(st.integers(1, 12))
    minimum = draw(st.integers(0, 5))
    count = draw(st.integers(max(1, devices * minimum), devices * minimum + 200))
    labels = np.array(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), np.int64)
    return labels, devices, minimum


@settings(deadline=None)
@given(labels_and_devices(), st.floats(0.01, 100), SEEDS)
def test_a_dirichlet_split_gives_each_row_to_exactly_one_device_and_each_device_its_minimum(
    case: tuple[np.ndarray, int, int],
    alpha: float,
    seed: int,
) -> None:
    labels, devices, minimum = case
    parts = dirichlet_split(labels, devices, alpha, np.random.default_rng(seed), minimum=minimum)
    assert len(parts) == devices
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(len(part) >= minimum for part in parts)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    labels = np.repeat(np.arange(10), 50)
    first, again, other = (dirichlet_split(labels, 8, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_gives_each_device_few_classes_and_a_large_one_nearly_all() -> None:
    labels = np.repeat(np.arange(10), 500)

    def share_of_largest_class(alpha: float) -> float:
        parts = dirichlet_split(labels, 8, alpha, np.random.default_rng(0), minimum=50)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert share_of_largest_class(0.05) > 0.5
    assert share_of_largest_class(1000) < 0.15


@pytest.mark.parametrize(
    ("devices", "alpha", "minimum", "key"),
    [(0, 0.5, 1, "devices"), (4, 0.0, 1, "alpha"), (4, float("nan"), 1, "alpha"), (4, 0.5, 26, "minimum")],
)
def test_an_impossible_split_is_refused_and_names_its_key(devices: int, alpha: float, minimum: int, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dirichlet_split(np.zeros(100, np.int64), devices, alpha, np.random.default_rng(0), minimum=minimum)
    assert refused.value.path == key


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.floats(0.01, 0.99), SEEDS)
def test_a_public_split_is_complete_disjoint_and_holds_every_class(labels: list[int], share: float, seed: int) -> None:
    known = np.array(labels, np.int64)
    public, rest = public_split(known, share, np.random.default_rng(seed))
    assert sorted([*public.tolist(), *rest.tolist()]) == list(range(len(labels)))
    assert set(known[public].tolist()) == set(labels)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 8))
def test_a_natural_split_never_divides_a_person(groups: list[int], devices: int) -> None:
    people = np.array(groups, np.int64)
    if devices > len(set(groups)):
        with pytest.raises(ConfigError):
            natural_split(people, devices)
        return
    parts = natural_split(people, devices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    held = [set(people[part].tolist()) for part in parts]
    assert all(held)
    assert sum(len(one) for one in held) == len(set(groups))


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(0.01, 0.99), SEEDS)
def test_a_holdout_keeps_and_holds_out_at_least_one_row_of_two(count: int, share: float, seed: int) -> None:
    kept, held_out = holdout(np.arange(count), share, np.random.default_rng(seed))
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(count))
    if count >= 2:
        assert len(kept)
        assert len(held_out)
