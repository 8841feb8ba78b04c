"""What `edge-agent status` tells, from the running agent or from its journal, and `edge-agent data list`."""

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_agent import local
from edge_agent.config import Home, load_config
from edge_agent.journal import Journal
from edge_agent.link.credentials import Credentials
from shared.clock import SystemClock
from shared.errors import Corrupt, Unavailable

if TYPE_CHECKING:
    from edge_agent.storage import Chunk, Contents

_WIDEST_LABELS = 30


def read_status(home: Home) -> Mapping[str, Any]:
    """Raises `NotFound` when nothing was ever enrolled here, `Corrupt`."""
    try:
        return local.ask(home.status_socket)
    except Unavailable:
        return _at_rest(home)


def _at_rest(home: Home) -> Mapping[str, Any]:
    from edge_agent.agent import installs_of

    membership = Credentials(home.identity, SystemClock()).membership
    about: dict[str, Any] = {"running": False, "device": membership.device, "name": membership.name, "models": []}
    if not home.journal.exists():
        return {**about, "installs": [], "unacknowledged": 0, "spooled_metrics": 0}
    journal = Journal(home.journal)
    try:
        about["models"] = [
            {
                "model": one.model,
                "release": one.release,
                "runtime": one.runtime,
                "digest": one.variant_digest,
                "bundle_digest": one.bundle_digest,
                "proven": True,
            }
            for model in journal.models()
            for one in journal.proven(model)[:1]
        ]
        about |= {
            "installs": installs_of(journal),
            "unacknowledged": len(journal.outbox()),
            "spooled_metrics": journal.spool_size(),
        }
    finally:
        journal.close()
    return about


def as_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"device      {status['name']} ({status['device']})"
    if status["running"]:
        reason = f": {status['reason']}" if status["reason"] else ""
        yield f"session     {status['session']}{reason}"
        yield f"inference   {status['inference']}"
        ended = ", ".join(f"{count} {how}" for how, count in status["tasks_ended"].items())
        yield f"tasks       {ended}, {len(status['tasks'])} under way"
    else:
        yield "agent       not running; start it with `edge-agent run`"
    for model in status["models"]:
        mark = "proven" if model["proven"] else "not proven"
        counts = f", {model['requests']} answered, {model['errors']} failed" if "requests" in model else ""
        yield f"model       {model['model']}:{model['release']} on {model['runtime']} ({mark}{counts})"
    if not status["models"]:
        yield "model       none"
    for install in status["installs"][-3:]:
        reason = f": {install['reason']}" if install["reason"] else ""
        yield f"{install['order']:<11} {install['model']}:{install['release']} {install['state']}{reason}"
    yield f"to report   {status['unacknowledged']} receipts, {status['spooled_metrics']} batches of metrics"


@dataclass(frozen=True)
class Spending:
    """What private jobs have cost: epsilon at `delta` by data epoch, None where the ledger cannot be read. `limit` is the device's
    own, over all jobs; 0: it sets none.
    """

    spent: Mapping[str, float] | None
    limit: float
    delta: float

    def of(self, chunk: "Chunk") -> float | None:
        return None if self.spent is None else self.spent.get(chunk.epoch, 0.0)

    def concerns(self, chunk: "Chunk") -> bool:
        """Whether there is anything to tell of it."""
        return bool(self.limit) or self.of(chunk) != 0.0


def read_spending(home: Home) -> Spending:
    """Raises `ConfigError` for settings that cannot be read."""
    config = load_config(home)
    limit, delta = config.max_epsilon, config.max_epsilon_delta
    if not home.ledger.exists():
        return Spending({}, limit, delta)
    from edge_agent.ledger import read_ledgers  # the accountant takes a second to import

    try:
        ledgers = read_ledgers(home.ledger)
    except Corrupt:
        return Spending(None, limit, delta)
    distinct = {one.spends: one for one in ledgers.values()}  # files that came together have spent alike
    spent = {spends: one.spent_at(delta) for spends, one in distinct.items()}
    return Spending({epoch: spent[one.spends] for epoch, one in ledgers.items()}, limit, delta)


def contents_as_plain(contents: "Contents", spending: Spending) -> dict[str, Any]:
    """For programs: JSON values."""
    labels = contents.labels or {}
    return {
        "name": contents.chunk.id,
        "file": contents.chunk.source,
        "examples": sum(labels.values()),
        "labels": {str(label): count for label, count in labels.items()},
        "shape": list(contents.shape or ()),
        "bytes": contents.size_bytes,
        "ingested_at": contents.ingested_at,
        "damaged": contents.labels is None,
        "privacy": _privacy_as_plain(contents.chunk, spending) if spending.concerns(contents.chunk) else None,
    }


def _privacy_as_plain(chunk: "Chunk", spending: Spending) -> dict[str, Any]:
    """JSON knows no infinity: None, as for a ledger that cannot be read."""
    spent = spending.of(chunk)
    return {
        "epsilon": spent if spent is not None and math.isfinite(spent) else None,
        "limit": spending.limit or None,
        "delta": spending.delta,
    }


def contents_as_lines(every: "Iterable[Contents]", spending: Spending) -> Iterator[str]:
    """For people."""
    found = list(every)
    if not found:
        yield "no examples yet: add some with `edge-agent ingest FILE`"
        return
    titles = ("NAME", "EXAMPLES", "LABELS", "KB", "INGESTED (UTC)", "EPSILON", "FILE")
    rows: list[tuple[str, ...]] = [titles, *(_cells(one, spending) for one in found)]
    if not any(spending.concerns(one.chunk) for one in found):
        rows = [(*row[:-2], row[-1]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(one: "Contents", spending: Spending) -> tuple[str, ...]:
    at = datetime.datetime.fromtimestamp(one.ingested_at, datetime.UTC)
    labels = "damaged" if one.labels is None else _ranges(sorted(one.labels))
    examples = str(sum((one.labels or {}).values()))
    size = f"{one.size_bytes / 1000:.1f}"
    ingested, epsilon = at.strftime("%Y-%m-%d %H:%M"), _epsilon(one.chunk, spending)
    return one.chunk.id, examples, labels, size, ingested, epsilon, one.chunk.source or "-"


def _epsilon(chunk: "Chunk", spending: Spending) -> str:
    """`1.23 of 8`."""
    if not spending.concerns(chunk):
        return "-"
    spent = spending.of(chunk)
    limit = f" of {spending.limit:g}" if spending.limit else ""
    return "ledger damaged" if spent is None else f"{spent:.3g}{limit}"


def _ranges(labels: list[int]) -> str:
    """`0-9, 77`; of many that are far apart only how many there are."""
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(text) <= _WIDEST_LABELS else f"{labels[0]} to {labels[-1]}, {len(labels)} of them"
