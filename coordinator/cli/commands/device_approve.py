"""`coordinator device approve`."""

import click

from coordinator.cli.client import Where, json_option, where_option


@click.command("approve")
@click.argument("device")
@json_option
@where_option
def command(where: Where, device: str, as_json: bool) -> None:
    """Let a device that waits for approval join.

    \b
    coordinator device approve dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(where, "ApproveDevice", device, as_json=as_json)
