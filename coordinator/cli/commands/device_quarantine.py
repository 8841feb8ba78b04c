"""`coordinator device quarantine`."""

import click

from coordinator.cli.client import Where, json_option, where_option


@click.command("quarantine")
@click.argument("device")
@click.option("--reason", default="", help="Written to the audit log and shown to admins.")
@json_option
@where_option
def command(where: Where, device: str, reason: str, as_json: bool) -> None:
    """Keep a device out of rounds and rollouts; it goes on serving. Takes effect on its next message.

    \b
    coordinator device quarantine dev1 --reason 'odd updates'
    """
    from coordinator.cli.device import call_and_show

    call_and_show(where, "QuarantineDevice", device, reason=reason, as_json=as_json)
