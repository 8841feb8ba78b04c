"""How a rollout is printed."""

import json
from typing import Any

import click

from coordinator.cli.render import print_fields, print_json, print_table, share, to_plain


def show_rollout(rollout: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_plain(rollout))
        return
    print_fields(
        [
            ("id", rollout.id),
            ("release", f"{rollout.model}:{rollout.release}"),
            ("state", rollout.state + (f" ({rollout.reason})" if rollout.reason else "")),
            ("stage", f"{rollout.stage} of {rollout.stages}"),
        ]
    )
    click.echo()
    print_table(
        sorted(rollout.devices, key=lambda d: (d.stage, d.name)),
        [
            ("DEVICE", lambda d: d.name),
            ("STAGE", lambda d: str(d.stage)),
            ("STATE", lambda d: d.state),
            ("RUNTIME", lambda d: _receipt(d).get("runtime") or "-"),
            ("BEFORE", lambda d: share(_receipt(d).get("accuracy_before"))),
            ("AFTER", lambda d: share(_receipt(d).get("accuracy_after"))),
            ("ANSWERS", lambda d: str(_receipt(d).get("answers", "-"))),
            ("REASON", lambda d: d.reason or "-"),
        ],
        empty="no devices",
    )


def _receipt(device: Any) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(device.receipt_json or "{}") or {}
    return receipt
