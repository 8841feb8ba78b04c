from pathlib import Path

import numpy as np
import pytest

from shared.errors import Malformed
from simulations.answers import Answer, Outage, Outcome, collect, load_answers, outcome, save_answers

OUTAGE = Outage("b", start=10.0, end=12.0)


@pytest.mark.parametrize(
    ("case", "answer", "expected"),
    [
        ("answered", Answer("b", 9, 9, 9.5), Outcome.ANSWERED),
        ("in flight when its device was killed", Answer("b", 9.9, 9.9, 10.1, "UNAVAILABLE"), Outcome.CUT),
        ("sent before the load generator heard of the kill", Answer("b", 10, 10, 10.01, "UNAVAILABLE"), Outcome.CUT),
        ("lost before the kill", Answer("b", 8, 8, 8.5, "UNAVAILABLE"), Outcome.FAILED),
        ("lost after the device came back", Answer("b", 13, 13, 13.1, "UNAVAILABLE"), Outcome.FAILED),
        ("lost on another device", Answer("a", 9.9, 9.9, 10.1, "UNAVAILABLE"), Outcome.FAILED),
        ("too slow, not lost", Answer("b", 9.9, 9.9, 10.1, "DEADLINE_EXCEEDED"), Outcome.FAILED),
        ("answered nonsense", Answer("b", 9.9, 9.9, 10.1, "WRONG_ANSWER"), Outcome.FAILED),
    ],
)
def test_a_request_counts_as_its_end_says(case: str, answer: Answer, expected: Outcome) -> None:
    assert outcome(answer, [OUTAGE]) is expected


@pytest.fixture
def some() -> list[Answer]:
    return [
        Answer("b", 3, 3.0, 3.2, version="2", digest="new", correct=False),
        Answer("a", 1, 1.0, 1.1, version="1", digest="old", correct=True),
        Answer("a", 2, 2.0, 2.3, version="2", digest="new", correct=True),
        Answer("b", 11, 11.0, 11.1, "UNAVAILABLE"),
        Answer("b", 13, 13.0, 13.1, "INTERNAL"),
    ]


def test_answers_are_counted_and_asked_by_device_model_and_time(some: list[Answer]) -> None:
    answers = collect(some, [OUTAGE], held_back=4)
    assert [answers.count(kind) for kind in Outcome] == [3, 1, 1]
    assert answers.count(Outcome.ANSWERED, answers.where(device="a")) == 2
    assert answers.count(Outcome.FAILED, answers.where(device="unheard of")) == 0
    assert answers.accuracy() == pytest.approx(2 / 3)
    assert answers.accuracy(answers.where(device="a", digest="new")) == 1.0
    assert np.isnan(answers.accuracy(answers.where(device="b", digest="old")))
    assert answers.latency(answers.where(device="a")).p50 == pytest.approx(200)
    assert np.isnan(answers.latency(answers.where(device="b", digest="old")).p50)
    assert answers.reasons() == {"INTERNAL": 1}


def test_answers_come_back_from_their_file(tmp_path: Path, some: list[Answer]) -> None:
    answers = collect(some, [OUTAGE], held_back=4)
    save_answers(tmp_path / "answers", answers)
    again = load_answers(tmp_path / "answers")
    assert (again.words, again.held_back, again.outages) == (answers.words, 4, (OUTAGE,))
    assert np.array_equal(again.ended, answers.ended)
    assert np.array_equal(again.version, answers.version)


def test_no_requests_are_answers_too(tmp_path: Path) -> None:
    save_answers(tmp_path / "answers", collect([]))
    assert len(load_answers(tmp_path / "answers")) == 0


def test_a_file_that_holds_no_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers").write_bytes(b"no")
    with pytest.raises(Malformed):
        load_answers(tmp_path / "answers")
