"""`coordinator device quarantine`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option, json_option


@click.command("quarantine")
@click.argument("device")
@click.option("--reason", default="", help="Written to the audit log and shown to admins.")
@json_option
@home_option
def command(home: Path, device: str, reason: str, as_json: bool) -> None:
    """Keep a device out of rounds and rollouts; it goes on serving. Takes effect on its next message.

    \b
    coordinator device quarantine dev1 --reason 'odd updates'
    """
    from coordinator.cli.device import call_and_show

    call_and_show(home, "QuarantineDevice", device, reason=reason, as_json=as_json)
