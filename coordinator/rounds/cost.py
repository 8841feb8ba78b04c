"""What a secure round is made of, as a job's settings have it, before anything runs: bits, masks, exchanges of messages."""

from dataclasses import dataclass, replace

from coordinator.rounds.plan import JobSpec
from coordinator.rounds.strategies import secure_config
from shared.errors import ConfigError, Unsupported
from shared.secagg.graph import derive
from shared.secagg.keys import KEY_BYTES, TAG_BYTES
from shared.secagg.messages import DIGEST_BYTES
from shared.secagg.schema import Arrays, sum_bits
from shared.secagg.setup import SEAL_BYTES
from shared.secagg.shamir import SHARE_BYTES

TRIPS = 3  # exchanges of messages in a round that finds keys at hand: masked, confirmed, unmasked


@dataclass(frozen=True)
class Cost:
    """Of the largest group of a round with so many `devices`. An element takes `bits_on_the_wire`: `bits`, `bits_of_the_sum`, and
    room for noise in a private round; `share_sent` of all elements are sent. `vector_bytes` is a masked vector,
    `first_vector_bytes` that of the job's first round, which takes whole words; `keys_bytes` is what a device deals where keys are
    made. `trips` are the messages of one training or measurement, there and back, and keys serve `key_rounds` of these.
    """

    devices: int
    group: int
    parameters: int
    bits: int
    bits_of_the_sum: int
    bits_on_the_wire: int
    share_sent: float
    vector_bytes: int
    first_vector_bytes: int
    keys_bytes: int
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
    sizes = config.sizes(devices)
    if len(sizes) < config.least_groups:
        raise Unsupported(
            f"{devices} devices make {len(sizes)} groups, and the strategy needs {config.least_groups}: select more"
        )
    group = sizes[0]
    degrees = derive(group, config.rates_in(group))
    settings = config.settings("train").with_noise(group, config.rates.dropped(group), arrays)
    first = settings.schema(group, arrays, bytes(32))
    if not settings.privacy:
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
        first_vector_bytes=first.bytes_on_the_wire,
        keys_bytes=_dealt(degrees.neighbours, config.group_rounds),
        neighbours=degrees.neighbours,
        threshold=degrees.threshold,
        witnesses=degrees.witnesses,
        trips=TRIPS,
        trips_with_keys=TRIPS + (2 if degrees.complete else 3),
        key_rounds=config.group_rounds,
    )


def _dealt(neighbours: int, rounds: int) -> int:
    """Letters to the neighbours, digests of secrets and masks, and records for recovery."""
    letters = neighbours * (2 * SHARE_BYTES * rounds + SEAL_BYTES)
    return letters + rounds * (2 * DIGEST_BYTES + neighbours * (TAG_BYTES + KEY_BYTES) + SEAL_BYTES)
