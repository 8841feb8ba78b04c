"""Differential privacy through the grid: what the coordinator learns, what devices spend, and what they refuse."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.ledger import Epochs, MemoryLedgers
from edge_agent.residuals import LEFT
from edge_agent.secure_mod import ModPolicy
from shared.errors import RoundAborted, StorageFull, Unsupported
from shared.flower import reply_with, unpack_bytes
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.events import CentralGaussian, Skellam
from shared.privacy.ledger import Charge
from shared.secagg.graph import Rates
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD
from shared.secagg.policy import PrivacyPolicy
from shared.secagg.private import Mechanism, Privacy
from shared.secagg.terms import Settings
from tests.protocol.secagg.appgrid import AppGrid, Recorder, make_grid, silent
from tests.protocol.secagg.exchanges import messages, numpy_arrays

SIZE, DEVICES = 400, 6
PRIVACY = Privacy(Mechanism.DISTRIBUTED, 8.0, 1e-5, 2.0, 4, 0.17)
CONFIG = SecureConfig(rates=Rates(0.2, 0.1), privacy=PRIVACY, feedback=False)
CENTRAL = replace(CONFIG, privacy=replace(PRIVACY, mechanism=Mechanism.CENTRAL))
Values = np.ndarray[Any, Any]
PATTERN = np.random.default_rng(3).standard_normal((DEVICES + 1, SIZE)).astype(np.float32)


def change(node: int) -> Values:
    """Far longer than the clip norm."""
    return np.asarray(PATTERN[node])


def expected(*nodes: int) -> Values:
    """Each clipped, none weighed."""
    clipped = [change(node) * PRIVACY.clip_norm / np.linalg.norm(change(node)) for node in nodes]
    return np.asarray(np.mean(clipped, axis=0))


def training(message: Message, context: Context) -> Message:
    arrays = {n: Array(v + change(context.node_id)) for n, v in numpy_arrays(message.content).items()}
    metrics = MetricRecord({"num-examples": 10**context.node_id, "loss": 1.0})
    return reply_with(message, RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}))


class Six:
    """Devices with a ledger each, a grid over them, and who watches."""

    def __init__(
        self,
        config: SecureConfig = CONFIG,
        *,
        own: Budget | None = None,
        kept: bool = True,
        first: MemoryLedgers | None = None,
    ) -> None:
        nodes = range(1, DEVICES + 1)
        self.ledgers = {node: MemoryLedgers(own) for node in nodes} if kept else {}
        if first is not None:
            self.ledgers[1] = first
        policy, self.trained = ModPolicy(privacy=PrivacyPolicy(own)), list[int]()

        def train(message: Message, context: Context) -> Message:
            self.trained.append(context.node_id)
            return training(message, context)

        self.inner, authority = make_grid(
            DEVICES, policy=policy, trainers=dict.fromkeys(nodes, train), ledgers=dict(self.ledgers)
        )
        self.seen = Recorder()
        self.grid = SecureGrid(self.inner, config, authority, observer=self.seen)

    def ask(self, kind: str = "train") -> RecordDict:
        record = ArrayRecord({"w": Array(np.zeros(SIZE, np.float32))})
        (reply,) = self.grid.send_and_receive(messages(DEVICES, kind, record))
        return reply.content

    def mean(self) -> Values:
        return numpy_arrays(self.ask())["w"]

    def spent(self, node: int = 1) -> list[str]:
        return [item.round_id for one in self.ledgers[node].read().values() for item in one.spends]


def deviation(event: Skellam, counted: int) -> float:
    """Of one element of the mean of zero changes, in the unit of the weights."""
    schema = Settings(privacy=PRIVACY, feedback=False).schema(DEVICES, {"w": np.zeros(SIZE, "f4")}, bytes(32))
    return float(np.sqrt(counted * event.variance)) * schema.clip / schema.levels * schema.arrays[0].scale / counted


# ---- what comes of it


def test_the_mean_is_that_of_the_clipped_changes_with_the_noise_of_all_who_are_counted() -> None:
    six = Six()
    errors = np.concatenate([six.mean() - expected(*range(1, DEVICES + 1)) for _ in range(PRIVACY.rounds)])
    (event,) = set(six.seen.spent)
    assert isinstance(event, Skellam)
    assert (event.contributors, event.dimension) == (6 - 1 - 2, SIZE)
    assert errors.std() == pytest.approx(deviation(event, DEVICES), rel=0.1)
    assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(errors.size)


def test_with_fewer_counted_the_noise_that_the_guarantee_counts_on_is_there() -> None:
    six = Six()
    six.inner.faults[2, "masked"] = silent
    errors = six.mean() - expected(1, 3, 4, 5, 6)
    (event,) = six.seen.spent
    assert isinstance(event, Skellam)
    assert errors.std() == pytest.approx(deviation(event, 5), rel=0.2)
    assert len(six.inner.nodes) - 1 >= event.contributors


def test_nothing_of_the_devices_own_numbers_comes_out() -> None:
    """Numbers of examples differ by powers of ten; each device counts once, and no metric is told."""
    six = Six()
    assert dict(six.ask()["metrics"]) == {"num-examples": DEVICES}
    assert six.seen.summaries[-1].total_weight == DEVICES


def test_no_device_carries_anything_from_one_round_to_the_next() -> None:
    six = Six()
    six.ask()
    for node in six.inner.nodes.values():
        assert [name for name in node.context.state if name.startswith(LEFT)] == []


def test_of_central_noise_devices_add_none_and_spend_nothing_and_the_mean_has_the_servers() -> None:
    six = Six(CENTRAL)
    errors = six.mean() - expected(*range(1, DEVICES + 1))
    (event,) = six.seen.spent
    assert isinstance(event, CentralGaussian)
    alike = Skellam(event.variance, 1, event.squared_norm, event.dimension)
    assert errors.std() == pytest.approx(deviation(alike, 1) / DEVICES, rel=0.2)
    assert six.spent() == []


def test_of_central_noise_two_sums_have_draws_of_their_own() -> None:
    six = Six(CENTRAL)
    first, second = six.mean() - expected(*range(1, 7)), six.mean() - expected(*range(1, 7))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


# ---- what it costs


def test_every_device_spends_once_a_round_on_what_the_coordinator_says_it_will() -> None:
    six = Six()
    for _ in range(3):
        six.ask()
    for node, ledgers in six.ledgers.items():
        assert len(set(six.spent(node))) == 3
        (ledger,) = ledgers.read().values()
        assert [item.event for item in ledger.spends] == six.seen.spent
        assert ledger.spent == epsilon({six.seen.spent[0]: 3}, PRIVACY.delta) < PRIVACY.epsilon


def test_the_rounds_that_were_planned_are_paid_for_and_not_one_more() -> None:
    six = Six()
    for _ in range(PRIVACY.rounds):
        six.ask()
    with pytest.raises(RoundAborted):
        six.ask()
    assert {str(outcome.fate) for outcome in six.seen.summaries[-1].outcomes.values()} <= {"rejected"}
    assert f"of {PRIVACY.epsilon:g} at delta {PRIVACY.delta:g}" in six.seen.reason(1)
    assert "left" in six.seen.reason(1)
    assert len(six.spent()) == PRIVACY.rounds


def test_the_app_does_not_train_for_a_round_that_cannot_be_paid() -> None:
    six = Six()
    for _ in range(PRIVACY.rounds):
        six.ask()
    before = len(six.trained)
    with pytest.raises(RoundAborted):
        six.ask()
    assert before == DEVICES * PRIVACY.rounds == len(six.trained)


class Full(MemoryLedgers):
    """A disk without room, found out when the spend is to be written."""

    def spend(self, charge: Charge, epochs: Iterable[str]) -> None:
        raise StorageFull("no space left for ledger.jsonl; free some and try again")


def test_of_a_spend_that_cannot_be_written_no_vector_leaves() -> None:
    six = Six(first=Full())
    six.ask()
    assert "no space left" in six.seen.reason(1)
    assert six.seen.fates[1] == "rejected"
    assert (1, "masked") not in [(node, phase) for node, phase, _ in six.inner.sent]


class Growing(MemoryLedgers):
    """A file is removed and another ingested while the app trains."""

    def __init__(self) -> None:
        super().__init__()
        self.names = iter("ab")

    def epochs(self) -> Epochs:
        return frozenset(next(self.names))


def test_a_round_costs_every_file_that_was_there_before_or_after_its_training() -> None:
    growing = Growing()
    Six(first=growing).ask()
    assert {epoch: len(ledger.spends) for epoch, ledger in growing.read().items()} == {"a": 1, "b": 1}


def test_a_round_that_is_asked_for_again_draws_no_second_noise() -> None:
    six = Six()
    first: list[bytes] = []
    again: list[Message] = []

    def twice(message: Message) -> Message:
        reply = six.inner.handle(message)
        first.append(unpack_bytes(reply.content.array_records[VECTOR_RECORD][VECTOR_RECORD], PACKED_TYPE))
        again.append(six.inner.handle(message))
        return reply

    six.inner.faults[3, "masked"] = twice
    six.ask()
    assert len(first) == 1
    assert again[0].has_error()
    assert VECTOR_RECORD not in (again[0].content if again[0].has_content() else {})
    assert len(six.spent(3)) == 1


def test_a_device_that_lost_its_keys_after_it_spent_refuses_the_round_and_keeps_the_spend() -> None:
    six = Six()
    answers: list[Message] = []

    def dies(message: Message) -> Message | None:
        six.inner.handle(message)
        six.inner.restart(3)
        answers.append(six.inner.handle(message))
        return None

    six.inner.faults[3, "masked"] = dies
    six.ask()
    assert answers[0].has_error()
    assert len(six.spent(3)) == 1
    six.inner.faults.clear()
    six.ask()
    assert len(set(six.spent(3))) == 2, "the next round costs anew"


# ---- what devices refuse


def refusals(six: Six, kind: str = "train") -> str:
    with pytest.raises((RoundAborted, Unsupported)):
        six.ask(kind)
    return six.seen.reason(1)


def test_a_device_without_a_ledger_adds_no_noise_and_takes_no_part() -> None:
    assert "keeps no privacy ledger" in refusals(Six(kept=False))


LESS: dict[str, SecureConfig] = {"secret, not private": replace(CONFIG, privacy=None), "central": CENTRAL}


@pytest.mark.parametrize("config", LESS.values(), ids=LESS)
def test_a_device_with_a_budget_answers_only_where_devices_add_the_noise(config: SecureConfig) -> None:
    six = Six(config, own=Budget(20.0, 1e-5))
    assert "devices add noise themselves" in refusals(six)


def test_a_device_with_a_budget_answers_nothing_plain_either() -> None:
    policy = ModPolicy(allow_plain=True, privacy=PrivacyPolicy(Budget(20.0, 1e-5)))
    inner, _ = make_grid(1, policy=policy)
    (reply,) = inner.send_and_receive(messages(1))
    assert reply.has_error()


def test_a_device_keeps_to_its_own_budget_where_the_job_allows_more() -> None:
    six = Six(own=Budget(4.0, 1e-5))
    six.ask()
    assert "of 4 at delta 1e-05" in refusals(six)
    assert len(six.spent()) == 1


def test_a_private_job_cannot_measure_on_devices() -> None:
    six = Six()
    with pytest.raises(Unsupported, match="measures nothing on devices"):
        six.ask("evaluate")
    assert six.inner.sent == []


LIES: dict[str, tuple[Callable[[Settings], Settings], str]] = {
    "a hundredth of the noise": (lambda asked: replace(asked, noise=asked.noise / 100), "data epoch"),
    "no noise": (lambda asked: replace(asked, noise=0.0), "asks for none"),
    "nobody is missing": (
        lambda asked: replace(asked, privacy=asked.privacy and replace(asked.privacy, missing=0.0)),
        "0.1 corrupt",
    ),
}


class Lying(SecureGrid):
    """Devices are asked for other noise than the promise needs; all of them, so their digests agree."""

    lie: Callable[[Settings], Settings]

    def settings(self, category: str) -> Settings:
        asked = super().settings(category)
        lie = self.lie

        class Bent(Settings):
            def with_noise(self, clients: int, dropped: int, arrays: Any) -> Settings:
                return lie(super().with_noise(clients, dropped, arrays))

        return Bent(**vars(asked))


@pytest.mark.parametrize(("lie", "says"), LIES.values(), ids=LIES)
def test_a_coordinator_that_asks_for_less_than_it_promises_gets_nothing(
    lie: Callable[[Settings], Settings], says: str
) -> None:
    six = Six()
    lying = Lying(six.inner, CONFIG, six.grid.verifier, observer=six.seen)
    lying.lie = lie
    six.grid = lying
    assert says in refusals(six)
    assert six.spent() == []
    assert all(phase != "masked" for _, phase, _ in six.inner.sent)


def test_settings_that_one_device_alone_is_told_are_not_what_the_others_agreed_on() -> None:
    six = Six()

    def weaker(message: Message) -> Message:
        fields = dict(message.content.config_records[RECORD])
        message.content.config_records[RECORD]["epsilon"] = float(fields["epsilon"]) + 1  # type: ignore[arg-type]
        return six.inner.handle(message)

    six.inner.faults[2, "masked"] = weaker
    six.ask()
    assert "not those that the others were given" in six.seen.reason(2)
    assert six.spent(2) == []


# ---- configurations


def test_metrics_and_feedback_are_refused_when_the_grid_is_set_up() -> None:
    with pytest.raises(Unsupported, match="nothing is exact"):
        replace(CONFIG, train_metrics={"loss": (0.0, 1.0)})
    with pytest.raises(Unsupported, match="nothing is exact"):
        replace(CONFIG, feedback=True)


def test_integer_arrays_are_refused_before_any_device_hears_of_it() -> None:
    six = Six()
    record = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "steps": Array(np.zeros(1, np.int64))})
    with pytest.raises(Unsupported, match="'steps' is int64"):
        list(six.grid.send_and_receive(messages(DEVICES, "train", record)))
    assert six.inner.sent == []


def test_a_group_too_small_for_its_missing_share_is_refused() -> None:
    inner: AppGrid
    inner, authority = make_grid(3, trainers=dict.fromkeys((1, 2, 3), training))
    config = replace(CONFIG, privacy=replace(PRIVACY, missing=0.9))
    grid = SecureGrid(inner, config, authority)
    with pytest.raises(Unsupported, match="none surely adds noise"):
        list(grid.send_and_receive(messages(3, "train", ArrayRecord({"w": Array(np.zeros(9, np.float32))}))))
    assert inner.sent == []
