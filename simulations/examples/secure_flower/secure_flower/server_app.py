"""Flower's FedAvg, FedAvgM or FedAdam over devices whose updates only their sum can be read of.

The run's `strategies` go on one after the other, over the same `SecureGrid`, for `rounds` rounds each. The folder `out` then holds
what each came to (`NAME.safetensors`) and how every exchange went (`exchanges.json`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from coordinator.rounds.exchange import NullObserver, Outcome, SecureConfig, Summary, Timeouts
from coordinator.rounds.linear import require_linear
from coordinator.rounds.secure_grid import AppRun, SecureGrid
from shared.clock import SystemClock
from shared.flower import arrays_to_safetensors
from shared.secagg.messages import Phase
from shared.signing.identity import FleetVerifier

STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": lambda **options: FedAvgM(server_learning_rate=0.7, server_momentum=0.9, **options),
    "fedadam": lambda **options: FedAdam(eta=0.1, tau=0.1, **options),
}
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    nodes, seen = int(config["nodes"]), Watcher()
    verifier = FleetVerifier(Path(str(config["authority"])).read_bytes(), SystemClock().now)
    secure = SecureGrid(
        grid, secure_config(int(config["bits"])), verifier, app=AppRun(run_config=config), observer=seen
    )
    arrays, out = start_arrays(), Path(str(config["out"]))
    out.mkdir(parents=True, exist_ok=True)
    for name in str(config["strategies"]).split(","):
        chosen = strategy(name, nodes)
        require_linear(chosen, secure.config)
        arrays = chosen.start(secure, arrays, num_rounds=int(config["rounds"])).arrays
        (out / f"{name}.safetensors").write_bytes(arrays_to_safetensors(arrays))
    (out / "exchanges.json").write_text(json.dumps(seen.exchanges), encoding="utf-8")


def secure_config(bits: int) -> SecureConfig:
    """Metrics are averaged only if they are declared, with their range. Flower's own engine takes some 8 s a phase."""
    return SecureConfig(
        bits=bits, max_weight=100, train_metrics={"loss": (0.0, 1000.0)}, timeouts=Timeouts(before_s=120, after_s=120)
    )


def strategy(name: str, nodes: int) -> Strategy:
    """Over all `nodes`, whom it waits for."""
    options: dict[str, Any] = {"min_train_nodes": nodes, "min_available_nodes": nodes}
    return STRATEGIES[name](fraction_evaluate=0.0, min_evaluate_nodes=0, **options)


def start_arrays() -> ArrayRecord:
    zeros = {"weight": np.zeros((31, 8), np.float32), "bias": np.zeros(8, np.float32)}
    return ArrayRecord({name: Array(value) for name, value in zeros.items()})


@dataclass
class Watcher(NullObserver):
    """What became of each exchange."""

    exchanges: list[dict[str, Any]] = field(default_factory=list)
    _phases: list[str] = field(default_factory=list)

    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        self._phases.append(str(phase))

    def closed(self, summary: Summary) -> None:
        fates = {str(node): str(outcome.fate) for node, outcome in summary.outcomes.items()}
        self.exchanges.append({"phases": self._phases, "weight": summary.total_weight, "fates": fates})
        self._phases = []
