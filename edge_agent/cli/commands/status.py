"""`edge-agent status`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option, json_option


@click.command("status")
@json_option
@home_option
def command(home: Path, as_json: bool) -> None:
    """Show what this device serves and does. Asks the running agent; reads its journal when none runs.

    \b
    edge-agent status
    edge-agent status --home ./cam-1 --json
    """
    import json

    from edge_agent.config import Home
    from edge_agent.report import as_lines, read_status

    status = read_status(Home(home))
    if as_json:
        click.echo(json.dumps(status, indent=2, sort_keys=True))
        return
    for line in as_lines(status):
        click.echo(line)
