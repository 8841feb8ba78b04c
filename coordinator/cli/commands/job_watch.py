"""`coordinator job watch`."""

import click

from coordinator.cli.client import WATCHED_FAILED, Where, admin, json_option, where_option


@click.command("watch")
@click.argument("job")
@json_option
@where_option
def command(where: Where, job: str, as_json: bool) -> None:
    """Follow a job from its first event until it ends. With --json, one event a line. Exit code 40: it did not complete.

    \b
    coordinator job watch digits
    coordinator job watch digits && coordinator rollout start digits
    """
    from coordinator.cli.job import event_line
    from coordinator.cli.render import print_line, print_text, to_plain
    from protos.fleet.v1 import admin_pb2

    kind = ""
    with admin(where) as stub:
        for event in stub.WatchJob(admin_pb2.JobRequest(job=job)):
            kind = event.kind
            if as_json:
                print_line(to_plain(event))
            else:
                print_text(event_line(event))
    if kind != "job.completed":
        raise SystemExit(WATCHED_FAILED)
