"""`edge-agent ingest`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option


@click.command("ingest")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@home_option
def command(home: Path, files: tuple[Path, ...]) -> None:
    """Add labelled examples: .npz or .safetensors files with arrays x (float) and y (integers). Works while the agent runs.

    \b
    edge-agent ingest monday.npz tuesday.npz
    edge-agent ingest --home ./cam-1 shard.safetensors
    """
    from edge_agent.config import Home
    from edge_agent.storage import DataStore, load_file

    loaded = [load_file(file) for file in files]  # all are good, or none is taken
    store = DataStore(Home(home).data)
    for file, (x, y) in zip(files, loaded, strict=True):
        added = store.ingest(x, y)
        click.echo(f"{file.name}: {added} examples added" if added else f"{file.name}: nothing new")
