"""The client apps that every device has, as both ends know them: their settings, and the metrics that they report.

A job's `[train]` table is checked with these classes when it is submitted, and read with them on the device. Other apps come from
installed packages, through the entry-point group `GROUP`; what those take only they know. No torch and no flwr here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from shared.errors import ConfigError
from shared.learning.hyperparameters import TrainSettings
from shared.settings import from_mapping

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
GROUP = "shoal.client_apps"
# Error codes beside Flower's own.
NO_KEYS = 101  # this device has no keys for the group that sums in secret: it was restarted, or they are used up
UNFIT = 100  # this device cannot do this task, and would say so again
MAX_LOSS = 100.0  # a loss above this is reported as this: one lost device must not drown the fleet's mean
_ROUND = "server_round"  # set by the coordinator, never by a job


@dataclass(frozen=True)
class EchoConfig:
    """`spread`: each device scales what it echoes by a factor of its own, at most that far above 1."""

    server_round: int = 0
    proximal_mu: float = 0.0  # of no effect: what the strategy fedprox sends to every app
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 1:
            raise ValueError("spread is a number from 0 to 1")


@dataclass(frozen=True)
class ImageClassifierConfig:
    """Units: `recent_examples` and `replay_size` in examples, `replay_share` in parts of a batch."""

    server_round: int = 0
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 1
    batch_size: int = 32
    proximal_mu: float = 0.0
    qat: bool = True
    seed: int = 0
    recent_examples: int = 0  # train on the newest so many; 0: all
    replay_size: int = 0  # examples in the replay buffer; 0: none
    replay_share: float = 0.5  # of each batch, on top of it
    local_labels: bool = False  # leave answers for classes this device has none of out of the loss

    def __post_init__(self) -> None:
        if min(self.recent_examples, self.replay_size, self.seed) < 0:
            raise ValueError("recent_examples, replay_size and seed are not negative")
        self.settings(())

    def settings(self, labels: tuple[int, ...]) -> TrainSettings:
        return TrainSettings(
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            proximal_mu=self.proximal_mu,
            replay_share=self.replay_share,
            label_set=labels if self.local_labels else (),
        )


@dataclass(frozen=True)
class SoftmaxConfig:
    server_round: int = 0
    lr: float = 0.1
    epochs: int = 1
    batch_size: int = 32
    proximal_mu: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.lr <= 100 and 1 <= self.epochs <= 1000 and self.batch_size >= 1):
            raise ValueError("lr is positive, at most 100, epochs is 1 to 1000, batch_size at least 1")
        if not 0 <= self.proximal_mu < math.inf or self.seed < 0:
            raise ValueError("proximal_mu and seed are not negative")


@dataclass(frozen=True)
class BuiltIn:
    """`trained` and `evaluated` are the metrics of its replies, besides the number of examples; `bounds` those that a secret sum
    averages unless the job names others, each with the largest value that it may have there.
    """

    config: "type[DataclassInstance]"
    bounds: Mapping[str, float] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    evaluated: frozenset[str] = frozenset()
    needs_model: bool = False  # it trains a registered network, not bare arrays


_BOUNDS = {"train_loss": MAX_LOSS, "eval_acc_before": 1.0, "eval_loss_before": MAX_LOSS}
_EVALUATED = frozenset({"eval_acc", "eval_loss"})
BUILT_IN: Mapping[str, BuiltIn] = {
    "echo": BuiltIn(EchoConfig),
    "image-classifier": BuiltIn(
        ImageClassifierConfig,
        bounds=_BOUNDS,
        trained=frozenset({*_BOUNDS, "confidence", "drift"}),
        evaluated=_EVALUATED,
        needs_model=True,
    ),
    "softmax": BuiltIn(SoftmaxConfig, bounds=_BOUNDS, trained=frozenset(_BOUNDS), evaluated=_EVALUATED),
}


def app_names() -> list[str]:
    """Of all that are installed here."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def read_settings(kind: type[C], values: Mapping[str, object], *, where: str) -> C:
    """A message's or a job's values as a `kind`; names may have hyphens. Raises `ConfigError`, which names the key at fault."""
    known = {item.name for item in fields(kind)}
    named: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"unknown key; there are {', '.join(sorted(known - {_ROUND}))}", path=f"{where}.{key}")
        if name in named:
            raise ConfigError("given twice, with a hyphen and with an underscore", path=f"{where}.{key}")
        named[name] = value
    return from_mapping(kind, named, where=where)
