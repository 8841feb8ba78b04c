"""`coordinator model publish`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, home_option, json_option


@click.command("publish")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, help="The model's name; its releases are numbered 1, 2, 3 …")
@json_option
@home_option
def command(home: Path, bundle: Path, name: str, as_json: bool) -> None:
    """Sign a bundle folder as the model's next release. It is checked whole first; publishing it again changes nothing.

    \b
    coordinator model publish ./bundle --name digits
    """
    from coordinator.cli.model import show_model
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.PublishModelRequest(name=name, bundle_path=str(bundle.resolve()))
    with admin(Where(home)) as stub:
        answer = stub.PublishModel(request, timeout=CALL_TIMEOUT_S)
    show_model(answer, as_json=as_json)
