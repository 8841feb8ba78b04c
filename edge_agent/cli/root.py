"""Finds commands by file name and imports one only when it is asked for, so that `--help` is instant."""

import importlib
import pkgutil

import click

from edge_agent.cli import commands


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{commands.__name__}.{cmd_name}").command
        return command


@click.command(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(package_name="shoal", prog_name="edge-agent")
def cli() -> None:
    """Run this device as a member of a fleet: train on its own data, serve its models, prove that they serve.

    \b
    Start here:
      edge-agent enroll --coordinator HOST:7450 --name cam-1 --token-file token.txt
      edge-agent ingest examples.npz         give it labelled examples
      edge-agent run                         run the agent
      edge-agent status                      what it serves and does
    """
