"""`edge-agent enroll`."""

from pathlib import Path
from typing import TextIO

import click

from edge_agent.cli.options import home_option, json_option

_ASK_AGAIN_S = 2.0
_MAX_TOKEN = 1000  # characters; a token has 87


@click.command("enroll")
@click.option("--coordinator", required=True, metavar="HOST:PORT", help="The coordinator's enrolment port.")
@click.option("--name", required=True, help="What people call this device; unique in the fleet.")
@click.option("--token", help="A join token. Other users can read arguments: --token-file is safer.")
@click.option(
    "--token-file", type=click.File(errors="replace"), help="A file that holds the token; '-' reads standard input."
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be given several times.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file that says what this device can do.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for an admin's approval.")
@json_option
@home_option
def command(
    home: Path,
    coordinator: str,
    name: str,
    token: str | None,
    token_file: TextIO | None,
    labels: tuple[str, ...],
    profile: Path | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Join a fleet with a single-use token. The device's key is made here and never leaves. Repeating it changes nothing.

    \b
    edge-agent enroll --coordinator fleet.example:7450 --name cam-1 --token-file token.txt
    coordinator token create | edge-agent enroll --coordinator localhost:7450 --name cam-1 --token-file -
    """
    import time

    from edge_agent.config import Home
    from edge_agent.enrol import Pending, Wish, enrol, wait_for
    from shared.cli import given, parse_pairs
    from shared.clock import SystemClock
    from shared.signing.tokens import JoinToken

    with given():
        token_given = JoinToken.parse(_text(token, token_file))
        wish = Wish(token_given, coordinator, name, parse_pairs(labels), profile)
    answers = enrol(Home(home), wish, SystemClock())
    found = next(answers)
    if isinstance(found, Pending) and not no_wait:
        click.echo(f"waiting: an admin must approve {name} (coordinator device approve {name})", err=True)
        time.sleep(_ASK_AGAIN_S)
        found = wait_for(answers, lambda: time.sleep(_ASK_AGAIN_S))
    _tell(home, name, found.device, enrolled=not isinstance(found, Pending), as_json=as_json)


def _text(token: str | None, file: TextIO | None) -> str:
    from shared.errors import InputError

    if (token is None) == (file is None):
        raise InputError("give either --token or --token-file")
    return file.read(_MAX_TOKEN) if file is not None else token or ""


def _tell(home: Path, name: str, device: str, *, enrolled: bool, as_json: bool) -> None:
    import json

    if as_json:
        state = "enrolled" if enrolled else "pending"
        click.echo(json.dumps({"name": name, "device": device, "home": str(home), "state": state}))
    elif enrolled:
        click.echo(f"{name} is enrolled as {device}; start it with `edge-agent run --home {home}`")
    else:
        click.echo(f"{name} waits for approval as {device}; run the same command again")
