"""Which strategies run with secure aggregation: those that need one weighted mean, and robust ones over the means of groups."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import MAX_GROUPS, SecureConfig
from shared.errors import Unsupported
from shared.flower import weighted_mean_of_metrics

LINEAR: tuple[type[Strategy], ...] = (
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
)
ROBUST: Mapping[type[Strategy], Callable[[Any], int]] = {  # over groups; each with how many it needs
    flower.FedMedian: lambda strategy: 3,  # of two, the median is the mean
    flower.FedTrimmedAvg: lambda strategy: _trimmed(strategy.beta),
    flower.Krum: lambda strategy: _krum(strategy.num_malicious_nodes, 1),
    flower.MultiKrum: lambda strategy: _krum(strategy.num_malicious_nodes, strategy.num_nodes_to_select),
    flower.Bulyan: lambda strategy: _bulyan(strategy.num_malicious_nodes),
}
_COMPARES = "it compares single updates with one another"
_COUNTS = "it sets its noise by the number of single replies"
WHY_NOT: Mapping[str, str] = {
    "Krum": _COMPARES,
    "MultiKrum": _COMPARES,
    "Bulyan": _COMPARES,
    "FedMedian": "a median is not a sum",
    "FedTrimmedAvg": "it sorts single updates to trim them",
    "QFedAvg": "it weighs each update by that device's own loss",
    "FedXgbBagging": "it joins single trees, it does not average",
    "FedXgbCyclic": "it hands one device's model to the next",
    "DifferentialPrivacyServerSideFixedClipping": "it clips single updates at the server",
    "DifferentialPrivacyServerSideAdaptiveClipping": "it clips single updates at the server",
    "DifferentialPrivacyClientSideFixedClipping": _COUNTS,
    "DifferentialPrivacyClientSideAdaptiveClipping": _COUNTS,
}


def least_groups(strategy: Strategy) -> int:
    """How many groups `strategy` needs, to do with their means what it does with updates: 1 unless it is robust, and then so many
    that one poisoned group, or as many as it is told of (`num_malicious_nodes`, which counts groups here), cannot lead it.

    Raises `Unsupported` for one that is set up to leave nothing out.
    """
    needs = ROBUST.get(type(strategy))
    return needs(strategy) if needs else 1


def require_linear(strategy: Strategy, config: SecureConfig | None = None) -> None:
    """Raises `Unsupported`, with the reason and the alternatives, unless one weighted mean is all that `strategy` needs, or the
    means of the groups that `config` makes.

    By exact type: Flower's robust strategies are subclasses of FedAvg, and a subclass of one's own may look at anything.
    """
    name, config = type(strategy).__name__, config or SecureConfig()
    if type(strategy) not in LINEAR:
        _require_groups(strategy, config)
    for purpose in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
        if getattr(strategy, purpose) is not weighted_mean_of_metrics:
            raise Unsupported(
                f"{name} has its own {purpose}, which would see one mean, not single metrics: leave it out"
            )
    if strategy.weighted_by_key != config.weight_key:  # type: ignore[attr-defined]
        raise Unsupported(f"{name} weighs by another key than secure aggregation: set both to {config.weight_key!r}")


def _require_groups(strategy: Strategy, config: SecureConfig) -> None:
    name, needed = type(strategy).__name__, least_groups(strategy)
    why = WHY_NOT.get(name, "it is not known to need only a weighted mean")
    known = ", ".join(kind.__name__ for kind in LINEAR)
    refused = f"{name} cannot run with secure aggregation: {why}"
    if type(strategy) not in ROBUST:
        raise Unsupported(f"{refused}. Use {known}, or turn it off for this job")
    if config.groups < needed:
        raise Unsupported(
            f"{refused}. It can over the means of groups: set [secure] groups to {needed} or more; or use {known}, or turn it off "
            "for this job"
        )
    if config.least_groups < needed:
        raise Unsupported(f"{name} needs {needed} groups: set least_groups to that")


def _trimmed(beta: float) -> int:
    """The fewest of which the share `beta`, rounded down, is one: so many it cuts off at each end."""
    if int(beta * MAX_GROUPS) < 1:
        raise Unsupported(
            "FedTrimmedAvg cannot run with secure aggregation: it trims no group. Raise its option beta, such as to 0.2 for 5"
        )
    return next(groups for groups in range(3, MAX_GROUPS + 1) if int(beta * groups) >= 1)


def _krum(poisoned: int, selected: int) -> int:
    """2 f + 3, and one more for each that is selected beyond one (Blanchard et al., NeurIPS 2017: 2 f + 2 < n - m)."""
    return 2 * max(0, poisoned) + 3 + (selected if selected > 1 else 0)


def _bulyan(poisoned: int) -> int:
    """4 f + 3 (El Mhamdi et al., ICML 2018)."""
    if poisoned < 1:
        raise Unsupported(
            "Bulyan cannot run with secure aggregation: it averages all groups unless it is told of poisoned ones. Set its option "
            "num_malicious_nodes to 1 or more, and [secure] groups to 7 or more"
        )
    return 4 * poisoned + 3
