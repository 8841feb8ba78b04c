"""`coordinator token revoke`."""

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("revoke")
@click.argument("token", metavar="ID")
@json_option
@where_option
def command(where: Where, token: str, as_json: bool) -> None:
    """Let nobody join with a token any more. ID is as in `token list`; the token itself is taken too.

    \b
    coordinator token revoke 6f1d2c3b4a596877
    """
    from coordinator.cli.parse import token_id
    from coordinator.cli.render import moment, print_fields, print_json, to_plain
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.RevokeTokenRequest(token=token_id(token))
    with admin(where) as stub:
        answer = stub.RevokeToken(request, timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    print_fields([("token", answer.id), ("state", answer.state), ("revoked", moment(answer.revoked_at))])
