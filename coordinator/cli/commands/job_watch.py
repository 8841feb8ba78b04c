"""`coordinator job watch`."""

from pathlib import Path

import click

from coordinator.cli.client import admin, home_option, json_option


@click.command("watch")
@click.argument("job")
@json_option
@home_option
def command(home: Path, job: str, as_json: bool) -> None:
    """Follow a job from its first event until it ends. With --json, one event a line.

    \b
    coordinator job watch digits
    """
    from coordinator.cli.job import event_line
    from coordinator.cli.render import print_line, print_text, to_plain
    from protos.fleet.v1 import admin_pb2

    with admin(home) as stub:
        for event in stub.WatchJob(admin_pb2.JobRequest(job=job)):
            if as_json:
                print_line(to_plain(event))
            else:
                print_text(event_line(event))
