"""Devices that have the last model are sent what changed since: who, what it costs, and that nobody trains from anything else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.held_model import HELD
from shared.broadcast import DELTA_RECORD
from shared.flower import REFUSED, new_message, reply_with, to_numpy
from shared.secagg.messages import RECORD
from tests.protocol.secagg.appgrid import RUN_ID, AppGrid, Recorder, make_grid, phase_of, raising, silent

NODES = (1, 2, 3, 4)
SIZE = 4000
CONFIG = SecureConfig(bits=16, max_weight=100, group_rounds=16, clip_range=4.0, delta_broadcast=True)
CHANGE = np.random.default_rng(3).standard_normal((5, SIZE)).astype(np.float32)
Values = np.ndarray[Any, Any]


class Fleet:
    """Four devices that note what they are given, and a server that goes on from each mean."""

    def __init__(self, config: SecureConfig = CONFIG, trainers: Mapping[int, Any] | None = None) -> None:
        self.given: dict[int, list[Values]] = {node: [] for node in NODES}
        self.forms: list[dict[int, str]] = []
        self.inner, authority = make_grid(4, trainers={**dict.fromkeys(NODES, self.train), **(trainers or {})})
        self.seen = Recorder()
        self.grid = SecureGrid(self.inner, config, authority, observer=self.seen)
        self.model: dict[str, Values] = {"w": np.zeros(SIZE, np.float32), "steps": np.zeros(1, np.int64)}
        _note_forms(self.inner, self.forms)

    def train(self, message: Message, context: Context) -> Message:
        arrays = {name: to_numpy(array) for name, array in message.content.array_records["arrays"].items()}
        assert set(message.content) == {"arrays", "config"}, "the app sees what it always sees"
        self.given[context.node_id].append(arrays["w"])
        new = {"w": arrays["w"] + 0.01 * CHANGE[context.node_id], "steps": arrays["steps"] + 1}
        records = ArrayRecord({name: Array(value) for name, value in new.items()})
        return reply_with(message, RecordDict({"arrays": records, "metrics": MetricRecord({"num-examples": 1})}))

    def ask(self, kind: str = "train") -> None:
        self.forms.append({})
        arrays = ArrayRecord({name: Array(value) for name, value in self.model.items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"step": 1})})
        batch = [new_message(content, run_id=RUN_ID, node_id=node, message_type=kind) for node in NODES]
        (reply,) = self.grid.send_and_receive(batch)
        if kind == "train":
            (record,) = reply.content.array_records.values()
            self.model = {name: to_numpy(array) for name, array in record.items()}

    def last(self) -> Values:
        """What the devices were given last: the same everywhere."""
        first, *others = (given[-1] for given in self.given.values() if given)
        assert all((first == other).all() for other in others)
        return first


def _note_forms(inner: AppGrid, forms: list[dict[int, str]]) -> None:
    deliver = inner._deliver

    def noting(message: Message) -> Message | None:
        if phase_of(message) == "masked":
            forms[-1][message.metadata.dst_node_id] = str(message.content[RECORD]["model"])
        return deliver(message)

    inner._deliver = noting  # type: ignore[method-assign]


def everybody(form: str) -> dict[int, str]:
    return dict.fromkeys(NODES, form)


def test_the_first_exchange_sends_the_model_and_later_ones_what_changed() -> None:
    fleet = Fleet()
    errors = []
    for _ in range(5):
        before = fleet.model["w"]
        fleet.ask()
        errors.append(np.linalg.norm(fleet.last() - before))
    assert fleet.forms == [everybody("whole"), *[everybody("changed")] * 4]
    move = np.linalg.norm(0.01 * CHANGE[list(NODES)].mean(axis=0))
    assert errors[0] == 0.0
    assert 0 < max(errors) < 0.35 * move, "off by a part of one move, and never more"
    assert fleet.model["steps"] == [5]


def test_the_server_goes_on_from_its_own_model_so_nothing_is_lost() -> None:
    """What a delta lacked is not taken from the mean."""
    fleet = Fleet()
    for _ in range(6):
        fleet.ask()
    plain = 6 * 0.01 * CHANGE[list(NODES)].mean(axis=0)
    assert np.linalg.norm(fleet.model["w"] - plain) < 0.002 * np.linalg.norm(plain)


def test_a_change_takes_a_tenth_of_the_bytes() -> None:
    fleet = Fleet()
    fleet.ask()
    before = fleet.inner.bytes_down
    fleet.ask()
    assert fleet.inner.bytes_down - before < 4 * (0.12 * 4 * SIZE + 5000)


def test_measuring_the_model_and_then_training_it_sends_it_once() -> None:
    fleet = Fleet()
    fleet.ask()
    fleet.ask("evaluate")
    fleet.ask()
    assert fleet.forms == [everybody("whole"), everybody("changed"), everybody("held")]


def test_who_missed_an_exchange_is_given_the_whole_model() -> None:
    """Where its app failed; where it was gone, all make keys anew, and all are given it."""
    failing = [True]

    def once(message: Message, context: Context) -> Message:
        return raising(message, context) if len(fleet.forms) == 2 and failing else fleet.train(message, context)

    fleet = Fleet(trainers={3: once})
    for _ in range(4):
        fleet.ask()
    assert fleet.forms == [
        everybody("whole"),
        everybody("changed"),
        {**everybody("changed"), 3: "whole"},
        everybody("changed"),
    ]
    fleet.last()


def test_a_device_that_is_gone_costs_the_others_the_whole_model_once() -> None:
    fleet = Fleet(replace(CONFIG, rates=replace(CONFIG.rates, dropout=0.25)))
    fleet.ask()
    fleet.inner.faults[2, "masked"] = silent
    fleet.ask()
    fleet.inner.faults.clear()
    fleet.ask()
    assert fleet.forms[2] == everybody("whole")
    fleet.last()


def test_another_network_is_sent_whole() -> None:
    fleet = Fleet()
    fleet.ask()
    fleet.model = {"w": np.ones(SIZE, np.float32), "steps": np.zeros(1, np.int64), "b": np.zeros(2, np.float32)}
    fleet.forms.append({})
    arrays = ArrayRecord({name: Array(value) for name, value in fleet.model.items()})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"step": 1})})
    batch = [new_message(content, run_id=RUN_ID, node_id=node, message_type="evaluate") for node in NODES]
    fleet.grid.send_and_receive(batch)
    assert fleet.forms[-1] == everybody("whole")


def test_a_device_holds_one_model_and_a_new_group_is_given_its_own() -> None:
    fleet = Fleet(replace(CONFIG, group_rounds=2))
    held = []
    for _ in range(5):
        fleet.ask()
        held.append([name for name in fleet.inner.nodes[1].context.state if name.startswith(HELD)])
    assert [len(names) for names in held] == [1] * 5
    assert len({names[0] for names in held}) == 3
    assert fleet.forms == [everybody(form) for form in ("whole", "changed", "whole", "changed", "whole")]


def _said(message: Message) -> Any:
    return message.content[RECORD]


def _other_delta(message: Message) -> None:
    _said(message)["model_steps"] = [2 * step for step in _said(message)["model_steps"]]


def _no_delta(message: Message) -> None:
    del message.content[DELTA_RECORD]


def _held_instead(message: Message) -> None:
    _said(message)["model"] = "held"
    del message.content[DELTA_RECORD]


def _no_such_form(message: Message) -> None:
    _said(message)["model"] = "half"


def _whole_without(message: Message) -> None:
    _said(message)["model"] = "whole"


LIES = {
    "another change": (_other_delta, "another model"),
    "no change": (_no_delta, "no delta"),
    "nothing new, though there is": (_held_instead, "another model"),
    "no known form": (_no_such_form, "no delta"),
    "a whole that is none": (_whole_without, "not where"),
}


@pytest.mark.parametrize(("lie", "reason"), LIES.values(), ids=LIES)
def test_a_device_that_is_told_of_another_model_trains_nothing_and_says_so(lie: Any, reason: str) -> None:
    """Its masks are bound to the model: a server that moves one device's elsewhere, to tell its change apart, gets no sum."""
    fleet = Fleet()
    fleet.ask()
    trained = len(fleet.given[2])

    def lied_to(message: Message) -> Message:
        lie(message)
        return fleet.inner.handle(message)

    fleet.inner.faults[2, "masked"] = lied_to
    fleet.ask()
    outcome = fleet.seen.summaries[-1].outcomes[2]
    assert outcome.code == REFUSED
    assert reason in outcome.reason
    assert len(fleet.given[2]) == trained


def test_off_it_changes_no_message() -> None:
    fleet = Fleet(replace(CONFIG, delta_broadcast=False))
    fleet.forms.append({})
    fleet.inner._deliver = AppGrid._deliver.__get__(fleet.inner)  # type: ignore[method-assign]
    records: list[RecordDict] = []

    def noting(message: Message) -> Message:
        records.append(message.content)
        return fleet.inner.handle(message)

    fleet.inner.faults[1, "masked"] = noting
    fleet.ask()
    fleet.ask()
    assert [("model" in record[RECORD], "arrays" in record) for record in records] == [(False, True)] * 2
    assert not any(name.startswith(HELD) for name in fleet.inner.nodes[1].context.state)
