"""The ledger says no before it is too late, and a refusal changes nothing."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Conflict, Corrupt
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.events import CentralGaussian, Event, Skellam
from shared.privacy.ledger import MOST_ROUNDS, Charge, Ledger, Spend, charged

EVENT = Skellam(variance=400.0, contributors=50, squared_norm=900, dimension=1000)
LOUD = CentralGaussian(variance=90_000.0, squared_norm=900, dimension=1000)
EMPTY = Ledger("photos-2026-11", Budget(4.0, 1e-6))
ONE = replace(EMPTY, spends=(Spend("job-a", "r1", EVENT),))

spends = st.lists(
    st.tuples(
        st.sampled_from(["job-a", "job-b"]),
        st.integers(0, 12),
        st.sampled_from([EVENT, replace(EVENT, variance=90.0), LOUD]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=40)
@given(spends)
def test_a_ledger_never_exceeds_its_budget_and_a_refusal_changes_nothing(wanted: list[tuple[str, int, Event]]) -> None:
    ledger = EMPTY
    for job, number, event in wanted:
        before, text = ledger, ledger.to_json()
        try:
            ledger = ledger.spend(event, job, str(number))
        except Conflict:
            assert ledger is before
            assert ledger.to_json() == text
        assert ledger.spent <= ledger.budget.epsilon
        assert before.spent <= ledger.spent
    assert Ledger.from_json(ledger.to_json()) == ledger


@settings(deadline=None)
@given(spends, st.randoms(use_true_random=False))
def test_the_order_of_spends_makes_no_difference(wanted: list[tuple[str, int, Event]], chance: random.Random) -> None:
    rows = tuple(Spend(job, str(at), event) for at, (job, _, event) in enumerate(wanted))
    mixed = list(rows)
    chance.shuffle(mixed)
    assert replace(EMPTY, spends=rows).spent == replace(EMPTY, spends=tuple(mixed)).spent


def test_the_same_round_is_spent_once() -> None:
    once = EMPTY.spend(EVENT, "job-a", "r1")
    assert once.spend(EVENT, "job-a", "r1") is once
    assert len(once.spend(EVENT, "job-b", "r1").spends) == 2
    assert once.spent == epsilon({EVENT: 1}, 1e-6)


def test_the_same_round_with_other_noise_is_refused() -> None:
    once = EMPTY.spend(EVENT, "job-a", "r1")
    with pytest.raises(Conflict, match="id of its own"):
        once.spend(replace(EVENT, variance=500.0), "job-a", "r1")


def test_a_plan_is_what_is_spent_once_it_is_carried_out() -> None:
    ledger = EMPTY.spend(LOUD, "job-x", "r0")
    planned = ledger.plan(EVENT, 5)
    for number in range(5):
        ledger = ledger.spend(EVENT, "job-a", f"r{number}")
    assert ledger.spent == planned > EMPTY.plan(EVENT, 5)


def test_the_rounds_left_can_be_spent_and_not_one_more_and_the_refusal_says_what_is_left() -> None:
    ledger, left = EMPTY, EMPTY.rounds_left(EVENT)
    assert 5 < left < 1000
    for number in range(left):
        ledger = ledger.spend(EVENT, "job-a", f"r{number}")
    assert ledger.rounds_left(EVENT) == 0
    with pytest.raises(Conflict) as caught:
        ledger.spend(EVENT, "job-b", "r0")
    assert caught.value.exit_code == 4
    for part in (
        "r0 of job-b",
        "photos-2026-11",
        "of 4 at delta 1e-06",
        f"{ledger.spent:.4g} is spent",
        f"{4.0 - ledger.spent:.4g} left",
    ):
        assert part in caught.value.message
    assert ledger.spend(EVENT, "job-a", "r0") is ledger  # what was spent may still be carried out
    quiet = replace(EVENT, variance=2.0**29)
    assert ledger.rounds_left(quiet) > 0


def test_rounds_that_cost_nothing_are_counted_to_a_limit() -> None:
    assert Ledger("e", Budget(1e9, 0.5)).rounds_left(replace(EVENT, variance=2.0**30)) == MOST_ROUNDS


def test_the_json_is_flat_and_comes_back_the_same() -> None:
    ledger = EMPTY.spend(EVENT, "job-a", "r1").spend(LOUD, "job-b", "r1")
    whole = json.loads(ledger.to_json())
    assert whole["spends"][0] == {
        "job": "job-a",
        "round_id": "r1",
        "mechanism": "skellam",
        "variance": 400.0,
        "contributors": 50,
        "squared_norm": 900,
        "dimension": 1000,
    }
    assert whole["spends"][1]["mechanism"] == "central-gaussian"
    assert Ledger.from_json(ledger.to_json().encode()) == ledger
    assert Ledger.from_json(EMPTY.to_json()) == EMPTY


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(ONE.to_json()), **changes})


def row(**changes: object) -> str:
    whole = json.loads(ONE.to_json())
    return changed(
        spends=[{name: value for name, value in {**whole["spends"][0], **changes}.items() if value is not None}]
    )


BROKEN = {
    "not JSON": "{",
    "cut off": EMPTY.to_json()[:-3],
    "empty": "",
    "not an object": "[]",
    "an unknown key": changed(more=1),
    "a missing key": '{"epoch":"e","epsilon":1.0,"delta":0.1}',
    "epsilon as text": changed(epsilon="4"),
    "epsilon true": changed(epsilon=True),
    "epsilon not a number": '{"epoch":"e","epsilon":NaN,"delta":0.1,"spends":[]}',
    "a budget below zero": changed(epsilon=-1.0),
    "spends not a list": changed(spends={}),
    "a spend not an object": changed(spends=[1]),
    "an unknown key in a spend": row(more=1),
    "a spend without its round": row(round_id=None),
    "a spend without its noise": row(variance=None),
    "a round that is a number": row(round_id=7),
    "an unknown mechanism": row(mechanism="hope"),
    "a mechanism that is a list": row(mechanism=[]),
    "a number of devices with a fraction": row(contributors=1.5),
    "noise below zero": row(variance=-1.0),
    "noise beyond all floats": row(variance=10**400),
    "more devices than there can be": row(contributors=10**400),
    "a dimension beyond all measure": row(dimension=10**400),
    "a sensitivity beyond all measure": row(squared_norm=10**400),
    "the same round twice": changed(spends=json.loads(ONE.to_json())["spends"] * 2),
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_ledger_that_is_not_what_was_written_allows_nothing(case: str) -> None:
    with pytest.raises(Corrupt, match="nothing more may be spent"):
        Ledger.from_json(BROKEN[case])


def test_a_ledger_of_bytes_that_are_no_text_allows_nothing() -> None:
    with pytest.raises(Corrupt):
        Ledger.from_json(b"\xff\xfe\xff")


@pytest.mark.parametrize("later", [Budget(20.0, 1e-6), Budget(4.0, 1e-3), Budget(1.0, 1e-6)])
@pytest.mark.parametrize("own", [None, Budget(50.0, 1e-6)])
def test_a_job_cannot_state_another_budget_than_it_stated_first(later: Budget, own: Budget | None) -> None:
    """Nor after the ledger was written and read again; another job may state what it likes."""
    first = Charge("job-a", "r1", EVENT, Budget(4.0, 1e-6))
    ledgers = {name: Ledger.from_json(item.to_json()) for name, item in charged({}, ["e"], first, own).items()}
    with pytest.raises(Conflict, match="stated epsilon 4 at delta 1e-06 and now"):
        charged(ledgers, ["e"], replace(first, round_id="r2", budget=later), own)
    assert len(charged(ledgers, ["e"], replace(first, round_id="r2"), own)["e"].spends) == 2
    assert len(charged(ledgers, ["e"], replace(first, job="job-b", budget=later), own)["e"].spends) == 2


def test_half_a_stated_budget_is_no_ledger() -> None:
    text = charged({}, ["e"], Charge("job-a", "r1", EVENT, Budget(4.0, 1e-6)))["e"].to_json()
    for wrong in (
        text.replace('"stated_delta":1e-06,', ""),
        text.replace('"stated_epsilon":4.0', '"stated_epsilon":-1.0'),
    ):
        assert wrong != text
        with pytest.raises(Corrupt):
            Ledger.from_json(wrong)
