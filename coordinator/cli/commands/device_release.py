"""`coordinator device release`."""

import click

from coordinator.cli.client import Where, json_option, where_option


@click.command("release")
@click.argument("device")
@json_option
@where_option
def command(where: Where, device: str, as_json: bool) -> None:
    """Take a device out of quarantine.

    \b
    coordinator device release dev1
    """
    from coordinator.cli.device import call_and_show

    call_and_show(where, "ReleaseDevice", device, as_json=as_json)
