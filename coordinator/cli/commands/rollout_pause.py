"""`coordinator rollout pause`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("pause")
@click.argument("rollout")
@click.option("--reason", default="", help="Written to the audit log.")
@json_option
@where_option
def command(where: Where, rollout: str, reason: str, as_json: bool) -> None:
    """Offer the release to no further device until `rollout resume`.

    \b
    coordinator rollout pause rol-0123456789 --reason 'night shift'
    """
    from coordinator.cli.rollout import show_rollout
    from protos.fleet.v1 import admin_pb2

    with admin(where) as stub:
        answer = stub.PauseRollout(admin_pb2.RolloutRequest(rollout=rollout, reason=reason), timeout=CALL_TIMEOUT_S)
    show_rollout(answer, as_json=as_json)
