"""What a device insists on before it takes part."""

from dataclasses import dataclass, field, replace

from shared.errors import ProtocolError, Unsupported
from shared.privacy.accountant import Budget
from shared.privacy.events import Event
from shared.secagg.graph import Rates
from shared.secagg.private import Mechanism, noise_multiplier
from shared.secagg.schema import Schema
from shared.secagg.terms import GroupTerms, Settings

DEFAULT_CORRUPT = 0.05  # of a group's clients


@dataclass(frozen=True)
class Policy:
    """What a device insists on, whatever the server asks.

    `min_clients` is the crowd to hide in: it holds for the group, for each round and for those counted. `rates` are the least
    corruption and the least security bits, and the most dropout and abort bits, that it lets a group be laid out for.
    """

    min_clients: int = 3
    rates: Rates = field(default_factory=lambda: Rates(dropout=0.5, corrupt=0.0, abort_bits=40))

    def __post_init__(self) -> None:
        if self.min_clients < 2:
            raise ValueError("a sum over fewer than two clients hides nothing")

    def check(self, terms: GroupTerms) -> None:
        """Raises `ProtocolError` for terms that would not protect this device."""
        if terms.fewest < self.min_clients:
            raise ProtocolError(
                f"{terms.clients} clients, of which {terms.fewest} may remain, are below this device's minimum of "
                f"{self.min_clients}"
            )
        asked, own = terms.rates, self.rates
        weak = asked.corrupt < own.corrupt or asked.security_bits < own.security_bits
        if weak or asked.dropout > own.dropout or asked.abort_bits > own.abort_bits:
            raise ProtocolError(
                f"the group is laid out for a dropout of {asked.dropout:g}, {asked.corrupt:g} corrupt, {asked.security_bits} bits "
                f"of security and {asked.abort_bits} against aborts; this device wants at most {own.dropout:g}, at least "
                f"{own.corrupt:g} and {own.security_bits}, and at most {own.abort_bits}"
            )
        try:
            terms.degrees  # noqa: B018
        except Unsupported as error:
            raise ProtocolError(error.message) from error


def of_a_device(min_clients: int = 3, corrupt: float = DEFAULT_CORRUPT) -> Policy:
    """What a device in the field insists on: a group in which a share `corrupt` would learn nothing, working with the server."""
    policy = Policy(min_clients)
    return replace(policy, rates=replace(policy.rates, corrupt=corrupt))


@dataclass(frozen=True)
class PrivacyPolicy:
    """What a device insists on before anything that depends on its examples leaves it, whatever the server asks.

    `budget` is for all jobs together, over the same examples (a ledger keeps count). `noise` is the least that a round's sum must
    surely hold: its standard deviation, over what this device can change the sum by. None: what the job's budget asks for will do,
    and a job that adds no noise is none of this policy's business.
    """

    budget: Budget | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError("the least noise is not negative, and finite")

    @property
    def demanded(self) -> bool:
        return self.budget is not None or self.noise > 0

    def admit(self, settings: Settings, schema: Schema, terms: GroupTerms, *, training: bool) -> Event | None:
        """The noise that this device must draw, and spend on, if it is to draw some. Raises `ProtocolError` for a round that would
        not protect it, `Unsupported` for noise that cannot be accounted for.
        """
        privacy = settings.privacy
        if (privacy is None or privacy.mechanism is Mechanism.CENTRAL) and self.demanded:
            raise ProtocolError("this device answers only in rounds in which devices add noise themselves")
        if privacy is None:
            return None
        if not training:
            raise ProtocolError("a private job measures nothing on devices: what they would tell has no noise")
        if privacy.mechanism is Mechanism.CENTRAL:
            return None
        if privacy.missing < terms.rates.corrupt:
            raise ProtocolError(
                f"the noise is laid out for {privacy.missing:g} that add none, the group for {terms.rates.corrupt:g} corrupt"
            )
        if not schema.noise:
            raise ProtocolError("the round promises noise of devices, and asks for none")
        event = privacy.event(schema, terms.rates.dropped(terms.clients), schema.noise)
        if noise_multiplier(event) < self.noise:
            raise ProtocolError(
                f"the round's noise is {noise_multiplier(event):.4g} times what a device can change; this one wants {self.noise:g}"
            )
        return event
