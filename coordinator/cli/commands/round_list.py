"""`coordinator round list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@click.argument("job")
@json_option
@where_option
def command(where: Where, job: str, as_json: bool) -> None:
    """List a job's rounds, abandoned attempts included. ACCURACY is of the model that the round began with.

    \b
    coordinator round list digits
    """
    from coordinator.cli.render import print_json, print_table, share, size, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        rounds = stub.ListRounds(admin_pb2.JobRequest(job=job), timeout=CALL_TIMEOUT_S).rounds
    if as_json:
        print_json([to_plain(item) for item in rounds])
        return
    print_table(
        rounds,
        [
            ("ROUND", lambda r: str(r.round)),
            ("TRY", lambda r: str(r.attempt)),
            ("STATE", lambda r: r.state),
            ("COUNTED", lambda r: f"{sum(d.outcome == 'counted' for d in r.devices)} of {len(r.devices)}"),
            ("EXAMPLES", lambda r: "private" if "epsilon" in r.metrics else str(r.total_weight)),
            ("ACCURACY", lambda r: share(r.metrics.get("eval_acc_before"))),
            ("UP", lambda r: size(r.bytes_up)),
            ("DOWN", lambda r: size(r.bytes_down)),
            ("SECONDS", lambda r: f"{r.ended_at - r.started_at:.1f}" if r.ended_at else "-"),
            ("REASON", lambda r: r.reason or "-"),
        ],
        empty="no rounds yet",
    )
