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
    """Show what each device did in a round. It was counted, dropped, recovered or rejected, and why.

    \b
    coordinator round show digits 3
    """
    from coordinator.cli.render import print_fields, print_json, print_table, size, to_plain
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.RoundRequest(job=job, round=round_number, attempt=attempt or 0)
    with admin(where) as stub:
        answer = stub.GetRound(request, timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    print_fields(
        [
            ("state", answer.state + (f" ({answer.reason})" if answer.reason else "")),
            ("attempt", str(answer.attempt)),
            (
                "examples",
                "private: each device counts once" if "epsilon" in answer.metrics else str(answer.total_weight),
            ),
            *((name, f"{answer.metrics[name]:.4f}") for name in sorted(answer.metrics)),
        ]
    )
    click.echo()
    grouped = [("GROUP", lambda d: str(d.group))] if any(d.group for d in answer.devices) else []
    print_table(
        sorted(answer.devices, key=lambda d: (d.group, d.name)),
        [
            ("DEVICE", lambda d: d.name),
            *grouped,
            ("OUTCOME", lambda d: d.outcome),
            ("EXAMPLES", lambda d: str(d.weight) if d.weight else "secret" if d.outcome == "counted" else "-"),
            ("UP", lambda d: size(d.bytes_up)),
            ("DOWN", lambda d: size(d.bytes_down)),
            ("SECONDS", lambda d: f"{d.seconds:.1f}"),
            ("REASON", lambda d: d.reason or "-"),
        ],
        empty="no devices",
    )
