"""`coordinator device revoke`."""

import click

from coordinator.cli.client import Where, json_option, where_option


@click.command("revoke")
@click.argument("device")
@click.option("--reason", default="", help="Written to the audit log and shown to admins.")
@json_option
@where_option
def command(where: Where, device: str, reason: str, as_json: bool) -> None:
    """Refuse a device for good: its certificate no longer counts. Takes effect on its next message.

    \b
    coordinator device revoke dev1 --reason stolen
    """
    from coordinator.cli.device import call_and_show

    call_and_show(where, "RevokeDevice", device, reason=reason, as_json=as_json)
