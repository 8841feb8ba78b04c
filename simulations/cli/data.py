"""`simulate data list | get`."""

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Real data sets that come inside packages of ordinary registries."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def list_(as_json: bool) -> None:
    """List the sets, and whether each is on this machine.

    \b
    simulate data list --json
    """
    import json

    from coordinator.cli.render import print_table, size
    from simulations.data import SOURCES, is_here

    if as_json:
        rows = [
            {
                "name": one.name,
                "about": one.about,
                "licence": one.licence,
                "package": f"{one.package.registry}:{one.package.name}=={one.package.version}",
                "sha256": one.package.sha256,
                "here": is_here(one.name),
            }
            for one in SOURCES.values()
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    columns = [
        ("NAME", lambda one: one.name),
        ("SIZE", lambda one: size(one.package.size)),
        ("HERE", lambda one: "yes" if is_here(one.name) else "no"),
        ("LICENCE", lambda one: one.licence),
        ("ABOUT", lambda one: one.about),
    ]
    print_table(SOURCES.values(), columns, empty="no data sets")


@data.command()
@click.argument("name")
@click.option(
    "--from",
    "local",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The package as a file, for a machine without a network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def get(name: str, local: Path | None, as_json: bool) -> None:
    """Fetch a set with its registry's own client, check its SHA-256 and unpack it.

    \b
    simulate data get mnist-5k
    simulate data get fashion-mnist --from ./dataset-fashion-mnist_0.0.deb
    """
    import json

    from simulations import data as sets

    path = sets.get(name, local=local, say=lambda text: click.echo(text, err=True))
    click.echo(json.dumps({"name": name, "path": str(path)}) if as_json else f"{name}: {path}")
