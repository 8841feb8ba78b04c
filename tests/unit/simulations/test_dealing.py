from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from simulations.data import Dataset
from simulations.dealing import DataChoice, Shares, deal_from
from simulations.shards import read_shard

NAMES = ("a", "b", "c")


def _samples(count: int = 300, *, groups: bool = False) -> Dataset:
    """Each sample holds its own number, so that it can be found again."""
    numbers = np.arange(count)
    x = numbers.astype(np.float32).reshape(-1, 1, 1, 1)
    return Dataset(x, numbers % 3, ("p", "q", "r"), numbers % 6 if groups else None)


def _held(shares: Shares) -> dict[str, set[float]]:
    """The numbers that everybody holds."""
    held = {f"{name} trains on": set(data.x.ravel().tolist()) for name, data in shares.own.items()}
    held |= {f"{name} is asked about": set(read_shard(file)[0].ravel().tolist()) for name, file in shares.live.items()}
    return held | {"public": set(read_shard(shares.public)[0].ravel().tolist())}


@pytest.mark.parametrize("natural", [False, True])
def test_every_sample_goes_to_exactly_one_place(tmp_path: Path, natural: bool) -> None:
    shares = deal_from(_samples(groups=natural), NAMES, tmp_path, DataChoice(natural=natural), seed=1)
    held = _held(shares)
    assert sum(map(len, held.values())) == 300
    assert set.union(*held.values()) == set(map(float, range(300)))
    assert all(held.values())
    assert (shares.shape, shares.classes) == ((1, 1, 1), ("p", "q", "r"))


def test_the_same_seed_deals_the_same(tmp_path: Path) -> None:
    deals = [_held(deal_from(_samples(), NAMES, tmp_path, DataChoice(limit=200), seed=seed)) for seed in (1, 1, 2)]
    assert deals[0] == deals[1]
    assert deals[0] != deals[2]
    assert sum(map(len, deals[0].values())) == 200


def test_a_natural_split_keeps_groups_whole(tmp_path: Path) -> None:
    shares = deal_from(_samples(groups=True), NAMES, tmp_path, DataChoice(natural=True), seed=1)
    whose = [{int(number) % 6 for number in data.x.ravel()} for data in shares.own.values()]
    assert [len(groups) for groups in whose] == [2, 2, 2]
    assert len(set.union(*whose)) == 6


def test_a_natural_split_of_samples_that_are_nobodys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.natural"):
        deal_from(_samples(), NAMES, tmp_path, DataChoice(natural=True), seed=1)


def test_more_devices_than_there_are_samples_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot give 3 devices 100 each"):
        deal_from(_samples(), NAMES, tmp_path, DataChoice(minimum=100), seed=1)
