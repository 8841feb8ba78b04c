"""`coordinator admin list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@json_option
@where_option
def command(where: Where, as_json: bool) -> None:
    """List who may command from afar, and who no longer may.

    \b
    coordinator admin list --json
    """
    from coordinator.cli.render import moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        admins = stub.ListAdmins(admin_pb2.ListAdminsRequest(), timeout=CALL_TIMEOUT_S).admins
    if as_json:
        print_json([to_plain(one) for one in admins])
        return
    print_table(
        admins,
        [
            ("NAME", lambda a: a.name),
            ("ISSUED", lambda a: moment(a.issued_at)),
            ("VALID UNTIL", lambda a: moment(a.expires_at)),
            ("REVOKED", lambda a: moment(a.revoked_at)),
        ],
        empty="nobody commands from afar: `coordinator admin issue NAME --out FOLDER`",
    )
