"""`coordinator round show`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, MAX_NUMBER, Where, admin, json_option, where_option


@click.command("show")
@click.argument("job")
@click.argument("round_number", metavar="ROUND", type=click.IntRange(1, MAX_NUMBER))
@click.option("--attempt", type=click.IntRange(1, MAX_NUMBER), help="Which try; the last if not given.")
@json_option
@where_option
def command(where: Where, job: str, round_number: int, attempt: int | None, as_json: bool) -> None:
    """Show what became of each device in a round, and why. OUTCOME is one of

    \b
    counted    its update is in the result
    recovered  it failed before its update was in, and the masks that others
               share with it were taken out of the secret sum
    dropped    it failed before that, or the whole round did
    rejected   it refused the task, or sent what cannot be used

    This is not the phase RECOVERED that `job watch` shows. There, devices failed after their update was in: they are counted.

    UP and DOWN are of this round. Keys and shares for several rounds go with the first of them.

    \b
    coordinator round show digits 3
    """
    from coordinator.cli.round import show_round
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.RoundRequest(job=job, round=round_number, attempt=attempt or 0)
    with admin(where) as stub:
        answer = stub.GetRound(request, timeout=CALL_TIMEOUT_S)
    show_round(answer, as_json=as_json)
