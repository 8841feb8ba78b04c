"""`coordinator rollout watch`."""

import click

from coordinator.cli.client import WATCHED_FAILED, Where, admin, json_option, where_option


@click.command("watch")
@click.argument("rollout")
@json_option
@where_option
def command(where: Where, rollout: str, as_json: bool) -> None:
    """Follow a rollout until it ends. With --json, one snapshot a line. Exit code 40: it did not complete.

    \b
    coordinator rollout watch rol-0123456789
    """
    from collections import Counter

    from coordinator.cli.render import print_line, print_text, to_plain
    from coordinator.releases.states import RolloutState
    from protos.fleet.v1 import admin_pb2

    state = ""
    with admin(where) as stub:
        for snapshot in stub.WatchRollout(admin_pb2.RolloutRequest(rollout=rollout)):
            state = snapshot.state
            if as_json:
                print_line(to_plain(snapshot))
                continue
            counts = Counter(device.state.lower() for device in snapshot.devices)
            words = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            reason = f" ({snapshot.reason})" if snapshot.reason else ""
            print_text(f"stage {snapshot.stage} of {snapshot.stages}  {snapshot.state}{reason}  {words}")
    if state != RolloutState.COMPLETED.value:
        raise SystemExit(WATCHED_FAILED)
