"""`coordinator device show`."""

import click

from coordinator.cli.client import Where, json_option, where_option


@click.command("show")
@click.argument("device")
@json_option
@where_option
def command(where: Where, device: str, as_json: bool) -> None:
    """Show one device, by name or id.

    \b
    coordinator device show dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(where, "GetDevice", device, as_json=as_json)
