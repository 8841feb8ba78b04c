"""`coordinator token create`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("create")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 10_000), help="How many tokens.")
@click.option("--valid-for", default=24.0, show_default=True, help="Hours until they expire.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Given to the device that joins.")
@click.option("--require-approval", is_flag=True, help="The device waits until `device approve`.")
@json_option
@where_option
def command(
    where: Where, count: int, valid_for: float, labels: tuple[str, ...], require_approval: bool, as_json: bool
) -> None:
    """Make single-use join tokens. They are printed once, one a line, and stored hashed.

    \b
    coordinator token create > token
    coordinator token create --count 8 --valid-for 1 --label site=lab --json
    """
    from coordinator.cli.parse import check_hours
    from coordinator.cli.render import moment, print_json, to_plain
    from protos.fleet.v1 import admin_pb2
    from shared.cli import parse_pairs

    request = admin_pb2.CreateTokenRequest(
        valid_for_s=check_hours(valid_for) * 3600,
        labels=parse_pairs(labels),
        require_approval=require_approval,
        count=count,
    )
    with admin(where) as stub:
        answer = stub.CreateToken(request, timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    for token in answer.tokens:
        click.echo(token)
    click.echo(f"valid until {moment(answer.expires_at)} UTC; each lets one device join", err=True)
