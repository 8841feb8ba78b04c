"""Which strategies may run with secure aggregation, and what a secure exchange may be set to."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.exchange import Fate, NullObserver, Outcome, SecureConfig, Summary, Timeouts
from coordinator.rounds.grid import EXTRA_BYTES, _most_bytes
from coordinator.rounds.linear import LINEAR, ROBUST, WHY_NOT, least_groups, require_linear
from coordinator.rounds.secure_grid import new_id
from shared.errors import Unsupported
from shared.secagg.graph import Rates
from shared.secagg.messages import Phase
from shared.secagg.schema import BITS
from shared.secagg.terms import MAX_CLIENTS, MAX_ROUNDS, GroupTerms, Settings

LINEAR_ONES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": flower.FedAvg,
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1),
    "FedAvgM": flower.FedAvgM,
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedAdagrad": flower.FedAdagrad,
}
OTHERS: dict[str, Callable[[], Strategy]] = {
    "Krum": flower.Krum,
    "MultiKrum": flower.MultiKrum,
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=1),
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1),
    "FedXgbBagging": flower.FedXgbBagging,
    "FedXgbCyclic": flower.FedXgbCyclic,
    "DifferentialPrivacyServerSideFixedClipping": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=1.0, clipping_norm=1.0, num_sampled_clients=3
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: flower.DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), noise_multiplier=1.0, clipping_norm=1.0, num_sampled_clients=3
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), noise_multiplier=1.0, num_sampled_clients=100
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: flower.DifferentialPrivacyClientSideAdaptiveClipping(
        FedAvg(), noise_multiplier=1.0, num_sampled_clients=100
    ),
}


@pytest.mark.parametrize("build", LINEAR_ONES.values(), ids=LINEAR_ONES)
def test_a_strategy_that_only_averages_is_accepted(build: Callable[[], Strategy]) -> None:
    require_linear(build())
    assert type(build()) in LINEAR


@pytest.mark.parametrize(("name", "build"), OTHERS.items(), ids=OTHERS)
def test_a_strategy_that_needs_single_updates_is_refused_with_the_reason_and_the_alternatives(
    name: str, build: Callable[[], Strategy]
) -> None:
    with pytest.raises(Unsupported) as caught:
        require_linear(build())
    message = str(caught.value)
    assert message.startswith(f"{name} cannot run with secure aggregation: {WHY_NOT[name]}")
    assert all(kind.__name__ in message for kind in LINEAR)


ROBUST_ONES: dict[str, tuple[Callable[[], Strategy], int]] = {  # each with the groups that it needs
    "the median": (flower.FedMedian, 3),
    "a fifth trimmed": (lambda: flower.FedTrimmedAvg(beta=0.2), 5),
    "nearly half trimmed": (lambda: flower.FedTrimmedAvg(beta=0.49), 3),
    "a tenth trimmed": (lambda: flower.FedTrimmedAvg(beta=0.1), 10),
    "Krum": (flower.Krum, 3),
    "Krum with two poisoned": (lambda: flower.Krum(num_malicious_nodes=2), 7),
    "MultiKrum of one": (lambda: flower.MultiKrum(num_malicious_nodes=1), 5),
    "MultiKrum of three": (lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3), 8),
    "Bulyan": (lambda: flower.Bulyan(num_malicious_nodes=2), 11),
}


@pytest.mark.parametrize(("build", "needed"), ROBUST_ONES.values(), ids=ROBUST_ONES)
def test_a_robust_strategy_is_accepted_over_as_many_groups_as_it_needs(
    build: Callable[[], Strategy], needed: int
) -> None:
    assert least_groups(build()) == needed
    require_linear(build(), SecureConfig(groups=needed, least_groups=needed))
    require_linear(build(), SecureConfig(groups=needed + 4, least_groups=needed))
    with pytest.raises(Unsupported, match=rf"cannot run .* set \[secure\] groups to {needed} or more; or use FedAvg"):
        require_linear(build(), SecureConfig(groups=needed - 1))
    with pytest.raises(Unsupported, match=f"needs {needed} groups: set least_groups"):
        require_linear(build(), SecureConfig(groups=needed, least_groups=needed - 1))


@pytest.mark.parametrize(
    "build",
    [flower.Bulyan, lambda: flower.FedTrimmedAvg(beta=0.0), lambda: flower.FedTrimmedAvg(beta=1e-9)],
    ids=["Bulyan of none", "nothing trimmed", "next to nothing trimmed"],
)
def test_a_robust_strategy_that_would_leave_nothing_out_is_refused_over_groups(build: Callable[[], Strategy]) -> None:
    with pytest.raises(Unsupported, match=r"num_malicious_nodes|beta"):
        require_linear(build(), SecureConfig(groups=100))


@pytest.mark.parametrize("build", LINEAR_ONES.values(), ids=LINEAR_ONES)
def test_a_strategy_that_only_averages_does_with_any_number_of_groups(build: Callable[[], Strategy]) -> None:
    assert least_groups(build()) == 1
    require_linear(build(), SecureConfig(groups=7))


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {kind.__name__ for kind in ROBUST}))
def test_groups_are_no_help_to_a_strategy_that_needs_every_device_apart(name: str) -> None:
    with pytest.raises(Unsupported, match="cannot run with secure aggregation") as caught:
        require_linear(OTHERS[name](), SecureConfig(groups=50, least_groups=50))
    assert "groups" not in str(caught.value)


def test_every_strategy_that_flower_ships_is_judged_by_name() -> None:
    shipped = {name for name in flower.__all__ if name not in ("Strategy", "Result")}
    assert shipped == {kind.__name__ for kind in LINEAR} | set(WHY_NOT)


def test_a_subclass_of_an_accepted_strategy_is_not_taken_on_trust() -> None:
    class Peeking(FedAvg):
        pass

    with pytest.raises(Unsupported, match="Peeking cannot run"):
        require_linear(Peeking())


@pytest.mark.parametrize("purpose", ["train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"])
def test_a_metrics_function_of_ones_own_is_refused(purpose: str) -> None:
    options: dict[str, Any] = {purpose: lambda records, key: records[0]}
    with pytest.raises(Unsupported, match=purpose):
        require_linear(FedAvg(**options))


def test_both_sides_weigh_by_the_same_key() -> None:
    strategy = FedAvg(weighted_by_key="seconds")
    with pytest.raises(Unsupported, match="num-examples"):
        require_linear(strategy)
    require_linear(strategy, SecureConfig(weight_key="seconds"))


# ---- settings


@pytest.mark.parametrize(("clients", "quorum"), [(2, 3), (3, 3), (4, 3), (5, 4), (7, 6), (8, 6), (100, 75)])
def test_three_quarters_must_be_counted_and_three_at_least(clients: int, quorum: int) -> None:
    assert SecureConfig().quorum(clients) == quorum


@given(st.integers(3, 2000), st.floats(0, 0.49))
def test_whatever_may_drop_out_the_quorum_is_never_below_what_the_devices_insist_on(
    clients: int, dropout: float
) -> None:
    config = SecureConfig(rates=Rates(dropout, 0.0))
    terms = GroupTerms("g", clients, config.group_rounds, config.rates)
    assert config.quorum(clients) >= max(terms.fewest, 3)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a group of one": {"min_clients": 1},
    "keys for no round": {"group_rounds": 0},
    "keys for more rounds than a device makes": {"group_rounds": MAX_ROUNDS + 1},
    "five bits an element": {"bits": 5},
    "no bits": {"bits": 0},
    "metric bounds reversed": {"train_metrics": {"loss": (1.0, 0.0)}},
    "metric bounds that are infinite": {"evaluate_metrics": {"loss": (0.0, math.inf)}},
    "the weight as a metric": {"train_metrics": {"num-examples": (0.0, 1.0)}},
    "max_weight zero": {"max_weight": 0},
    "a clip range of zero": {"clip_range": 0.0},
    "an infinite integer range": {"integer_range": math.inf},
    "a negative range for one array": {"ranges": {"w": -1.0}},
}


@pytest.mark.parametrize("options", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_settings_are_refused_when_they_are_made(options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        SecureConfig(**options)


@pytest.mark.parametrize(
    "rates", [(-0.1, 0.0), (1.0, 0.0), (math.nan, 0.0), (0.0, -0.1), (0.0, 1.0), (0.0, math.nan)], ids=str
)
def test_rates_that_are_no_shares_are_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(Unsupported):
        Rates(*rates)


@pytest.mark.parametrize("field", ["before_s", "masked_s", "after_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_timeout_that_is_not_positive_is_refused(field: str, value: float) -> None:
    with pytest.raises(Unsupported):
        Timeouts(**{field: value})


@given(st.floats(0.001, 1e6))
def test_the_phases_fit_in_the_time_given_and_training_gets_the_most(total: float) -> None:
    """Also when every phase there is takes all that it may."""
    timeouts, left, spent = Timeouts(), total, {}
    for phase in Phase:
        spent[phase] = timeouts.budget(phase, left)
        left -= spent[phase]
    assert left >= -1e-6 * total
    assert min(spent.values()) > 0
    if total <= timeouts.masked_s:
        assert spent[Phase.MASKED] == max(spent.values())


def test_without_a_limit_each_phase_has_its_own() -> None:
    timeouts = Timeouts(before_s=1, masked_s=2, after_s=3)
    assert [timeouts.budget(phase, math.inf) for phase in Phase] == [1, 1, 1, 2, 3, 3, 3]


def test_the_null_observer_hears_everything_and_says_nothing() -> None:
    observer = NullObserver()
    observer.phase(Phase.KEYS, {1: Outcome(Fate.PRESENT)})
    observer.closed(Summary("r", "train", {1: Outcome(Fate.COUNTED)}, 1))


def test_ids_do_not_repeat() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("dtype", ["int8", "int64", "float16", "float32"])
def test_an_answer_may_be_as_large_as_a_masked_vector_of_any_bits_is(dtype: str) -> None:
    arrays = {"w": np.zeros(3_000_000, dtype)}
    most = _most_bytes(RecordDict({"arrays": ArrayRecord({"w": Array(arrays["w"])})})) - EXTRA_BYTES
    for scales in ({}, {"w": 1.0}):
        for bits in BITS:
            settings = Settings(bits=bits, unit_weight=1.0, scales=scales)
            for clients in (3, MAX_CLIENTS):
                assert settings.schema(clients, arrays, bytes(32)).bytes_on_the_wire <= most + 4096
