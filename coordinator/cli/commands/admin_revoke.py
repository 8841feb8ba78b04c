"""`coordinator admin revoke`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, home_option, json_option


@click.command("revoke")
@click.argument("name")
@json_option
@home_option
def command(home: Path, name: str, as_json: bool) -> None:
    """Refuse an admin from the next message on. Only on the coordinator's machine.

    \b
    coordinator admin revoke ann
    """
    from coordinator.cli.render import moment, print_fields, print_json, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(Where(home)) as stub:
        answer = stub.RevokeAdmin(admin_pb2.RevokeAdminRequest(name=name), timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    print_fields([("name", answer.name), ("revoked", moment(answer.revoked_at))])
