"""How jobs and their events are printed, and a job file to begin with."""

import json
from importlib.resources import files
from string import Template
from typing import Any

from coordinator.cli.render import moment, print_fields, print_json, to_plain
from shared.cli import given
from shared.ids import parse_name

_EXAMPLE = "job_example.toml"
_UNSPOKEN = ("round", "noise")  # said before, and for programs


def example(model: str) -> str:
    """A job file that explains itself. Raises `InputError` for a name that is none."""
    with given():
        name = parse_name(model)
    return Template(files(__package__).joinpath(_EXAMPLE).read_text(encoding="utf-8")).substitute(model=name)


def show_job(job: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_plain(job))
        return
    print_fields(
        [
            ("id", job.id),
            ("name", job.name),
            ("state", job.state + (f" ({job.reason})" if job.reason else "")),
            ("rounds", f"{job.rounds_committed} of {job.rounds_total}"),
            ("strategy", job.strategy + (", summed in secret" if job.secure else "")),
            ("privacy", _privacy(job)),
            ("release", f"{job.model}:{job.release}" if job.release else "-"),
            ("submitted", moment(job.created_at)),
            ("ended", moment(job.ended_at)),
        ]
    )


def _privacy(job: Any) -> str:
    if not job.privacy:
        return "none: nothing bounds what its sums say"
    spent = f"epsilon {job.epsilon_spent:.4g} of {job.epsilon:g} spent, at delta {job.delta:g}; "
    weaker = "noise by the coordinator alone, which sees exact sums" if job.privacy == "central" else "noise by devices"
    return spent + weaker


def event_line(event: Any) -> str:
    """One line a person can follow."""
    detail = json.loads(event.detail_json or "{}")
    words = " ".join(f"{key}={_short(value)}" for key, value in sorted(detail.items()) if key not in _UNSPOKEN)
    where = f"round {event.round}  " if event.round else ""
    return f"{moment(event.at)}  {where}{event.kind}  {words}".rstrip()


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
