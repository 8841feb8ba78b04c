"""`coordinator device approve`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option, json_option


@click.command("approve")
@click.argument("device")
@json_option
@home_option
def command(home: Path, device: str, as_json: bool) -> None:
    """Let a device that waits for approval join.

    \b
    coordinator device approve dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(home, "ApproveDevice", device, as_json=as_json)
