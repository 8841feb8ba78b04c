"""`coordinator keys rotate`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, home_option, json_option


@click.command("rotate")
@click.argument("role", type=click.Choice(["root", "targets", "snapshot", "timestamp"]))
@json_option
@home_option
def command(home: Path, role: str, as_json: bool) -> None:
    """Replace the keys of a role of release metadata. Only on the coordinator's machine.

    For when one may have leaked: the old keys stop counting. Devices follow with the next command that they get, however long
    they were away.

    \b
    coordinator keys rotate timestamp
    """
    from coordinator.cli.render import print_json, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(Where(home)) as stub:
        answer = stub.RotateKeys(admin_pb2.RotateKeysRequest(role=role), timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    click.echo(f"root {answer.root_version} names fresh {role} keys")
