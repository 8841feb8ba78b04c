"""`edge-agent data list`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option, json_option


@click.command("list")
@json_option
@home_option
def command(home: Path, as_json: bool) -> None:
    """List the ingested files: how many examples each holds, and of which labels.

    EPSILON, once there is any, is what private jobs have cost the file so far, of max_epsilon if agent.toml sets it, and at its
    max_epsilon_delta. A file that is used up keeps the device out of private jobs until it is removed.

    \b
    edge-agent data list
    edge-agent data list --home ./cam-1 --json
    """
    import json

    from edge_agent.config import Home
    from edge_agent.report import contents_as_lines, contents_as_plain, read_spending
    from edge_agent.storage import DataStore

    spending, contents = read_spending(Home(home)), DataStore(Home(home).data).contents()
    if as_json:
        click.echo(json.dumps([contents_as_plain(one, spending) for one in contents], indent=2, sort_keys=True))
        return
    for line in contents_as_lines(contents, spending):
        click.echo(line)
