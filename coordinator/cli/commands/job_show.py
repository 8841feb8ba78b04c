"""`coordinator job show`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("show")
@click.argument("job")
@json_option
@where_option
def command(where: Where, job: str, as_json: bool) -> None:
    """Show one job, by id or name.

    \b
    coordinator job show digits
    """
    from coordinator.cli.job import show_job
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.GetJob(admin_pb2.JobRequest(job=job), timeout=CALL_TIMEOUT_S)
    show_job(answer, as_json=as_json)
