"""`edge-agent run`."""

from pathlib import Path

import click

from edge_agent.cli.options import home_option


@click.command("run")
@click.option(
    "--fleet-address", metavar="HOST:PORT", help="Where to reach the coordinator, instead of what it said itself."
)
@click.option("--inference-port", type=click.IntRange(0, 65535), help="Where applications ask; 0: any free port.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-json/--log-text", default=None, help="How to log on standard error.")
@home_option
def command(home: Path, **overrides: object) -> None:
    """Run the agent until SIGTERM or Ctrl-C. It serves its last proven models before it reaches the coordinator.

    \b
    edge-agent run
    edge-agent run --home ./cam-1 --log-level debug
    """
    from edge_agent.app import run
    from edge_agent.config import Home

    run(Home(home), overrides)
