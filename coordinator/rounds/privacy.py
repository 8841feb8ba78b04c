"""What a private job costs: as planned, and as its history says.

The history is the coordinator's ledger. In a distributed round a line says, before any device is asked for noise, what each then
spends; a device's own ledger is what refuses. In a central round the line that commits the round says it, in the same transaction:
what was not committed nobody has seen.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.rounds.plan import JobSpec
from coordinator.rounds.round import Event as Line
from coordinator.rounds.states import RoundState
from coordinator.rounds.strategies import secure_config
from shared.errors import ConfigError, Corrupt
from shared.privacy.events import Event, Skellam
from shared.privacy.ledger import Ledger, Spend, event_from_row, event_to_row
from shared.secagg.private import Mechanism, Privacy, noise_multiplier
from shared.secagg.schema import Arrays, Schema

SPENT = "privacy.spent"  # a line of history
NOISE = "noise"  # its detail, and that of a commit


@dataclass(frozen=True)
class Forecast:
    """`epsilon` is for the job's rounds, `epsilon_spare` with the spare ones. Lengths are in the unit of the weights."""

    mechanism: Mechanism
    devices: int
    parameters: int
    rounds: int
    rounds_allowed: int
    epsilon: float
    epsilon_spare: float
    delta: float
    clip_norm: float
    contributors: int  # whose noise is surely in a sum; of central noise, the coordinator alone
    noise_multiplier: float  # standard deviation of that noise, over what one device can change the sum by
    noise_per_element: float  # standard deviation of all noise in one element of the mean
    noise_norm: float  # Euclidean, of all noise in a round's mean: expected
    bits_on_the_wire: int  # an element

    @property
    def noise_to_signal(self) -> float:
        """Noise in the mean of all rounds, over the longest that the mean of all their changes can be."""
        return self.noise_norm / math.sqrt(self.rounds) / self.clip_norm


def forecast(spec: JobSpec, arrays: Arrays, devices: int) -> Forecast:
    """What the job's rounds will cost with so many devices in each, and how good their means can be.

    Raises `ConfigError` for a job that is not private, `Unsupported` for one that cannot be.
    """
    config = secure_config(spec)
    if config.privacy is None:
        raise ConfigError("the job is not private: set privacy.mechanism to distributed or central", path="job.privacy")
    dropped = config.rates.dropped(devices)
    settings = config.settings("train").with_noise(devices, dropped, arrays)
    schema = settings.schema(devices, arrays, bytes(32))
    event = config.privacy.calibrated(schema, dropped)
    ledger = Ledger("plan", config.privacy.budget)
    distributed = isinstance(event, Skellam)
    counted = config.quorum(devices)  # the fewest, for which the mean is worst
    deviation = math.sqrt((counted if distributed else 1) * event.variance) * _step(schema) / counted
    return Forecast(
        mechanism=config.privacy.mechanism,
        devices=devices,
        parameters=schema.elements,
        rounds=spec.rounds,
        rounds_allowed=ledger.rounds_left(event),
        epsilon=ledger.plan(event, spec.rounds),
        epsilon_spare=ledger.plan(event, config.privacy.rounds),
        delta=config.privacy.delta,
        clip_norm=config.privacy.clip_norm,
        contributors=event.contributors if isinstance(event, Skellam) else 1,
        noise_multiplier=noise_multiplier(event),
        noise_per_element=deviation,
        noise_norm=deviation * math.sqrt(schema.elements),
        bits_on_the_wire=schema.modulus_bits,
    )


def _step(schema: Schema) -> float:
    """One level, in the unit of the weights; all arrays of a private schema have one scale."""
    return schema.clip / schema.levels * schema.floats[0].scale


def detail_of(event: Event) -> dict[str, str | int | float]:
    """For a line of history."""
    return {NOISE: json.dumps(event_to_row(event), separators=(",", ":"))}


def ledger_of(job: str, privacy: Privacy, history: Iterable[Line]) -> Ledger:
    """What the job has spent, attempts that failed included where devices had drawn noise. Raises `Corrupt`."""
    spends = {
        f"{line.round}.{line.attempt}": _event(line)
        for line in history
        if line.kind in (SPENT, RoundState.COMMITTED) and NOISE in line.detail
    }
    return Ledger(job, privacy.budget, tuple(Spend(job, round_id, event) for round_id, event in spends.items()))


def with_spend(ledger: Ledger, event: Event, number: int, attempt: int) -> Ledger:
    """Raises `Conflict` if that would overspend, saying what is left."""
    return ledger.spend(event, ledger.epoch, f"{number}.{attempt}", advice="submit another job for more rounds")


def _event(line: Line) -> Event:
    try:
        return event_from_row(json.loads(str(line.detail[NOISE])))
    except (ConfigError, ValueError) as error:
        raise Corrupt(f"what round {line.round} of job {line.job} spent cannot be read", detail=str(error)) from error
