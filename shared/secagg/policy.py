"""What a device insists on before it takes part."""

from dataclasses import dataclass, field

from shared.errors import ProtocolError, Unsupported
from shared.secagg.graph import Rates
from shared.secagg.terms import GroupTerms


@dataclass(frozen=True)
class Policy:
    """What a device insists on, whatever the server asks.

    `min_clients` is the crowd to hide in: it holds for the group, for each round and for those counted. `rates` are the least
    corruption and the least security bits, and the most dropout, that it lets a group be laid out for.
    """

    min_clients: int = 3
    rates: Rates = field(default_factory=lambda: Rates(dropout=0.5, corrupt=0.0))

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
        if asked.corrupt < own.corrupt or asked.security_bits < own.security_bits or asked.dropout > own.dropout:
            raise ProtocolError(
                f"the group is laid out for a dropout of {asked.dropout:g}, {asked.corrupt:g} corrupt and "
                f"{asked.security_bits} bits; this device wants at most {own.dropout:g}, at least {own.corrupt:g} and "
                f"{own.security_bits}"
            )
        try:
            terms.degrees  # noqa: B018
        except Unsupported as error:
            raise ProtocolError(error.message) from error
