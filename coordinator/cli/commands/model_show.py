"""`coordinator model show`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, admin, home_option, json_option


@click.command("show")
@click.argument("model")
@click.option("--release", default=0, help="Its number; the newest if not given.")
@json_option
@home_option
def command(home: Path, model: str, release: int, as_json: bool) -> None:
    """Show one release: files, lineage, report.

    \b
    coordinator model show digits --release 2
    """
    from coordinator.cli.model import show_model
    from protos.fleet.v1 import admin_pb2

    with admin(home) as stub:
        answer = stub.GetModel(admin_pb2.ModelRequest(model=model, release=release), timeout=CALL_TIMEOUT_S)
    show_model(answer, as_json=as_json)
