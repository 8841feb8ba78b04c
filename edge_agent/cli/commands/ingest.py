"""`edge-agent ingest`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option, json_option


@click.command("ingest")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@home_option
def command(home: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Add labelled examples: .npz or .safetensors files with arrays x (float) and y (integers). Works while the agent runs.

    \b
    edge-agent ingest monday.npz tuesday.npz
    edge-agent ingest --home ./cam-1 shard.safetensors --json
    """
    import json

    from edge_agent.config import Home
    from edge_agent.storage import DataStore
    from shared.cli import given

    with given():
        ingested = DataStore(Home(home).data).ingest_files(files)
    done = [
        {"file": str(file), "name": one.chunk.id, "added": one.added} for file, one in zip(files, ingested, strict=True)
    ]
    if as_json:
        click.echo(json.dumps(done, indent=2, sort_keys=True))
        return
    for row in done:
        said = f"{row['added']} examples added as" if row["added"] else "nothing new, it is here as"
        click.echo(f"{row['file']}: {said} {row['name']}")
