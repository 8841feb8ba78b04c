"""`coordinator admin issue`."""

from pathlib import Path

import click

from coordinator.cli.client import CALL_TIMEOUT_S, Where, admin, home_option, json_option


@click.command("issue")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The profile's folder.")
@click.option("--valid-days", default=90.0, show_default=True, help="How long the certificate counts.")
@json_option
@home_option
def command(home: Path, name: str, out: Path, valid_days: float, as_json: bool) -> None:
    """Let somebody command from afar. A key is made here and signed by the coordinator; the key is never sent.

    Only on the coordinator's machine. The folder is the admin's: whoever has it may do what they may.

    \b
    coordinator admin issue ann --out ./ann --valid-days 30
    coordinator device list --profile ./ann
    """
    from coordinator.cli import profile
    from coordinator.cli.render import moment, print_json
    from protos.fleet.v1 import admin_pb2

    with admin(Where(home)) as stub:
        request = admin_pb2.IssueAdminRequest(
            name=name, csr_der=profile.begin(out, name), valid_for_s=valid_days * 86_400
        )
        answer = stub.IssueAdmin(request, timeout=CALL_TIMEOUT_S)
    profile.finish(out, name, answer)
    if as_json:
        shown = {"name": name, "profile": str(out), "fleet_address": answer.fleet_address}
        print_json({**shown, "expires_at": answer.expires_at})
        return
    click.echo(f"made {out}\nvalid until {moment(answer.expires_at)} UTC at {answer.fleet_address}")
    click.echo(f"next: coordinator device list --profile {out}")
