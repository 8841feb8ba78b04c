"""`coordinator init`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option


@click.command("init")
@click.option("--name", default="fleet", show_default=True, help="The fleet's name, in its certificates.")
@click.option("--advertise", default="localhost", show_default=True, help="The host that agents dial, without a port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port-base",
    default=7450,
    show_default=True,
    type=click.IntRange(0, 65533),
    help="Enrolment port; fleet and metrics follow. 0: any.",
)
@click.option("--database-url", default="", help="postgresql+psycopg://… instead of SQLite in the home folder.")
@home_option
def command(home: Path, name: str, advertise: str, host: str, port_base: int, database_url: str) -> None:
    """Make a coordinator's home: settings, keys, database. Never overwrites one.

    \b
    coordinator init
    coordinator init --advertise fleet.example.org --host 0.0.0.0
    coordinator init --home ./lab --port-base 0
    """
    from coordinator.app import initialise
    from coordinator.cli.parse import check_database_url, check_host
    from coordinator.config import CoordinatorConfig, Home

    config = CoordinatorConfig(
        fleet_name=name,
        host=check_host(host, "--host"),
        advertised_host=check_host(advertise, "--advertise"),
        enrolment_port=port_base,
        fleet_port=port_base and port_base + 1,
        metrics_port=port_base and port_base + 2,
        database_url=check_database_url(database_url),
    )
    fingerprint = initialise(Home(home), config)
    click.echo(f"made {home}\nCA fingerprint {fingerprint}\nnext: coordinator serve --home {home}")
