"""`edge-agent`: what a device's owner types. A command is a file, `commands/data_list.py` is `edge-agent data list`."""

from edge_agent.cli.root import cli
from shared.cli import run_cli


def main() -> None:
    run_cli(cli)


__all__ = ["cli", "main"]
