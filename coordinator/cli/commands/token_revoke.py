"""`coordinator token revoke`."""

from typing import TextIO

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, json_option, where_option


@click.command("revoke")
@click.argument("token", metavar="[ID]", required=False)
@click.option(
    "--token-file", type=click.File(errors="replace"), help="A file that holds the token; '-' reads standard input."
)
@json_option
@where_option
def command(where: Where, token: str | None, token_file: TextIO | None, as_json: bool) -> None:
    """Let nobody join with a token any more. ID is as in `token list`; whoever has the token alone gives it in a file.

    \b
    coordinator token revoke 6f1d2c3b4a596877
    coordinator token revoke --token-file token
    """
    from coordinator.cli.parse import token_id
    from coordinator.cli.render import moment, print_fields, print_json, to_plain
    from protos.fleet.v1 import admin_pb2

    request = admin_pb2.RevokeTokenRequest(token=token_id(token, token_file))
    with admin(where) as stub:
        answer = stub.RevokeToken(request, timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(to_plain(answer))
        return
    print_fields([("token", answer.id), ("state", answer.state), ("revoked", moment(answer.revoked_at))])
