"""`coordinator rollout undo`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("undo")
@click.argument("rollout")
@click.option("--reason", default="", help="Written to the audit log.")
@json_option
@where_option
def command(where: Where, rollout: str, reason: str, as_json: bool) -> None:
    """Withdraw the release. Every device that has it goes back to the one before.

    \b
    coordinator rollout undo rol-0123456789 --reason 'worse at night'
    """
    from coordinator.cli.rollout import show_rollout
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.UndoRollout(admin_pb2.RolloutRequest(rollout=rollout, reason=reason), timeout=CALL_TIMEOUT_S)
    show_rollout(answer, as_json=as_json)
