"""What a secure round takes of a device and sends: as a job's settings have it, before anything runs."""

from dataclasses import dataclass, replace

from coordinator.rounds.plan import JobSpec
from coordinator.rounds.strategies import secure_config
from shared.errors import ConfigError
from shared.secagg.graph import derive
from shared.secagg.schema import Arrays, sum_bits

TRIPS = 3  # exchanges of messages in a round that finds keys at hand: masked, confirmed, unmasked


@dataclass(frozen=True)
class Cost:
    """Of the largest group of a round with so many `devices`. An element takes `bits_on_the_wire`: `bits`, `bits_of_the_sum`, and
    room for noise in a private round; `share_sent` of all elements are sent. `trips` are exchanges of messages.
    """

    devices: int
    group: int
    parameters: int
    bits: int
    bits_of_the_sum: int
    bits_on_the_wire: int
    share_sent: float
    vector_bytes: int
    neighbours: int
    threshold: int
    witnesses: int
    trips: int
    trips_with_keys: int
    key_rounds: int

    @property
    def bytes_a_parameter(self) -> float:
        return self.vector_bytes / max(1, self.parameters)

    @property
    def trips_saved(self) -> int:
        """By keys that serve `key_rounds` rounds, in that many rounds of which no device vanishes."""
        return (self.key_rounds - 1) * (self.trips_with_keys - self.trips)


def cost(spec: JobSpec, arrays: Arrays, devices: int) -> Cost:
    """Raises `ConfigError` for a job that is not secure, `Unsupported` for one that so many devices cannot run."""
    if not spec.secure.enabled:
        raise ConfigError("the job is not secure: set secure.enabled to true", path="job.secure")
    config = secure_config(spec)
    group = config.sizes(devices)[0]
    degrees = derive(group, config.rates_in(group))
    settings = config.settings("train").with_noise(group, config.rates.dropped(group), arrays)
    if not settings.privacy:  # as after a first round, which takes whole words
        settings = replace(settings, unit_weight=1.0, scales=dict.fromkeys(arrays, 1.0))
    schema = settings.schema(group, arrays, bytes(32))
    return Cost(
        devices=devices,
        group=group,
        parameters=schema.elements,
        bits=schema.bits,
        bits_of_the_sum=sum_bits(group),
        bits_on_the_wire=schema.modulus_bits,
        share_sent=schema.kept / max(1, schema.elements),
        vector_bytes=schema.bytes_on_the_wire,
        neighbours=degrees.neighbours,
        threshold=degrees.threshold,
        witnesses=degrees.witnesses,
        trips=TRIPS,
        trips_with_keys=TRIPS + (2 if degrees.complete else 3),
        key_rounds=config.group_rounds,
    )
