"""The `edge-agent` program."""

import click

from edge_agent.cli import commands
from shared.cli import CommandFiles

_NOUNS = {"data": "The labelled examples that this device learns from."}


@click.command(
    cls=CommandFiles,
    folder=commands,
    nouns=_NOUNS,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(package_name="shoal", prog_name="edge-agent")
def cli() -> None:
    """Run this device as a member of a fleet: train on its own data, serve its models, prove that they serve.

    \b
    Start here:
      edge-agent enroll --coordinator HOST:7450 --name cam-1 --token-file token.txt
      edge-agent ingest examples.npz         give it labelled examples
      edge-agent data list                   what it has of them
      edge-agent run                         run the agent
      edge-agent status                      what it serves and does
    """
