"""Which strategies need one weighted mean and nothing else: those that run with secure aggregation."""

from collections.abc import Mapping

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import SecureConfig
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


def require_linear(strategy: Strategy, config: SecureConfig | None = None) -> None:
    """Raises `Unsupported`, with the reason and the alternatives, unless one weighted mean is all that `strategy` needs.

    By exact type: Flower's robust strategies are subclasses of FedAvg, and a subclass of one's own may look at anything.
    """
    name = type(strategy).__name__
    if type(strategy) not in LINEAR:
        why = WHY_NOT.get(name, "it is not known to need only a weighted mean")
        known = ", ".join(kind.__name__ for kind in LINEAR)
        raise Unsupported(f"{name} cannot run with secure aggregation: {why}. Use {known}, or turn it off for this job")
    for purpose in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
        if getattr(strategy, purpose) is not weighted_mean_of_metrics:
            raise Unsupported(
                f"{name} has its own {purpose}, which would see one mean, not single metrics: leave it out"
            )
    weight_key = (config or SecureConfig()).weight_key
    if strategy.weighted_by_key != weight_key:  # type: ignore[attr-defined]
        raise Unsupported(f"{name} weighs by another key than secure aggregation: set both to {weight_key!r}")
