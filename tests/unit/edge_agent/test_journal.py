"""What must survive a SIGKILL."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.journal import InstallRecord, Journal, Proven
from edge_agent.state import InstallEvent, InstallState
from shared.errors import Corrupt, LocalError, NotFound, ProtocolError, StorageFull
from shared.ids import CommandId, Digest, RolloutId
from shared.session import AgentEvent, Gate, Histogram, Install, InstallReport, Sample, Withdraw

DIGEST = Digest("a" * 64)


def install(number: int = 1, release: int = 1) -> InstallRecord:
    order = Install(RolloutId("rol-1"), "digits", release, {}, Gate(accuracy_budget=0.5))
    return InstallRecord(CommandId(f"cmd-{number}"), order, DIGEST, 10)


def report(number: int = 1, certificate: bytes = b"der") -> AgentEvent:
    event = InstallReport(CommandId(f"cmd-{number}"), RolloutId("rol-1"), b'{"x":1}', b"\x00\xff", certificate)
    return AgentEvent(f"evt-{number}", event)


def proven(release: int) -> Proven:
    return Proven("digits", release, DIGEST, f"models/digits/r{release}", DIGEST, "openvino", (1, 4, 4), accuracy=0.5)


def swapped(journal: Journal, number: int, release: int) -> None:
    journal.begin(install(number, release))
    for event in ("FETCH", "SPECIALISE", "LOAD", "JUDGE", "SWAP"):
        journal.advance(CommandId(f"cmd-{number}"), InstallEvent[event])


def as_the_first_version_left_it(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE spool_name; ALTER TABLE outbox DROP COLUMN certificate; PRAGMA user_version=1")


def again(journal: Journal, path: Path) -> Journal:
    journal.close()
    return Journal(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_command_is_remembered_once(path: Path) -> None:
    journal = Journal(path)
    assert journal.begin(install())
    assert not journal.begin(install())
    journal = again(journal, path)
    assert journal.seen(CommandId("cmd-1"))
    assert not journal.seen(CommandId("cmd-2"))
    assert journal.installs() == [install()]


def test_what_was_under_way_begins_again(path: Path) -> None:
    journal = Journal(path)
    swapped(journal, 1, 1)
    journal.begin(InstallRecord(CommandId("cmd-2"), Withdraw(RolloutId("rol-1"), "digits", 1, {}), DIGEST, 10))
    journal.begin(install(3))
    journal.end(CommandId("cmd-3"), InstallEvent.REFUSE, "no", report(3))
    journal = again(journal, path)
    assert [(one.command_id, one.state) for one in journal.restart()] == [
        ("cmd-1", InstallState.VERIFIED),
        ("cmd-2", InstallState.VERIFIED),
    ]


def test_a_proven_release_and_its_receipt_appear_together(path: Path) -> None:
    journal = Journal(path)
    swapped(journal, 1, 1)
    journal.prove(CommandId("cmd-1"), proven(1), report(1))
    journal = again(journal, path)
    assert journal.proven("digits") == [proven(1)]
    assert journal.models() == ["digits"]
    assert journal.outbox() == [report(1)]
    assert journal.acknowledge("evt-1") == replace(install(), state=InstallState.REPORTED)
    assert journal.acknowledge("evt-1") is None
    assert journal.outbox() == []


def test_a_release_that_was_not_swapped_cannot_be_proven_and_nothing_changes(path: Path) -> None:
    journal = Journal(path)
    journal.begin(install())
    with pytest.raises(ProtocolError):
        journal.prove(CommandId("cmd-1"), proven(1), report(1))
    assert (journal.proven("digits"), journal.outbox()) == ([], [])
    with pytest.raises(NotFound):
        journal.advance(CommandId("cmd-9"), InstallEvent.FETCH)


def test_an_order_that_is_declined_never_looks_like_one_that_was_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, or a crash, before the receipt is written: then there is no order either, and it may come again."""
    journal = Journal(path)

    def full(*_: object) -> None:
        raise StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_post", staticmethod(full))
        with pytest.raises(StorageFull):
            journal.decline(install(), InstallEvent.REFUSE, "unsigned", report())
    journal = again(journal, path)
    assert journal.restart() == []
    assert not journal.seen(CommandId("cmd-1"))
    for _ in range(2):
        journal.decline(install(), InstallEvent.REFUSE, "unsigned", report())
    assert journal.installs() == [replace(install(), state=InstallState.REFUSED, reason="unsigned")]
    assert journal.outbox() == [report()]


def test_receipts_from_before_certificates_were_kept_are_sent_without_one(path: Path) -> None:
    journal = Journal(path)
    journal.decline(install(), InstallEvent.REFUSE, "no", report(certificate=b""))
    journal.close()
    as_the_first_version_left_it(path)
    journal = Journal(path)
    assert journal.outbox() == [report(certificate=b"")]
    journal.decline(install(2), InstallEvent.REFUSE, "no", report(2))
    assert journal.outbox() == [report(certificate=b""), report(2)]


def test_a_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(LocalError, match="newer version"):
        Journal(path)


def test_nobody_else_reads_the_journal(path: Path) -> None:
    journal = Journal(path)
    journal.spool(1.0, [Sample("loss", 0.5)])
    assert {file.stat().st_mode & 0o077 for file in path.parent.glob(f"{path.name}*")} == {0}


def test_two_releases_are_kept_and_one_can_be_stepped_back_from(path: Path) -> None:
    journal = Journal(path)
    for number in (1, 2, 3):
        swapped(journal, number, number)
        journal.prove(CommandId(f"cmd-{number}"), proven(number), report(number))
    assert [one.release for one in journal.proven("digits")] == [3, 2]
    assert journal.step_back("digits", 3) == proven(2)
    journal = again(journal, path)
    assert [one.release for one in journal.proven("digits")] == [2]
    assert journal.step_back("digits", 2) is None
    assert journal.models() == []


def test_batches_are_numbered_for_life(path: Path) -> None:
    journal = Journal(path)
    samples = (Sample("loss", 0.5, {"model": "m"}), Sample("latency_ms", Histogram((1.0, 2.0), (1, 2, 3), 4.5)))
    assert [journal.spool(float(at), samples) for at in (1, 2, 3)] == [1, 2, 3]
    assert journal.spooled(2)[0].samples == samples
    journal.forget(3)
    journal = again(journal, path)
    assert journal.spool_size() == 0
    assert journal.spool(4.0, samples) == 4


def test_a_journal_that_replaces_a_lost_one_is_another_spool(path: Path) -> None:
    """Its numbers begin at 1 again: under the old name the coordinator would take them for what it has."""
    journal = Journal(path)
    journal.spool(1.0, [Sample("loss", 0.5)])
    (before,) = journal.spooled(9)
    assert again(journal, path).spooled(9) == [before]
    path.rename(path.with_name("moved-away.db"))
    fresh = Journal(path)
    fresh.spool(2.0, [Sample("loss", 0.5)])
    (after,) = fresh.spooled(9)
    assert after.sequence == before.sequence == 1
    assert after.spool not in ("", before.spool)


def test_a_journal_from_before_spools_had_names_goes_on_without_one(path: Path) -> None:
    journal = Journal(path)
    journal.spool(1.0, [Sample("loss", 0.5)])
    journal.close()
    as_the_first_version_left_it(path)
    journal = Journal(path)
    journal.spool(2.0, [Sample("loss", 0.5)])
    assert [(one.sequence, one.spool) for one in journal.spooled(9)] == [(1, ""), (2, "")]


def test_a_damaged_journal_says_what_to_do(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(Corrupt, match="move it away"):
        Journal(path)


def test_a_torn_page_is_noticed_at_the_start(path: Path) -> None:
    journal = Journal(path)
    for at in range(300):
        journal.spool(float(at), [Sample("loss", 0.5)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[8192:12000] = b"\xff" * (12000 - 8192)
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        Journal(path)
