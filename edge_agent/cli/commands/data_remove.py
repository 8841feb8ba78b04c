"""`edge-agent data remove`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option


@click.command("remove")
@click.argument("name")
@home_option
def command(home: Path, name: str) -> None:
    """Forget an ingested file and what is remembered of its examples. NAME: as `edge-agent data list` shows it, or the file's own.
    Works while the agent runs: the next training goes without it.

    \b
    edge-agent data remove 00000003-9f86d081
    edge-agent data remove --home ./cam-1 tuesday.npz
    """
    from edge_agent.client_app import memory
    from edge_agent.config import Home
    from edge_agent.storage import DataStore

    state = Home(home).state
    memory.forget(state)  # also before: killed in between, or with the file gone already, nothing of it is left
    try:
        chunk = DataStore(Home(home).data).remove(name)
    finally:
        memory.forget(state)  # what a training wrote meanwhile
    click.echo(f"{chunk.id} removed")
