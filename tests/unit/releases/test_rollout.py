"""What a rollout decides, and what it believes."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.releases.plan import RolloutPlan
from coordinator.releases.release import Rollout
from coordinator.releases.rollout import (
    Advance,
    Begin,
    Complete,
    Offer,
    Pause,
    Refuse,
    Undone,
    Wait,
    Withdraw,
    decide,
    judge,
)
from coordinator.releases.states import DeviceEvent, DeviceState, RolloutState
from shared.ids import DeviceId, digest_of
from shared.session import Gate
from tests.unit.releases.factories import NOW, a_receipt, a_release, a_rollout, a_row

PROVEN, OFFERED, REFUSED, FAILED = DeviceState.PROVEN, DeviceState.OFFERED, DeviceState.REFUSED, DeviceState.FAILED
SKIPPED, WITHDRAWING, REVERTED = DeviceState.SKIPPED, DeviceState.WITHDRAWING, DeviceState.REVERTED
A, B = DeviceId("dev-1"), DeviceId("dev-2")
TIMEOUT = RolloutPlan().stage_timeout_s


def test_a_planned_rollout_begins() -> None:
    assert decide(a_rollout(a_row(), state=RolloutState.PLANNED, stage=0), NOW) == (Begin(),)


def test_only_devices_whose_turn_has_come_are_offered_the_release() -> None:
    assert decide(a_rollout(a_row(), a_row("dev-2", 2)), NOW) == (Offer(A), Wait(NOW + TIMEOUT))


def test_an_offer_is_not_repeated_while_an_answer_is_awaited() -> None:
    assert decide(a_rollout(a_row(state=OFFERED)), NOW + 1) == (Wait(NOW + TIMEOUT),)


def test_a_stage_that_proved_leads_to_the_next() -> None:
    assert decide(a_rollout(a_row(state=PROVEN), a_row("dev-2", 2)), NOW) == (Advance(2),)


def test_the_last_stage_that_proved_completes() -> None:
    rollout = a_rollout(a_row(state=PROVEN), a_row("dev-2", 3, PROVEN), stage=3)
    assert decide(rollout, NOW) == (Complete(),)


def test_a_stage_without_devices_is_passed() -> None:
    assert decide(a_rollout(a_row("dev-2", 3), stage=2), NOW) == (Advance(3),)


def test_installed_is_not_proven_however_long_one_waits() -> None:
    rollout = a_rollout(a_row(state=OFFERED))
    for later in (0, TIMEOUT / 2, TIMEOUT - 1):
        assert decide(rollout, NOW + later) == (Wait(NOW + TIMEOUT),)


def test_silence_pauses_and_does_not_refuse() -> None:
    (action,) = decide(a_rollout(a_row(state=OFFERED)), NOW + TIMEOUT)
    assert isinstance(action, Pause)
    assert action.reason.startswith("stage 1 has 0 of 1 proofs after 900 s")


@pytest.mark.parametrize("state", [REFUSED, FAILED])
def test_more_failures_than_the_plan_allows_refuse_the_release(state: DeviceState) -> None:
    (action,) = decide(a_rollout(a_row(state=state, reason="accuracy fell"), a_row("dev-2", 2)), NOW)
    assert action == Refuse("stage 1: 1 of 1 devices refused or failed; dev-1: accuracy fell")


def test_a_failure_in_an_earlier_stage_still_refuses() -> None:
    rollout = a_rollout(a_row(state=FAILED, reason="it went back"), a_row("dev-2", 2, PROVEN), stage=2)
    assert decide(rollout, NOW) == (Refuse("stage 1: 1 of 1 devices refused or failed; dev-1: it went back"),)


def test_allowed_failures_do_not_hold_up_the_stage() -> None:
    plan = RolloutPlan(max_failures=1)
    rollout = a_rollout(a_row(state=FAILED), a_row("dev-2", state=PROVEN), plan=plan)
    assert decide(rollout, NOW) == (Advance(2),)


def test_a_stage_where_all_failed_refuses_even_if_that_many_may() -> None:
    (action,) = decide(a_rollout(a_row(state=FAILED), plan=RolloutPlan(max_failures=5)), NOW)
    assert action == Refuse("no device of stage 1 proved that it serves the release")


@pytest.mark.parametrize(("proven", "passes"), [(7, False), (8, True)])
def test_a_share_of_proofs_is_rounded_up(proven: int, passes: bool) -> None:
    rows = [a_row(f"dev-{n}", state=PROVEN if n < proven else OFFERED) for n in range(10)]
    actions = decide(a_rollout(*rows, plan=RolloutPlan(min_proven=0.75)), NOW)
    assert (Advance(2) in actions) is passes


def test_a_stage_soaks_from_its_last_proof() -> None:
    plan = RolloutPlan(soak_s=60)
    rollout = a_rollout(a_row(state=PROVEN), a_row("dev-2", state=PROVEN, updated_at=NOW + 5), plan=plan)
    assert decide(rollout, NOW + 64) == (Wait(NOW + 65),)
    assert decide(rollout, NOW + 65) == (Advance(2),)


def test_a_device_that_left_the_fleet_holds_up_nothing_and_proves_nothing() -> None:
    assert decide(a_rollout(a_row(state=SKIPPED), a_row("dev-2", state=PROVEN)), NOW) == (Advance(2),)
    assert decide(a_rollout(a_row(state=SKIPPED), a_row("dev-2", state=OFFERED)), NOW) == (Wait(NOW + TIMEOUT),)


@pytest.mark.parametrize("state", [RolloutState.PAUSED, RolloutState.UNDONE])
def test_a_rollout_that_rests_asks_for_nothing(state: RolloutState) -> None:
    assert decide(a_rollout(a_row(), a_row("dev-2", state=WITHDRAWING), state=state), NOW + 10 * TIMEOUT) == ()


def test_a_completed_rollout_serves_late_devices() -> None:
    assert decide(a_rollout(a_row(), a_row("dev-2", state=PROVEN), state=RolloutState.COMPLETED), NOW) == (Offer(A),)


@pytest.mark.parametrize("state", [RolloutState.REFUSED, RolloutState.UNDOING, RolloutState.UNDONE])
def test_devices_that_may_serve_an_unwanted_release_go_back_and_others_are_left_alone(state: RolloutState) -> None:
    claims = a_receipt(a_release())
    rollout = a_rollout(
        a_row("dev-1", state=PROVEN),
        a_row("dev-2", state=OFFERED),
        a_row("dev-3", state=REFUSED, receipt=replace(claims, state="refused")),
        a_row("dev-4", state=REFUSED, receipt=claims),  # serves it, but the coordinator did not believe the numbers
        a_row("dev-5", state=SKIPPED),
        a_row("dev-6", state=SKIPPED, receipt=claims),
        state=state,
    )
    assert [one.device for one in decide(rollout, NOW) if isinstance(one, Withdraw)] == [
        "dev-1",
        "dev-2",
        "dev-4",
        "dev-6",
    ]


def test_undoing_ends_when_every_device_is_back() -> None:
    rollout = a_rollout(a_row(state=REVERTED), a_row("dev-2", state=REFUSED), state=RolloutState.UNDOING)
    assert decide(rollout, NOW) == (Undone(""),)


def test_undoing_does_not_wait_for_ever() -> None:
    rollout = a_rollout(a_row(state=WITHDRAWING), state=RolloutState.UNDOING)
    assert decide(rollout, NOW) == (Wait(NOW + 300),)
    (action,) = decide(rollout, NOW + 300)
    assert isinstance(action, Undone)
    assert action.reason.startswith("1 devices have not confirmed")


# ---- receipts


def verdict(rollout: Rollout | None = None, **changes: Any) -> tuple[DeviceEvent, str]:
    return judge(a_receipt(**changes), rollout or a_rollout(), a_release())


def test_a_good_receipt_proves() -> None:
    assert verdict() == (DeviceEvent.PROVE, "")


def test_hawkbit_3185_success_is_never_recorded_while_the_device_serves_something_else() -> None:
    """https://github.com/eclipse-hawkbit/hawkbit/issues/3185"""
    event, reason = verdict(bundle_digest=digest_of(b"the old model"))
    assert event is DeviceEvent.FAIL
    assert "not the release's" in reason


@pytest.mark.parametrize(
    ("changes", "why"),
    {
        "accuracy fell by more than the budget": ({"accuracy_after": 0.92}, "accuracy fell from 95.0% to 92.0%"),
        "accuracy was not measured": ({"accuracy_before": None, "accuracy_after": None}, "accuracy was not measured"),
        "accuracy was measured before only": ({"accuracy_after": None}, "accuracy was not measured"),
        "accuracy beyond one": ({"accuracy_after": 96.0}, "not between 0 and 1"),
        "a negative accuracy before": ({"accuracy_before": -1.0}, "not between 0 and 1"),
        "too few answers": ({"answers": 31}, "only 31 of 32 answers"),
        "failed requests": ({"errors": 1}, "1 requests failed"),
        "logits moved": ({"max_logit_difference": 1.5}, "logits differ by 1.5"),
        "a negative difference": ({"max_logit_difference": -1.0}, "logits differ"),
        "answers changed": ({"top1_agreement": 0.5}, "agrees on 50.0%"),
        "its own graph, not compared": ({"max_logit_difference": None}, "not compared"),
    }.values(),
)
def test_numbers_are_judged_again_whatever_the_device_says(changes: dict[str, Any], why: str) -> None:
    event, reason = verdict(**changes)
    assert event is DeviceEvent.REFUSE
    assert why in reason


def test_a_drop_of_just_the_budget_passes() -> None:
    assert verdict(accuracy_before=0.95, accuracy_after=0.93)[0] is DeviceEvent.PROVE


def test_a_first_install_has_nothing_to_compare_with() -> None:
    assert verdict(accuracy_before=None)[0] is DeviceEvent.PROVE


def test_a_fleet_without_labels_must_say_so_in_its_plan() -> None:
    rollout = a_rollout(plan=RolloutPlan(require_accuracy=False))
    assert verdict(rollout, accuracy_before=None, accuracy_after=None)[0] is DeviceEvent.PROVE


def test_the_releases_own_graph_needs_no_comparison() -> None:
    own = a_release().manifest.files["model.onnx"].digest
    rollout = a_rollout(plan=RolloutPlan(gate=Gate(requantize=False)))
    event, _ = verdict(rollout, variant_digest=own, max_logit_difference=None, top1_agreement=None)
    assert event is DeviceEvent.PROVE


@pytest.mark.parametrize("missing", [{"variant_digest": ""}, {"runtime": ""}])
def test_a_receipt_that_does_not_say_what_serves_proves_nothing(missing: dict[str, Any]) -> None:
    assert verdict(**missing)[0] is DeviceEvent.FAIL


@pytest.mark.parametrize(
    ("state", "event"),
    [("refused", DeviceEvent.REFUSE), ("failed", DeviceEvent.FAIL), ("reverted", DeviceEvent.REVERT)],
)
def test_a_device_that_says_no_is_believed(state: str, event: DeviceEvent) -> None:
    assert verdict(state=state, reason="its words") == (event, "its words")
