"""What one data epoch has spent, of all jobs together: a value that says no.

A spend is recorded before its noise is drawn, under the id of the one round that it is drawn for. To record it again is no second
spend, so a message that comes twice costs nothing; but whoever draws noise twice under one id spends what no ledger saw: a round
that is run again has an id of its own. Examples of an older epoch that are trained on again (replay) spend that epoch's budget too:
`charged` is for a round over several.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shared.errors import ConfigError, Conflict, Corrupt
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.events import CentralGaussian, Event, Skellam
from shared.settings import from_mapping

MOST_ROUNDS = 1 << 20  # more are not counted
_MECHANISMS: dict[str, type[Skellam] | type[CentralGaussian]] = {
    "skellam": Skellam,
    "central-gaussian": CentralGaussian,
}


@dataclass(frozen=True)
class Spend:
    """`stated` is the budget that the job kept to then, where its word for it is all there is."""

    job: str
    round_id: str
    event: Event
    stated: Budget | None = None


@dataclass(frozen=True)
class Charge:
    """One round of a job, and the budget that the job keeps to over all its rounds."""

    job: str
    round_id: str
    event: Event
    budget: Budget


@dataclass(frozen=True)
class Ledger:
    """`epoch` names the data: what a device held before its examples changed."""

    epoch: str
    budget: Budget
    spends: tuple[Spend, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if len({(item.job, item.round_id) for item in self.spends}) != len(self.spends):
            raise ValueError("a round is in the ledger twice")

    @property
    def spent(self) -> float:
        """Epsilon so far, at the budget's delta."""
        return self.spent_at(self.budget.delta)

    def spent_at(self, delta: float) -> float:
        """Epsilon so far; infinite where none can be promised at this delta."""
        return epsilon(self._counts, delta)

    def plan(self, event: Event, rounds: int) -> float:
        """Epsilon after so many more rounds of `event`."""
        return epsilon(self._counts + Counter({event: rounds}), self.budget.delta)

    def rounds_left(self, event: Event) -> int:
        """How many more rounds of `event` the budget allows, up to `MOST_ROUNDS`."""
        low, high = 0, MOST_ROUNDS + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._allows(event, middle) else (low, middle)
        return low

    def spend(self, event: Event, job: str, round_id: str, *, advice: str = "") -> "Ledger":
        """With one round of `event` recorded; this ledger itself if that round is in it already.

        Raises `Conflict` if it would overspend, saying what is left and, as `advice`, what to do, or if the round is in it with
        another event.
        """
        known = next((item.event for item in self.spends if (item.job, item.round_id) == (job, round_id)), None)
        if known == event:
            return self
        if known is not None:
            raise Conflict(
                f"round {round_id} of {job} is in the ledger with other noise: run it again under an id of its own"
            )
        if not self._allows(event, 1):
            raise Conflict(self._refusal(event, job, round_id) + (f": {advice}" if advice else ""))
        return replace(self, spends=(*self.spends, Spend(job, round_id, event)))

    @property
    def _counts(self) -> Counter[Event]:
        return Counter(item.event for item in self.spends)

    def _allows(self, event: Event, rounds: int) -> bool:
        return self.plan(event, rounds) <= self.budget.epsilon

    def _refusal(self, event: Event, job: str, round_id: str) -> str:
        spent = self.spent
        return (
            f"round {round_id} of {job} would bring data epoch {self.epoch} to epsilon {self.plan(event, 1):.4g}; "
            f"of {self.budget.epsilon:g} at delta {self.budget.delta:g}, {spent:.4g} is spent and "
            f"{max(0.0, self.budget.epsilon - spent):.4g} left"
        )

    def to_json(self) -> str:
        rows = [
            {"job": item.job, "round_id": item.round_id, **_stated(item), **event_to_row(item.event)}
            for item in self.spends
        ]
        whole = {"epoch": self.epoch, **asdict(self.budget), "spends": rows}
        return json.dumps(whole, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Ledger":
        """Raises `Corrupt` for whatever `to_json` does not write: a ledger that cannot be read allows nothing."""
        try:
            whole = from_mapping(_Whole, json.loads(text), where="ledger")
            spends = tuple(_spend(row, f"ledger.spends[{at}]") for at, row in enumerate(whole.spends))
            return cls(whole.epoch, Budget(whole.epsilon, whole.delta), spends)
        except (ConfigError, ValueError, RecursionError) as error:
            raise Corrupt(
                "the privacy ledger cannot be read, so nothing more may be spent: restore it", detail=str(error)
            ) from error


def charged(
    ledgers: Mapping[str, Ledger],
    epochs: Iterable[str],
    charge: Charge,
    own: Budget | None = None,
    *,
    advice: str = "",
) -> dict[str, Ledger]:
    """`ledgers`, by epoch, with one round recorded in that of each of `epochs`. The job keeps to its budget in each; all jobs
    together keep to `own`, if there is one.

    Raises `Conflict` if an epoch would be overspent, with `advice` on what to do then, if the job stated another budget before, or
    if the round is in a ledger already: its noise may have been drawn. Nothing is changed then.
    """
    after, known = dict(ledgers), dict[tuple[Spend, ...], tuple[Spend, ...]]()
    for epoch in sorted(epochs):
        spends = ledgers[epoch].spends if epoch in ledgers else ()
        if spends not in known:  # files that came together have spent alike
            known[spends] = _with(epoch, spends, charge, own, advice)
        after[epoch] = Ledger(epoch, own or charge.budget, known[spends])
    return after


def _with(epoch: str, spends: tuple[Spend, ...], charge: Charge, own: Budget | None, advice: str) -> tuple[Spend, ...]:
    of_job = tuple(item for item in spends if item.job == charge.job)
    if any(item.round_id == charge.round_id for item in of_job):
        raise Conflict(
            f"noise for round {charge.round_id} of {charge.job} was drawn before, and is never drawn twice: run the round again"
        )
    if (other := next((item.stated for item in of_job if item.stated not in (None, charge.budget)), None)) is not None:
        raise Conflict(
            f"{charge.job} stated epsilon {other.epsilon:g} at delta {other.delta:g} and now {charge.budget.epsilon:g} at "
            f"{charge.budget.delta:g}: submit a job of its own for that"
        )
    for budget, counted in ((charge.budget, of_job), (own, spends)):
        if budget is not None:
            Ledger(epoch, budget, counted).spend(charge.event, charge.job, charge.round_id, advice=advice)
    return (*spends, Spend(charge.job, charge.round_id, charge.event, charge.budget))


def _stated(spend: Spend) -> dict[str, float]:
    if spend.stated is None:
        return {}
    return {"stated_epsilon": spend.stated.epsilon, "stated_delta": spend.stated.delta}


@dataclass(frozen=True)
class _Whole:
    epoch: str
    epsilon: float
    delta: float
    spends: Any

    def __post_init__(self) -> None:
        if not (isinstance(self.spends, list) and all(isinstance(row, dict) for row in self.spends)):
            raise ValueError("spends is not a list of tables")


def event_to_row(event: Event) -> dict[str, Any]:
    """Flat, as JSON has it."""
    name = next(name for name, kind in _MECHANISMS.items() if type(event) is kind)
    return {"mechanism": name, **asdict(event)}


def event_from_row(row: Mapping[str, Any], where: str = "event") -> Event:
    """The inverse of `event_to_row`. Raises `ConfigError` or `ValueError`."""
    values = dict(row)
    mechanism = values.pop("mechanism", None)
    if not isinstance(mechanism, str) or mechanism not in _MECHANISMS:
        raise ValueError(f"{where}: no mechanism that we know")
    return from_mapping(_MECHANISMS[mechanism], values, where=where)


def _spend(row: dict[str, Any], where: str) -> Spend:
    job, round_id = (row.pop(name, None) for name in ("job", "round_id"))
    if not (isinstance(job, str) and isinstance(round_id, str)):
        raise ValueError(f"{where}: not a spend")
    stated = tuple(row.pop(name) for name in ("stated_epsilon", "stated_delta") if name in row)
    if len(stated) not in (0, 2) or not all(isinstance(value, float | int) for value in stated):
        raise ValueError(f"{where}: half a budget")
    return Spend(job, round_id, event_from_row(row, where), Budget(*map(float, stated)) if stated else None)
