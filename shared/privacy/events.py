"""What was released, as data: one noisy sum a round. `accountant` says what it costs.

Every device counts as one that takes part in every round: no amplification by sampling is claimed, since whom the server selects is
no secret from the server. All lengths are in levels, the steps of the grid that vectors are rounded to.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from shared.errors import Unsupported
from shared.privacy.noise import MAX_GAUSSIAN_VARIANCE, MAX_VARIANCE, MIN_VARIANCE, inexactness

MAX_SQUARED_NORM = 1 << 62
MAX_COUNT = 1 << 40  # of contributors, and of dimensions


def contributors(clients: int, missing: float, dropped: int = 0) -> int:
    """How many of a round's `clients` surely add noise that the server does not know, when `dropped` of them may go uncounted and a
    share `missing` of them all adds none or tells the server what it added. Those may well be counted.

    Raises `Unsupported` if that leaves nobody.
    """
    if not 0 <= missing < 1:
        raise Unsupported("the share of devices that add no noise is from 0 to below 1")
    certain = clients - dropped - math.ceil(missing * clients)
    if certain < 1:
        raise Unsupported(
            f"of {clients} devices none surely adds noise: select more, or state a smaller missing or dropout share"
        )
    return certain


@dataclass(frozen=True)
class Skellam:
    """Distributed: each of `contributors` devices adds Skellam noise of `variance` to each of `dimension` levels before it masks.

    The guarantee holds if at least so many of the summed vectors carry noise that the server does not know; more only help. Nobody
    ever holds the sum without it. `squared_norm` bounds one device's whole vector (`clip.rounded_bound`).
    """

    MAX_VARIANCE: ClassVar[float] = MAX_VARIANCE

    variance: float
    contributors: int
    squared_norm: int
    dimension: int

    def __post_init__(self) -> None:
        _check(self)
        if not 1 <= self.contributors <= MAX_COUNT:
            raise ValueError("noise needs at least one contributor, and not more than there can be")

    @property
    def inexactness(self) -> float:
        """Of one round, in total variation: of every draw that the guarantee counts on."""
        return self.contributors * self.dimension * inexactness(self.variance)


@dataclass(frozen=True)
class CentralGaussian:
    """Central, and weaker: the server adds discrete Gaussian noise of `variance` to each of the sum's levels, alone.

    It protects from those who see the model, not from the server, which holds the exact sum and is trusted to add the noise, draw
    it well and forget both. Its Rényi divergence, which adds up over elements, is at most the continuous Gaussian's (Canonne,
    Kamath, Steinke, NeurIPS 2020, Theorem 4).
    """

    MAX_VARIANCE: ClassVar[float] = MAX_GAUSSIAN_VARIANCE

    variance: float
    squared_norm: int
    dimension: int

    def __post_init__(self) -> None:
        _check(self)

    @property
    def inexactness(self) -> float:
        """Of one round, in total variation."""
        return self.dimension * inexactness(self.variance)


Event = Skellam | CentralGaussian


def _check(event: Event) -> None:
    if not MIN_VARIANCE <= event.variance <= event.MAX_VARIANCE:  # also false for NaN
        raise ValueError(f"variance must be from {MIN_VARIANCE:.3g} to {event.MAX_VARIANCE:.3g}")
    if not (1 <= event.squared_norm <= MAX_SQUARED_NORM and 1 <= event.dimension <= MAX_COUNT):
        raise ValueError("squared_norm and dimension must be positive, and not beyond all measure")
