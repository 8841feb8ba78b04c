"""A secret sum under differential privacy: what both ends agree on, how much noise follows, and how a vector gets it.

A device's changes count as one vector, whatever its number of examples: it is clipped to `clip_norm` as a whole (in the unit of the
weights), rotated, rounded to whole levels until it is within the schema's `squared_norm`, and only then given noise; that order is
what the guarantee rests on (`shared.privacy.clip`). Besides the noised elements the vector holds the count, 1, and nothing else: no
number of examples, no metric, no size, no share clipped. Integer arrays are refused: a counter would use up the norm.

- distributed: every device adds Skellam noise before it masks. Nobody ever holds the sum without it.
- central, and weaker: the server, which sees the exact sum, adds discrete Gaussian noise to it before anything else reads it.

There is no error feedback: what one round took of an update would be told by a later one, which has a spend of its own, perhaps
over other data; and what rounding takes is small beside the noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.privacy.accountant import Budget, calibrate
from shared.privacy.clip import round_within
from shared.privacy.events import CentralGaussian, Event, Skellam, contributors
from shared.privacy.noise import MIN_VARIANCE, Stream, discrete_gaussian, skellam
from shared.secagg.keys import KEY_BYTES, Secret
from shared.secagg.masks import keystream
from shared.secagg.schema import Schema

_CALIBRATED = 0.999  # of epsilon: rounds over other numbers of devices need not add up to the last digit
_AES_BLOCK = 16


class Mechanism(StrEnum):
    DISTRIBUTED = "distributed"
    CENTRAL = "central"


@dataclass(frozen=True)
class Privacy:
    """`epsilon` at `delta` is for all `rounds` together, those that fail after vectors were sent included.

    `clip_norm` is the longest that one device's change may be, in Euclidean norm over all float arrays. Of a round's devices a
    share `missing` may add no noise or tell the server what they added: the others' is enough. Raises `Unsupported`.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    clip_norm: float
    rounds: int
    missing: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):  # also false for NaN
            raise Unsupported("privacy needs a positive, finite epsilon, and a delta between 0 and 1")
        if not 0 < self.clip_norm < math.inf or self.rounds < 1 or not 0 <= self.missing < 1:
            raise Unsupported(
                "privacy needs a positive clip_norm, at least one round, and a missing share from 0 to below 1"
            )

    @property
    def budget(self) -> Budget:
        return Budget(self.epsilon, self.delta)

    def event(self, schema: Schema, dropped: int, variance: float) -> Event:
        """One round's. `variance` is that of one draw, a device's or the server's; `dropped` is how many of the schema's clients
        need not be counted. Raises `Unsupported`.
        """
        bound, dimension = schema.squared_norm, schema.elements
        try:
            if self.mechanism is Mechanism.CENTRAL:
                return CentralGaussian(variance, bound, dimension)
            return Skellam(variance, contributors(schema.clients, self.missing, dropped), bound, dimension)
        except ValueError as error:
            raise Unsupported(f"noise that nobody can account for: {error}") from error

    def calibrated(self, schema: Schema, dropped: int) -> Event:
        """One round's, with the least noise for which all rounds stay within the budget. Raises `Unsupported`."""
        return _calibrated(self.event(schema, dropped, MIN_VARIANCE), self.rounds, self.budget)


@lru_cache(maxsize=64)
def _calibrated(event: Event, rounds: int, budget: Budget) -> Event:
    return calibrate(event, rounds, replace(budget, epsilon=budget.epsilon * _CALIBRATED))


def noise_multiplier(event: Event) -> float:
    """The standard deviation that is sure to be in each element of the sum, over what one device can change it by."""
    certain = event.contributors if isinstance(event, Skellam) else 1
    return math.sqrt(certain * event.variance / event.squared_norm)


def noised(schema: Schema, attempt: Callable[[], NDArray[Any]], entropy: Callable[[int], bytes]) -> NDArray[np.int64]:
    """One device's elements: what `attempt` rounds within the bound, shape (schema.elements,), plus its own share of the noise.

    Raises `UpdateRejected` where no attempt keeps within the bound: nothing leaves.
    """
    levels = round_within(attempt, schema.squared_norm).astype(np.int64)
    if schema.noise:
        levels += skellam(schema.noise).draw(schema.elements, stream_of(entropy))
    return levels


def central_noise(event: CentralGaussian, entropy: Callable[[int], bytes]) -> NDArray[np.int64]:
    """What the server adds to a sum's elements, shape (event.dimension,)."""
    drawn = discrete_gaussian(event.variance).draw(event.dimension, stream_of(entropy))
    return drawn.astype(np.int64, copy=False)


def stream_of(entropy: Callable[[int], bytes]) -> Stream:
    """A keystream under a fresh key that nothing keeps."""
    key, used = Secret(entropy(KEY_BYTES)), 0

    def take(size: int) -> NDArray[np.uint8]:
        nonlocal used
        part = keystream(key, size, counter=used.to_bytes(_AES_BLOCK, "big"))
        used += -(-size // _AES_BLOCK)
        return part

    return take
