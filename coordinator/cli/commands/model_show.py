"""`coordinator model show`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, MAX_NUMBER, Where, admin, json_option, where_option


@click.command("show")
@click.argument("model")
@click.option("--release", type=click.IntRange(1, MAX_NUMBER), help="Its number; the newest if not given.")
@json_option
@where_option
def command(where: Where, model: str, release: int | None, as_json: bool) -> None:
    """Show one release: files, lineage, report.

    \b
    coordinator model show digits --release 2
    """
    from coordinator.cli.model import show_model
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.GetModel(admin_pb2.ModelRequest(model=model, release=release or 0), timeout=CALL_TIMEOUT_S)
    show_model(answer, as_json=as_json)
