"""`coordinator device release`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option, json_option


@click.command("release")
@click.argument("device")
@json_option
@home_option
def command(home: Path, device: str, as_json: bool) -> None:
    """Take a device out of quarantine.

    \b
    coordinator device release dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(home, "ReleaseDevice", device, as_json=as_json)
