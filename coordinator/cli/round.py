"""How a round is printed."""

from typing import Any

import click

from coordinator.cli.render import Column, print_fields, print_json, print_table, size, to_plain


def show_round(one: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(to_plain(one))
        return
    print_fields(
        [
            ("state", one.state + (f" ({one.reason})" if one.reason else "")),
            ("attempt", str(one.attempt)),
            ("examples", "private: each device counts once" if "epsilon" in one.metrics else str(one.total_weight)),
            *((name, f"{one.metrics[name]:.4f}") for name in sorted(one.metrics)),
        ]
    )
    click.echo()
    grouped: list[Column] = [("GROUP", lambda d: str(d.group))] if any(d.group for d in one.devices) else []
    print_table(
        sorted(one.devices, key=lambda d: (d.group, d.name)),
        [
            ("DEVICE", lambda d: d.name),
            *grouped,
            ("OUTCOME", lambda d: d.outcome),
            ("EXAMPLES", _examples),
            ("UP", lambda d: size(d.bytes_up)),
            ("DOWN", lambda d: size(d.bytes_down)),
            ("SECONDS", lambda d: f"{d.seconds:.1f}"),
            ("REASON", lambda d: d.reason or "-"),
        ],
        empty="no devices",
    )


def _examples(device: Any) -> str:
    return str(device.weight) if device.weight else "secret" if device.outcome == "counted" else "-"
