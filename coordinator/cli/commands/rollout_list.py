"""`coordinator rollout list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@json_option
@where_option
def command(where: Where, as_json: bool) -> None:
    """List rollouts, newest last.

    \b
    coordinator rollout list --json
    """
    from coordinator.cli.render import moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        rollouts = stub.ListRollouts(admin_pb2.ListRolloutsRequest(), timeout=CALL_TIMEOUT_S).rollouts
    if as_json:
        print_json([to_plain(item) for item in rollouts])
        return
    print_table(
        rollouts,
        [
            ("ROLLOUT", lambda r: r.id),
            ("RELEASE", lambda r: f"{r.model}:{r.release}"),
            ("STATE", lambda r: r.state),
            ("STAGE", lambda r: f"{r.stage}/{r.stages}"),
            ("PROVEN", lambda r: f"{sum(d.state == 'PROVEN' for d in r.devices)} of {len(r.devices)}"),
            ("STARTED", lambda r: moment(r.started_at)),
            ("REASON", lambda r: r.reason or "-"),
        ],
        empty="no rollouts yet: `coordinator rollout start MODEL`",
    )
