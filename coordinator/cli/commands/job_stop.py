"""`coordinator job stop`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("stop")
@click.argument("job")
@json_option
@where_option
def command(where: Where, job: str, as_json: bool) -> None:
    """Stop a job after its present round; what is committed stays.

    \b
    coordinator job stop job-0123456789
    """
    from coordinator.cli.job import show_job
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.StopJob(admin_pb2.JobRequest(job=job), timeout=CALL_TIMEOUT_S)
    show_job(answer, as_json=as_json)
