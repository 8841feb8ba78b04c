"""`edge-agent data list`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option, json_option


@click.command("list")
@json_option
@home_option
def command(home: Path, as_json: bool) -> None:
    """List the ingested files: how many examples each holds, and of which labels.

    \b
    edge-agent data list
    edge-agent data list --home ./cam-1 --json
    """
    import json

    from edge_agent.config import Home
    from edge_agent.report import contents_as_lines, contents_as_plain
    from edge_agent.storage import DataStore

    contents = DataStore(Home(home).data).contents()
    if as_json:
        click.echo(json.dumps([contents_as_plain(one) for one in contents], indent=2, sort_keys=True))
        return
    for line in contents_as_lines(contents):
        click.echo(line)
