"""`edge-agent enroll`."""

from pathlib import Path
from typing import TextIO

import click

from edge_agent.cli.options import home_option

_ASK_AGAIN_S = 2.0


@click.command("enroll")
@click.option("--coordinator", required=True, metavar="HOST:PORT", help="The coordinator's enrolment port.")
@click.option("--name", required=True, help="What people call this device; unique in the fleet.")
@click.option("--token", help="A join token. Other users can read arguments: --token-file is safer.")
@click.option("--token-file", type=click.File(), help="A file that holds the token; '-' reads standard input.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be given several times.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file that says what this device can do.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for an admin's approval.")
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
) -> None:
    """Join a fleet with a single-use token. The device's key is made here and never leaves. Repeating it changes nothing.

    \b
    edge-agent enroll --coordinator fleet.example:7450 --name cam-1 --token-file token.txt
    coordinator token create | edge-agent enroll --coordinator localhost:7450 --name cam-1 --token-file -
    """
    import time

    from edge_agent.config import Home
    from edge_agent.enrol import Pending, Wish, enrol, wait_for
    from shared.clock import SystemClock
    from shared.errors import InputError
    from shared.signing.tokens import JoinToken

    if (token is None) == (token_file is None):
        raise InputError("give either --token or --token-file")
    text = token if token_file is None else token_file.read()
    pairs = dict(label.partition("=")[::2] for label in labels)
    wish = Wish(JoinToken.parse(text or ""), coordinator, name, pairs, profile)
    answers = enrol(Home(home), wish, SystemClock())
    if no_wait and isinstance(answer := next(answers), Pending):
        click.echo(f"{name} waits for approval as {answer.device}; run the same command again")
        return

    def pause() -> None:
        if pause.__dict__.setdefault("first", True):
            click.echo(f"waiting: an admin must approve {name} (coordinator device approve {name})", err=True)
            pause.__dict__["first"] = False
        time.sleep(_ASK_AGAIN_S)

    membership = wait_for(answers, pause)
    click.echo(f"{membership.name} is enrolled as {membership.device}; start it with `edge-agent run --home {home}`")
