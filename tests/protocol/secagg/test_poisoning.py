"""What a poisoned device moves: the mean, a lot; a robust rule over secret groups, little. Flower's strategies, unchanged.

35 devices of equal weight make 7 groups of 5. All honest changes are alike: one direction for all, and a tenth of it in another for
each. `shift` is how far the poisoned device moves the model in two rounds, against how far the honest ones do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.linear import least_groups, require_linear
from coordinator.rounds.secure_grid import SecureGrid, Sources
from shared.flower import pack_bytes, reply_with, unpack_bytes
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD
from shared.secagg.terms import Settings
from tests.protocol.secagg.appgrid import AppGrid, Fault, Handler, make_grid
from tests.protocol.secagg.exchanges import messages, numpy_arrays

DEVICES, POISONED, ROUNDS, WEIGHT = 35, 11, 2, 40
START: dict[str, np.ndarray[Any, Any]] = {
    "w": np.linspace(-1, 1, 300, dtype=np.float32).reshape(30, 10),
    "b": np.zeros(7, np.float64),
}
CONFIG = SecureConfig(groups=7, min_group=5, clip_range=4.0, max_weight=100)
Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def training(change: Change = lambda value: value, weight: int = WEIGHT) -> Handler:
    """An honest step, changed by `change`."""

    def train(message: Message, context: Context) -> Message:
        everybody, own = np.random.default_rng(0), np.random.default_rng(context.node_id)
        new = {}
        for name, value in numpy_arrays(message.content).items():
            step = 0.1 * everybody.standard_normal(value.shape) + 0.01 * own.standard_normal(value.shape)
            new[name] = Array(np.asarray(value + change(step), dtype=value.dtype))
        metrics = MetricRecord({"num-examples": weight})
        return reply_with(message, RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}))

    return train


def build(kind: type[Strategy], **options: Any) -> Callable[[], Strategy]:
    nodes = {"min_train_nodes": DEVICES, "min_available_nodes": DEVICES, "fraction_evaluate": 0.0}
    return lambda: kind(**nodes, **options)


MEAN = build(flower.FedAvg)
RULES = {
    "FedMedian": build(flower.FedMedian),
    "FedTrimmedAvg": build(flower.FedTrimmedAvg, beta=0.2),
    "Krum": build(flower.Krum, num_malicious_nodes=1),
    "MultiKrum": build(flower.MultiKrum, num_malicious_nodes=1, num_nodes_to_select=2),
    "Bulyan": build(flower.Bulyan, num_malicious_nodes=1),
}
ATTACKS: Mapping[str, Handler] = {
    "a thousand times its change": training(lambda step: 1000 * step),
    "a thousand times the other way": training(lambda step: -1000 * step),
    "noise as large as the weights": training(
        lambda step: np.asarray(np.random.default_rng(9).standard_normal(step.shape))
    ),
    "a weight that it has not": training(lambda step: -1000 * step, weight=100),
}
EACH = [pytest.param(name, marks=() if "other way" in name else pytest.mark.slow) for name in ATTACKS]


def trained(strategy: Strategy, poisoned: Handler | None) -> np.ndarray[Any, Any]:
    """All weights afterwards, as one vector."""
    trainers = dict.fromkeys(range(1, DEVICES + 1), training())
    if poisoned is not None:
        trainers[POISONED] = poisoned
    inner, authority = make_grid(DEVICES, trainers=trainers)
    config = replace(CONFIG, least_groups=least_groups(strategy))
    require_linear(strategy, config)
    grid = SecureGrid(inner, config, authority, sources=Sources(shuffle=list))
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    result = strategy.start(grid, arrays, num_rounds=ROUNDS)
    return flat(numpy_arrays(RecordDict({"arrays": result.arrays})))


def flat(arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays[name].astype("f8").ravel() for name in START])


@cache
def honest(rule: str) -> np.ndarray[Any, Any]:
    return trained({"FedAvg": MEAN, **RULES}[rule](), None)


def shift(rule: str, attack: str) -> float:
    strategy = {"FedAvg": MEAN, **RULES}[rule]()
    moved = trained(strategy, ATTACKS[attack]) - honest(rule)
    return float(np.linalg.norm(moved) / np.linalg.norm(honest(rule) - flat(START)))


@pytest.mark.parametrize("attack", EACH)
def test_the_mean_is_moved_far(attack: str) -> None:
    """Farther than by all honest devices together, since a first exchange, which knows no scale, allows what `clip_range` does."""
    assert shift("FedAvg", attack) > (0.15 if attack.startswith("noise") else 1)


@pytest.mark.parametrize("attack", EACH)
@pytest.mark.parametrize("rule", RULES)
def test_over_groups_it_is_moved_little_by(rule: str, attack: str) -> None:
    assert shift(rule, attack) < 0.05


# ---- inside the group


def one_more(grid: SecureGrid) -> dict[int, dict[str, np.ndarray[Any, Any]]]:
    """Another exchange: each group's mean change, by number of group."""
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    replies = grid.send_and_receive(messages(DEVICES, arrays=arrays))
    return {
        group: {name: value - START[name] for name, value in numpy_arrays(reply.content).items()}
        for group, reply in enumerate(replies, start=1)
    }


def of_others(means: Mapping[int, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What the groups without the device come to: all nearly the same, as if it were not there."""
    others = [mean for group, mean in means.items() if group != 4]
    usual: np.ndarray[Any, Any] = np.mean(others, axis=0)
    assert max(np.linalg.norm(mean - usual) for mean in others) < 0.2 * np.linalg.norm(usual)
    return usual


def in_scales(change: Mapping[str, np.ndarray[Any, Any]], settings: Settings) -> np.ndarray[Any, Any]:
    return np.concatenate([change[name].astype("f8").ravel() / settings.scales[name] for name in START])


@pytest.fixture
def learned() -> tuple[AppGrid, SecureGrid]:
    """A grid after its first exchange, in which device 11 does its honest work, for the last time. It is in group 4."""
    work = iter([training(), training(lambda step: -1e6 * step)])

    def at_first_honest(message: Message, context: Context) -> Message:
        return next(work)(message, context)

    trainers = {**dict.fromkeys(range(1, DEVICES + 1), training()), POISONED: at_first_honest}
    inner, authority = make_grid(DEVICES, trainers=trainers)
    grid = SecureGrid(inner, CONFIG, authority, sources=Sources(shuffle=list))
    one_more(grid)
    return inner, grid


def bounds(grid: SecureGrid) -> tuple[float, float]:
    """What one honest app on poisoned data, and what rounding, can move a group's mean by, in scales."""
    schema = grid.settings("train").schema(5, START, bytes(32))
    clipped = schema.clip * schema.unit_weight / (5 * WEIGHT) * math.sqrt(schema.elements)
    return clipped, 5 * clipped / schema.levels


def test_poisoned_data_moves_its_groups_mean_by_what_clipping_leaves_of_it_and_the_others_not_at_all(
    learned: tuple[AppGrid, SecureGrid],
) -> None:
    _, grid = learned
    settings, (clipped, rounded) = grid.settings("train"), bounds(grid)
    means = {group: in_scales(change, settings) for group, change in one_more(grid).items()}
    usual = of_others(means)
    assert 0.5 * clipped < np.linalg.norm(means[4] - 0.8 * usual) < clipped + rounded + 0.2 * np.linalg.norm(usual)


def test_code_that_lies_moves_its_groups_mean_by_as_much_as_the_group_could_and_the_others_not_at_all(
    learned: tuple[AppGrid, SecureGrid],
) -> None:
    """It need not clip, but the modulus has room for the sums that the devices of the group can make together, and no more."""
    inner, grid = learned
    settings, (clipped, rounded) = grid.settings("train"), bounds(grid)
    schema = settings.schema(5, START, bytes(32))

    def adding(levels: int) -> Fault:
        def fault(message: Message) -> Message:
            reply = inner.handle(message)
            packed = unpack_bytes(reply.content.array_records[VECTOR_RECORD][VECTOR_RECORD], PACKED_TYPE)
            more = np.full(schema.length, levels)
            more[: schema.exact * schema.digits] = 0
            vector = schema.layout.unpack(packed) + schema.layout.join(more)
            lie = ArrayRecord({VECTOR_RECORD: pack_bytes(schema.layout.pack(vector), PACKED_TYPE)})
            return reply_with(message, RecordDict({RECORD: reply.content[RECORD], VECTOR_RECORD: lie}))

        return fault

    inner.faults[POISONED, "masked"] = adding(schema.levels)
    means = {group: in_scales(change, settings) for group, change in one_more(grid).items()}
    assert clipped + rounded < np.linalg.norm(means[4] - 0.8 * of_others(means)) < 5 * clipped + rounded


def test_a_poisoned_group_does_not_set_the_scales_of_the_others() -> None:
    """A thousandfold change in the first exchange, and a weight that it has not: both are in one group's total only."""
    settings = []
    for poisoned in (training(), ATTACKS["a weight that it has not"]):
        trainers = {**dict.fromkeys(range(1, DEVICES + 1), training()), POISONED: poisoned}
        inner, authority = make_grid(DEVICES, trainers=trainers)
        grid = SecureGrid(inner, CONFIG, authority, sources=Sources(shuffle=list))
        one_more(grid)
        settings.append(grid.settings("train"))
    assert settings[1].unit_weight == settings[0].unit_weight == WEIGHT
    for name in START:
        assert settings[1].scales[name] == pytest.approx(settings[0].scales[name], rel=0.05)
