"""What `edge-agent status` tells, from the running agent or from its journal."""

from collections.abc import Iterator, Mapping
from typing import Any

from edge_agent import local
from edge_agent.config import Home
from edge_agent.journal import Journal
from edge_agent.link.credentials import Credentials
from shared.clock import SystemClock
from shared.errors import Unavailable


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
        yield f"tasks       {status['tasks_done']} done, {len(status['tasks'])} under way"
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
