"""What must survive SIGKILL, in one SQLite file: installs, proven releases, unacknowledged receipts, the metric spool.

Every method is one transaction, on disk when it returns (WAL, synchronous=FULL): written before its effect is visible. Safe to
call from any thread.
"""

import base64
import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.state import INSTALL, OPEN, InstallEvent, InstallState, advance
from shared.errors import Corrupt, LocalError, NotFound, StorageFull
from shared.ids import CommandId, Digest, RolloutId
from shared.session import AgentEvent, Gate, Install, InstallReport, MetricBatch, Sample, Withdraw

KEPT_COMMANDS = 10_000
_SCHEMA = """
CREATE TABLE installs (
    command_id TEXT PRIMARY KEY, place INTEGER NOT NULL, kind TEXT NOT NULL, rollout_id TEXT NOT NULL, model TEXT NOT NULL,
    release INTEGER NOT NULL, bundle_digest TEXT NOT NULL, bundle_length INTEGER NOT NULL, gate TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL);
CREATE INDEX installs_by_place ON installs (place);
CREATE TABLE proven (model TEXT NOT NULL, place INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (model, place));
CREATE TABLE outbox (place INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT UNIQUE NOT NULL, command_id TEXT NOT NULL,
    rollout_id TEXT NOT NULL, receipt TEXT NOT NULL, signature TEXT NOT NULL);
CREATE TABLE spool (sequence INTEGER PRIMARY KEY AUTOINCREMENT, created_at REAL NOT NULL, samples TEXT NOT NULL);
CREATE TABLE spool_name (name TEXT NOT NULL);
INSERT INTO spool_name VALUES (lower(hex(randomblob(8))));
"""
# A journal from before spools had names goes on as the spool without one: its numbers are known by that.
_UPGRADE_TO_2 = """
CREATE TABLE IF NOT EXISTS spool_name (name TEXT NOT NULL);
INSERT INTO spool_name SELECT '' WHERE NOT EXISTS (SELECT 1 FROM spool_name);
ALTER TABLE outbox ADD COLUMN certificate TEXT NOT NULL DEFAULT '';
"""
_UPGRADES = (_SCHEMA, _UPGRADE_TO_2)  # the n-th leads to version n


@dataclass(frozen=True)
class InstallRecord:
    """An order about a release, verified: `bundle_digest` and `bundle_length` are of the signed manifest."""

    command_id: CommandId
    order: Install | Withdraw  # without its metadata, which was verified and is trusted since
    bundle_digest: Digest
    bundle_length: int
    state: InstallState = InstallState.VERIFIED
    reason: str = ""


@dataclass(frozen=True)
class Proven:
    """A release that this device has proven to serve. `folder` is relative to the home; accuracies are shares."""

    model: str
    release: int
    bundle_digest: Digest
    folder: str
    variant_digest: Digest
    runtime: str
    shape: tuple[int, ...]  # of one example
    accuracy: float | None = None
    loss: float | None = None
    latency_ms: float | None = None


class Journal:
    """Raises `Corrupt` for a damaged file, `StorageFull` when the disk is full; nothing is then changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):  # SQLite says it better
            path.touch(mode=0o600)  # what it adds beside the file takes this mode too
        with self._translated():
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != ("ok",):
                raise sqlite3.DatabaseError(str(found))
            self._prepare()

    def _prepare(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > len(_UPGRADES):
            raise LocalError(f"{self._path} was written by a newer version of edge-agent (schema {found})")
        for version, script in enumerate(_UPGRADES[found:], found + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version={version}; COMMIT;")
        (self._spool,) = self._db.execute("SELECT name FROM spool_name").fetchone()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ---- installs

    def begin(self, record: InstallRecord) -> bool:
        """Remember an order. False, and no change, when this command was seen before."""
        with self._transaction() as db:
            return self._begin(db, record)

    def decline(self, record: InstallRecord, event: InstallEvent, reason: str, report: AgentEvent) -> None:
        """An order that ends as it begins: at no moment does it look like one that was taken. No change when this command was seen
        before."""
        with self._transaction() as db:
            if self._begin(db, record):
                self._advance(db, record.command_id, event, reason)
                self._post(db, report)

    def seen(self, command_id: CommandId) -> bool:
        return bool(self._read("SELECT 1 FROM installs WHERE command_id = ?", command_id))

    def advance(self, command_id: CommandId, event: InstallEvent, reason: str = "") -> InstallState:
        """Raises `ProtocolError` for an event that the record's state does not allow, `NotFound`."""
        with self._transaction() as db:
            return self._advance(db, command_id, event, reason)

    def restart(self) -> list[InstallRecord]:
        """At start: what was under way begins again. Oldest first."""
        marks = ",".join("?" * len(OPEN))
        with self._transaction() as db:
            db.execute(f"UPDATE installs SET state = ? WHERE state IN ({marks})", (InstallState.VERIFIED, *OPEN))  # noqa: S608
        return self.installs(InstallState.VERIFIED)

    def installs(self, state: InstallState | None = None) -> list[InstallRecord]:
        """Oldest first."""
        columns = "command_id, kind, rollout_id, model, release, bundle_digest, bundle_length, gate, state, reason"
        wanted = "" if state is None else "WHERE state = ?"
        rows = self._read(
            f"SELECT {columns} FROM installs {wanted} ORDER BY place",  # noqa: S608
            *([state] if state else []),
        )
        return [_record(row) for row in rows]

    # ---- outcomes

    def prove(self, command_id: CommandId, proven: Proven, report: AgentEvent) -> None:
        """An install's success: its release serves from now on, the former one is kept, the receipt waits to be acknowledged."""
        with self._transaction() as db:
            self._advance(db, command_id, InstallEvent.PROVE, "")
            before = [one for one in self._proven(db, proven.model) if one.release != proven.release]
            self._write_proven(db, proven.model, [proven, *before][:2])
            self._post(db, report)

    def end(self, command_id: CommandId, event: InstallEvent, reason: str, report: AgentEvent) -> None:
        """Any other end of an order, with its receipt."""
        with self._transaction() as db:
            self._advance(db, command_id, event, reason)
            self._post(db, report)

    def step_back(self, model: str, release: int) -> Proven | None:
        """Forget a proven release, before an earlier one serves in its place. Returns what serves then, if anything."""
        with self._transaction() as db:
            left = [one for one in self._proven(db, model) if one.release != release]
            self._write_proven(db, model, left)
            return left[0] if left else None

    def proven(self, model: str) -> list[Proven]:
        """The release to serve first, then the one before it."""
        with self._lock, self._translated():
            return self._proven(self._db, model)

    def models(self) -> list[str]:
        return [model for (model,) in self._read("SELECT DISTINCT model FROM proven ORDER BY model")]

    # ---- durable events

    def outbox(self) -> list[AgentEvent]:
        """Unacknowledged, oldest first."""
        columns = "event_id, command_id, rollout_id, receipt, signature, certificate"
        rows = self._read(f"SELECT {columns} FROM outbox ORDER BY place")  # noqa: S608
        return [
            AgentEvent(
                event_id,
                InstallReport(
                    CommandId(command_id),
                    RolloutId(rollout_id),
                    base64.b64decode(receipt),
                    base64.b64decode(signature),
                    base64.b64decode(certificate),
                ),
            )
            for event_id, command_id, rollout_id, receipt, signature, certificate in rows
        ]

    def acknowledge(self, event_id: str) -> InstallRecord | None:
        """The coordinator has it. The order that it was about, or None for an unknown event."""
        with self._transaction() as db:
            row = db.execute("SELECT command_id FROM outbox WHERE event_id = ?", (event_id,)).fetchone()
            if row is None:
                return None
            self._advance(db, CommandId(row[0]), InstallEvent.ACKNOWLEDGE, "")
            db.execute("DELETE FROM outbox WHERE event_id = ?", (event_id,))
        return next((record for record in self.installs() if record.command_id == row[0]), None)

    # ---- metrics

    def spool(self, created_at: float, samples: Sequence[Sample]) -> int:
        """Keep a batch until it is acknowledged. Returns its number: 1, 2, 3 … for the life of the journal."""
        text = json.dumps([sample.to_plain() for sample in samples])
        with self._transaction() as db:
            added = db.execute("INSERT INTO spool (created_at, samples) VALUES (?, ?)", (created_at, text))
            return int(added.lastrowid or 0)

    def spooled(self, limit: int) -> list[MetricBatch]:
        """The oldest batches."""
        rows = self._read("SELECT sequence, created_at, samples FROM spool ORDER BY sequence LIMIT ?", limit)
        return [
            MetricBatch(number, at, tuple(map(Sample.from_plain, json.loads(text))), self._spool)
            for number, at, text in rows
        ]

    def spool_size(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM spool")[0][0])

    def forget(self, acknowledged: int) -> None:
        """Batches up to this number are stored elsewhere."""
        with self._transaction() as db:
            db.execute("DELETE FROM spool WHERE sequence <= ?", (acknowledged,))

    # ---- inside

    @staticmethod
    def _begin(db: sqlite3.Connection, record: InstallRecord) -> bool:
        order = record.order
        (place,) = db.execute("SELECT COALESCE(MAX(place), 0) + 1 FROM installs").fetchone()
        added = db.execute(
            "INSERT INTO installs VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            (
                record.command_id,
                place,
                "install" if isinstance(order, Install) else "withdraw",
                order.rollout_id,
                order.model,
                order.release,
                record.bundle_digest,
                record.bundle_length,
                json.dumps(asdict(order.gate)) if isinstance(order, Install) else "",
                record.state,
                record.reason,
            ),
        )
        db.execute(
            "DELETE FROM installs WHERE place <= ? AND state = ?", (place - KEPT_COMMANDS, InstallState.REPORTED)
        )
        return added.rowcount == 1

    def _advance(self, db: sqlite3.Connection, command_id: CommandId, event: InstallEvent, reason: str) -> InstallState:
        row = db.execute("SELECT state FROM installs WHERE command_id = ?", (command_id,)).fetchone()
        if row is None:
            raise NotFound(f"no order {command_id} in the journal")
        state = advance(INSTALL, InstallState(row[0]), event)
        db.execute(
            "UPDATE installs SET state = ?, reason = CASE WHEN ? = '' THEN reason ELSE ? END WHERE command_id = ?",
            (state, reason, reason, command_id),
        )
        return state

    @staticmethod
    def _proven(db: sqlite3.Connection, model: str) -> list[Proven]:
        rows = db.execute("SELECT content FROM proven WHERE model = ? ORDER BY place", (model,)).fetchall()
        return [replace(one, shape=tuple(one.shape)) for one in (Proven(**json.loads(text)) for (text,) in rows)]

    @staticmethod
    def _write_proven(db: sqlite3.Connection, model: str, releases: Sequence[Proven]) -> None:
        db.execute("DELETE FROM proven WHERE model = ?", (model,))
        rows = [(model, place, json.dumps(asdict(one))) for place, one in enumerate(releases)]
        db.executemany("INSERT INTO proven VALUES (?, ?, ?)", rows)

    @staticmethod
    def _post(db: sqlite3.Connection, report: AgentEvent) -> None:
        event = report.event
        if not isinstance(event, InstallReport):
            raise TypeError("only install reports are durable")
        db.execute(
            "INSERT INTO outbox (event_id, command_id, rollout_id, receipt, signature, certificate)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                report.event_id,
                event.command_id,
                event.rollout_id,
                base64.b64encode(event.receipt_json).decode(),
                base64.b64encode(event.signature).decode(),
                base64.b64encode(event.certificate).decode(),
            ),
        )

    def _read(self, query: str, *arguments: object) -> list[Any]:
        with self._lock, self._translated():
            return self._db.execute(query, arguments).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL:
                raise StorageFull("no space left for the agent's journal; free some and try again") from error
            if isinstance(error, sqlite3.OperationalError) and code not in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise LocalError(f"the agent's journal {self._path} cannot be used", detail=str(error)) from error
            raise Corrupt(
                f"the agent's journal {self._path} is damaged: move it away and start again; releases are then installed anew",
                detail=str(error)[:200],
            ) from error


def _record(row: Any) -> InstallRecord:
    command_id, kind, rollout_id, model, release, digest, length, gate, state, reason = row
    order: Install | Withdraw
    if kind == "install":
        order = Install(RolloutId(rollout_id), model, release, {}, Gate(**json.loads(gate)))
    else:
        order = Withdraw(RolloutId(rollout_id), model, release, {})
    return InstallRecord(CommandId(command_id), order, Digest(digest), length, InstallState(state), reason)
