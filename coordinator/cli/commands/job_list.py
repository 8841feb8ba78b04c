"""`coordinator job list`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("list")
@json_option
@where_option
def command(where: Where, as_json: bool) -> None:
    """List jobs, newest last.

    \b
    coordinator job list --json
    """
    from coordinator.cli.render import moment, print_json, print_table, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        jobs = stub.ListJobs(admin_pb2.ListJobsRequest(), timeout=CALL_TIMEOUT_S).jobs
    if as_json:
        print_json([to_plain(job) for job in jobs])
        return
    print_table(
        jobs,
        [
            ("JOB", lambda j: j.id),
            ("NAME", lambda j: j.name),
            ("STATE", lambda j: j.state),
            ("ROUNDS", lambda j: f"{j.rounds_committed}/{j.rounds_total}"),
            ("RELEASE", lambda j: f"{j.model}:{j.release}" if j.release else "-"),
            ("SUBMITTED", lambda j: moment(j.created_at)),
            ("STRATEGY", lambda j: j.strategy),
            ("SECURE", lambda j: "yes" if j.secure else "no"),
            ("REASON", lambda j: j.reason or "-"),
        ],
        empty="no jobs yet: `coordinator job submit job.toml`",
    )
