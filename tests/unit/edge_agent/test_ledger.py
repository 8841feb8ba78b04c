"""What a round costs is on disk before noise is drawn, once, for every ingested file; a used-up file keeps the device out."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.ledger import WHOLE_DEVICE, FileLedgers, Ledgers, MemoryLedgers
from edge_agent.storage import DataStore
from shared.errors import Conflict, Corrupt
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.events import Skellam
from shared.privacy.ledger import Charge

EVENT = Skellam(variance=400.0, contributors=50, squared_norm=900, dimension=1000)
ONE = Charge("run 7", "round-1", EVENT, Budget(4.0, 1e-6))
TWO = replace(ONE, round_id="round-2")
A, B = frozenset({"a"}), frozenset({"b"})


def ledgers(folder: Path, own: Budget | None = None) -> FileLedgers:
    return FileLedgers(folder / "privacy" / "ledger.jsonl", frozenset, own)


def rounds(kept: FileLedgers | MemoryLedgers, epoch: str) -> list[tuple[str, str]]:
    return [(item.job, item.round_id) for item in kept.read()[epoch].spends] if epoch in kept.read() else []


@pytest.fixture(params=["file", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> FileLedgers | MemoryLedgers:
    return ledgers(tmp_path) if request.param == "file" else MemoryLedgers()


# ---- both kinds


def test_a_round_is_recorded_for_every_file_that_it_could_have_seen(kept: FileLedgers | MemoryLedgers) -> None:
    kept.spend(ONE, A | B)
    kept.spend(TWO, B)
    assert rounds(kept, "a") == [("run 7", "round-1")]
    assert rounds(kept, "b") == [("run 7", "round-1"), ("run 7", "round-2")]
    assert kept.read()["b"].spent == epsilon({EVENT: 2}, 1e-6)


def test_a_round_is_never_paid_for_twice_whatever_else_was_ingested_since(kept: FileLedgers | MemoryLedgers) -> None:
    kept.spend(ONE, A)
    for asked in (kept.check, kept.spend):
        for epochs in (A, A | B):
            with pytest.raises(Conflict, match="never drawn twice"):
                asked(ONE, epochs)
    assert rounds(kept, "a") == [("run 7", "round-1")]
    assert rounds(kept, "b") == []


def test_to_check_is_to_record_nothing(kept: FileLedgers | MemoryLedgers) -> None:
    kept.check(ONE, A)
    assert rounds(kept, "a") == []


def spend_all(kept: Ledgers, charge: Charge) -> int:
    for number in range(1000):
        try:
            kept.spend(replace(charge, round_id=f"{charge.job} {number}"), A)
        except Conflict:
            return number
    raise AssertionError("there is no end")


def test_what_would_overspend_is_refused_with_what_is_left(kept: FileLedgers | MemoryLedgers) -> None:
    done = spend_all(kept, ONE)
    assert epsilon({EVENT: done}, 1e-6) <= 4.0 < epsilon({EVENT: done + 1}, 1e-6)
    with pytest.raises(Conflict, match=r"of 4 at delta 1e-06, 3\.\d+ is spent and 0\.\d+ left"):
        kept.check(replace(ONE, round_id="next"), A)
    kept.spend(replace(ONE, round_id="next"), B)  # a new file begins anew …
    with pytest.raises(Conflict):
        kept.spend(replace(ONE, round_id="after"), A | B)  # … but not where an old one is trained on too
    assert rounds(kept, "b") == [("run 7", "next")]


def test_who_is_refused_is_told_how_to_go_on(tmp_path: Path) -> None:
    kept = ledgers(tmp_path)
    spend_all(kept, ONE)
    for asked in (kept.check, kept.spend):
        with pytest.raises(Conflict, match=r"left: `edge-agent data remove` .* new data brings new budget$"):
            asked(replace(ONE, round_id="next"), A)


def test_each_job_has_a_budget_of_its_own(kept: FileLedgers | MemoryLedgers) -> None:
    assert spend_all(kept, ONE) == spend_all(kept, replace(ONE, job="run 8")) > 5


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_jobs_together_keep_to_the_devices_own_budget(in_memory: bool, tmp_path: Path) -> None:
    own = Budget(5.0, 1e-7)
    kept = MemoryLedgers(own) if in_memory else ledgers(tmp_path, own)
    first, second = spend_all(kept, ONE), spend_all(kept, replace(ONE, job="run 8"))
    assert first > second
    assert epsilon({EVENT: first + second}, 1e-7) <= 5.0 < epsilon({EVENT: first + second + 1}, 1e-7)


# ---- the file

SPEND_AND_HANG = """
import sys
from pathlib import Path
from edge_agent.ledger import FileLedgers
from shared.privacy.accountant import Budget
from shared.privacy.events import Skellam
from shared.privacy.ledger import Charge

charge = Charge("run 7", "round-1", Skellam(400.0, 50, 900, 1000), Budget(4.0, 1e-6))
FileLedgers(Path(sys.argv[1]) / "privacy" / "ledger.jsonl", frozenset).spend(charge, frozenset({"a"}))
print("spent", flush=True)
sys.stdin.read()  # the answer that never leaves
"""


def test_a_device_killed_between_ledger_and_answer_has_spent_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPEND_AND_HANG, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spent\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    kept = ledgers(tmp_path)
    assert rounds(kept, "a") == [("run 7", "round-1")]
    with pytest.raises(Conflict, match="never drawn twice"):
        kept.spend(ONE, A)
    assert rounds(kept, "a") == [("run 7", "round-1")], "asked again, it is neither drawn nor counted again"
    kept.spend(TWO, A)
    assert kept.read()["a"].spent == epsilon({EVENT: 2}, 1e-6)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ledgers(tmp_path)
    kept.spend(ONE, A)
    before = (tmp_path / "privacy" / "ledger.jsonl").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="no space left"):
        kept.spend(TWO, A)
    assert [path.name for path in (tmp_path / "privacy").iterdir()] == ["ledger.jsonl"]
    assert (tmp_path / "privacy" / "ledger.jsonl").read_bytes() == before


def test_the_file_is_for_the_agents_user_alone(tmp_path: Path) -> None:
    ledgers(tmp_path).spend(ONE, A)
    assert (tmp_path / "privacy" / "ledger.jsonl").stat().st_mode & 0o777 == 0o600


def test_two_processes_of_a_device_lose_no_spend(tmp_path: Path) -> None:
    """Each thread opens files of its own, as a process would."""

    def spend(name: int) -> None:
        ledgers(tmp_path).spend(replace(ONE, round_id=f"r{name}"), A)

    threads = [threading.Thread(target=spend, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for _, name in rounds(ledgers(tmp_path), "a")) == [f"r{name}" for name in range(6)]


DAMAGE = {
    "not JSON": lambda line: b"spent nothing\n",
    "cut short": lambda line: line[: len(line) // 2],
    "an epoch twice": lambda line: line * 2,
    "another mechanism": lambda line: line.replace(b"skellam", b"laplace"),
    "nothing spent, of nothing": lambda line: json.dumps({"epoch": "a"}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_ledger_allows_nothing_and_is_left_as_it_is(damage: object, tmp_path: Path) -> None:
    file = tmp_path / "privacy" / "ledger.jsonl"
    ledgers(tmp_path).spend(ONE, A)
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    left = file.read_bytes()
    for epochs in (A, B):
        with pytest.raises(Corrupt, match="nothing more may be spent"):
            ledgers(tmp_path).spend(TWO, epochs)
    assert file.read_bytes() == left


# ---- data epochs


def store(folder: Path, *seeds: int) -> DataStore:
    data = DataStore(folder / "data")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data.ingest(rng.standard_normal((4, 2)).astype(np.float32), np.zeros(4, np.int64), source=f"{seed}.npz")
    return data


def test_a_file_is_an_epoch_which_it_stays_when_it_is_removed_and_ingested_again(tmp_path: Path) -> None:
    data = store(tmp_path, 1)
    first = data.epochs()
    assert {one.id.endswith(epoch) for one in data.chunks() for epoch in first} == {True}
    both = store(tmp_path, 2).epochs()
    assert first < both
    assert len(both) == 2
    data.remove("1.npz")
    assert data.epochs() == both - first
    assert store(tmp_path, 1).epochs() == both, "in another place, with the digest that it had"


def test_a_device_whose_app_reads_elsewhere_has_one_epoch(tmp_path: Path) -> None:
    assert FileLedgers(tmp_path / "x", store(tmp_path).epochs).epochs() == {WHOLE_DEVICE}
    assert FileLedgers(tmp_path / "x", store(tmp_path, 1).epochs).epochs() == store(tmp_path).epochs()
