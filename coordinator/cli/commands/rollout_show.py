"""`coordinator rollout show`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("show")
@click.argument("rollout")
@json_option
@where_option
def command(where: Where, rollout: str, as_json: bool) -> None:
    """Show a rollout, device by device. RUNTIME and what follows is what each device measured and signed.

    \b
    coordinator rollout show rol-0123456789
    """
    from coordinator.cli.rollout import show_rollout
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.GetRollout(admin_pb2.RolloutRequest(rollout=rollout), timeout=CALL_TIMEOUT_S)
    show_rollout(answer, as_json=as_json)
