"""`coordinator job submit`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("submit")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", default="", help="Submitting again with the same key gives the same job.")
@json_option
@where_option
def command(where: Where, file: Path, key: str, as_json: bool) -> None:
    """Check a job file whole and start it. Watch it with `job watch`.

    \b
    coordinator job submit job.toml
    coordinator job submit job.toml --key nightly-2026-11-24 --json
    """
    from coordinator.cli.job import show_job
    from coordinator.cli.parse import read_text
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.SubmitJobRequest(toml=read_text(file), idempotency_key=key)
    with admin(where) as stub:
        answer = stub.SubmitJob(request, timeout=CALL_TIMEOUT_S)
    show_job(answer, as_json=as_json)
