"""`coordinator device show`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option, json_option


@click.command("show")
@click.argument("device")
@json_option
@home_option
def command(home: Path, device: str, as_json: bool) -> None:
    """Show one device, by name or id.

    \b
    coordinator device show dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(home, "GetDevice", device, as_json=as_json)
