"""`coordinator token list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@json_option
@where_option
def command(where: Where, as_json: bool) -> None:
    """List join tokens by id, newest last. Each lets one device join; the tokens themselves are shown once, by `token create`.

    \b
    coordinator token list
    coordinator token list --json
    """
    from coordinator.cli.render import labels, moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        tokens = stub.ListTokens(admin_pb2.ListTokensRequest(), timeout=CALL_TIMEOUT_S).tokens
    if as_json:
        print_json([to_plain(token) for token in tokens])
        return
    print_table(
        tokens,
        [
            ("TOKEN", lambda t: t.id),
            ("STATE", lambda t: t.state),
            ("USED BY", lambda t: t.device_name or ("?" if t.used_at else "-")),
            ("EXPIRES", lambda t: moment(t.expires_at)),
            ("CREATED", lambda t: moment(t.created_at)),
            ("CREATED BY", lambda t: t.created_by or "-"),
            ("APPROVAL", lambda t: "needed" if t.require_approval else "-"),
            ("LABELS", lambda t: labels(t.labels) or "-"),
        ],
        empty="no tokens yet: `coordinator token create`",
    )
