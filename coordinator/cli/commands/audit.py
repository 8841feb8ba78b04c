"""`coordinator audit`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("audit")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="The newest so many.")
@json_option
@where_option
def command(where: Where, limit: int, as_json: bool) -> None:
    """Show who changed what, newest last.

    \b
    coordinator audit --limit 20
    """
    import json

    from coordinator.cli.render import labels, moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        entries = stub.ListAudit(admin_pb2.ListAuditRequest(limit=limit), timeout=CALL_TIMEOUT_S).entries
    if as_json:
        print_json([to_plain(entry) for entry in entries])
        return
    print_table(
        entries,
        [
            ("AT", lambda e: moment(e.at)),
            ("WHO", lambda e: e.actor),
            ("DID", lambda e: e.action),
            ("TO", lambda e: e.subject),
            ("DETAIL", lambda e: labels(json.loads(e.detail_json or "{}")) or "-"),
        ],
        empty="nothing was done yet",
    )
