"""`coordinator serve`."""

from pathlib import Path

import click

from coordinator.cli.client import home_option


@click.command("serve")
@click.option("--host", help="The address to listen on.")
@click.option("--enrolment-port", type=click.IntRange(0, 65535), help="Where devices join. 0: any free port.")
@click.option("--fleet-port", type=click.IntRange(0, 65535), help="Where members and admins call. 0: any free port.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Prometheus' page. 0: any free port.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="From where on to log.")
@click.option("--log-json/--log-text", default=None, help="How to log on standard error.")
@home_option
def command(home: Path, **overrides: object) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C. Running jobs and rollouts go on where they stood.

    Its settings are in coordinator.toml in its home; options override them.

    \b
    coordinator serve
    coordinator serve --home ./coordinator --log-level debug
    """
    from coordinator.app import serve
    from coordinator.config import Home, load_config

    home_folder = Home(home)
    serve(home_folder, load_config(home_folder, overrides))
