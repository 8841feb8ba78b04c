"""What came of the live requests: one row each, in columns, and the questions that a report asks of them.

A process that is killed on purpose takes its open connections with it. Such a request is neither answered nor failed
by the service: it is counted apart, as cut, and shown. Only requests whose life overlaps the outage, and which ended
because the connection was lost, count as cut; every other bad end is a failure.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.errors import Malformed
from shared.files import write_atomic

CONNECTION_LOST = "UNAVAILABLE"
_NO_PREDICTION = 255


class Outcome(IntEnum):
    ANSWERED = 0
    FAILED = 1
    CUT = 2


@dataclass(frozen=True)
class Outage:
    """A device killed on purpose: gone from `start` until it said that it is ready again (`end`)."""

    device: str
    start: float
    end: float


@dataclass(frozen=True)
class Answer:
    """One request. Times are seconds since the epoch; `reason` is empty when answered, `correct` None without a
    prediction.
    """

    device: str
    due: float
    sent: float
    ended: float
    reason: str = ""
    version: str = ""
    digest: str = ""
    correct: bool | None = None


def outcome(answer: Answer, outages: Sequence[Outage]) -> Outcome:
    """The rule at the top of this file."""
    if not answer.reason:
        return Outcome.ANSWERED
    cut = answer.reason == CONNECTION_LOST and any(
        outage.device == answer.device and answer.sent <= outage.end and answer.ended >= outage.start
        for outage in outages
    )
    return Outcome.CUT if cut else Outcome.FAILED


@dataclass(frozen=True)
class Latency:
    """In ms; NaN when no request was answered."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Answers:
    """All requests of a run, ordered by `due`. Columns of words hold places in `words`."""

    words: tuple[str, ...]
    device: npt.NDArray[np.uint16]
    due: npt.NDArray[np.float64]
    sent: npt.NDArray[np.float64]
    ended: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.uint8]
    reason: npt.NDArray[np.uint16]
    version: npt.NDArray[np.uint16]
    digest: npt.NDArray[np.uint16]
    correct: npt.NDArray[np.uint8]
    held_back: int = 0  # due while the device was known to be gone, and so not sent
    outages: tuple[Outage, ...] = ()

    def __len__(self) -> int:
        return len(self.due)

    def _is(self, column: npt.NDArray[np.uint16], word: str) -> npt.NDArray[np.bool_]:
        place = self.words.index(word) if word in self.words else -1
        return np.asarray(column.astype(np.int64) == place)

    def where(self, *, device: str, digest: str | None = None) -> npt.NDArray[np.bool_]:
        """The rows of one device, and of one model if given."""
        rows = self._is(self.device, device)
        return rows if digest is None else rows & self._is(self.digest, digest)

    def count(self, kind: Outcome, rows: npt.NDArray[np.bool_] | None = None) -> int:
        chosen = self.outcome == kind
        return int(np.count_nonzero(chosen if rows is None else chosen & rows))

    def latencies_ms(self, rows: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float64]:
        """From sending to the answer. Sending never waits for an answer, so a slow service hides nothing."""
        chosen = self.outcome == Outcome.ANSWERED
        chosen = chosen if rows is None else chosen & rows
        return np.asarray((self.ended[chosen] - self.sent[chosen]) * 1e3)

    def latency(self, rows: npt.NDArray[np.bool_] | None = None) -> Latency:
        times = self.latencies_ms(rows)
        if not len(times):
            return Latency(float("nan"), float("nan"))
        p50, p99 = np.percentile(times, (50, 99))
        return Latency(float(p50), float(p99))

    def accuracy(self, rows: npt.NDArray[np.bool_] | None = None) -> float:
        """The share of answers that were right; NaN when there was none."""
        chosen = self.correct != _NO_PREDICTION
        chosen = chosen if rows is None else chosen & rows
        return float(self.correct[chosen].mean()) if chosen.any() else float("nan")

    def reasons(self) -> dict[str, int]:
        """How often each reason for a failure was seen."""
        places = self.reason[self.outcome == Outcome.FAILED]
        return dict(Counter(self.words[place] for place in places))


_COLUMNS = ("device", "due", "sent", "ended", "outcome", "reason", "version", "digest", "correct")


def collect(answers: Iterable[Answer], outages: Sequence[Outage] = (), *, held_back: int = 0) -> Answers:
    """Judge each request and lay them out in columns."""
    words: dict[str, int] = {}

    def place(word: str) -> int:
        return words.setdefault(word, len(words))

    rows = [
        (
            place(answer.device),
            answer.due,
            answer.sent,
            answer.ended,
            outcome(answer, outages),
            place(answer.reason),
            place(answer.version),
            place(answer.digest),
            _NO_PREDICTION if answer.correct is None else int(answer.correct),
        )
        for answer in sorted(answers, key=lambda one: one.due)
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    kinds = (np.uint16, np.float64, np.float64, np.float64, np.uint8, np.uint16, np.uint16, np.uint16, np.uint8)
    arrays: dict[str, Any] = {
        name: np.array(column, kind) for name, column, kind in zip(_COLUMNS, columns, kinds, strict=True)
    }
    return Answers(tuple(words), **arrays, held_back=held_back, outages=tuple(outages))


def save_answers(path: Path, answers: Answers) -> None:
    """One safetensors file, whole or absent."""
    about = {
        "words": answers.words,
        "held_back": answers.held_back,
        "outages": [asdict(one) for one in answers.outages],
    }
    tensors = {name: getattr(answers, name) for name in _COLUMNS}
    write_atomic(path, save(tensors, metadata={"answers": json.dumps(about)}))


def load_answers(path: Path) -> Answers:
    """Raises `Malformed` for a file that `save_answers` did not write."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["answers"])
            arrays = {name: file.get_tensor(name) for name in _COLUMNS}
        outages = tuple(Outage(**one) for one in about["outages"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"{path} holds no answers", detail=str(error)[:120]) from error
    return Answers(tuple(about["words"]), **arrays, held_back=about["held_back"], outages=outages)
