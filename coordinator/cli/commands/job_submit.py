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
    """Check a job file whole and start it. `job example` prints one to begin with, `job watch` follows what was started.

    The files that it names are read on the coordinator's machine. There, a relative path is meant from the job file's folder; with
    --profile, write whole paths.

    \b
    coordinator job example > job.toml
    coordinator job submit job.toml
    coordinator job submit job.toml --key nightly-2026-11-24 --json
    """
    from coordinator.cli.job import show_job
    from coordinator.cli.parse import read_text
    from coordinator.rounds.inputs import with_whole_paths
    from protos.fleet.v1 import admin_pb2

    toml = read_text(file)
    if where.profile is None:
        toml = with_whole_paths(toml, file.absolute().parent)
    request = admin_pb2.SubmitJobRequest(toml=toml, idempotency_key=key)
    with admin(where) as stub:
        answer = stub.SubmitJob(request, timeout=CALL_TIMEOUT_S)
    show_job(answer, as_json=as_json)
