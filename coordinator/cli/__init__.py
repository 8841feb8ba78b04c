"""`coordinator`: what admins type. A command is a file, `commands/device_list.py` is `coordinator device list`."""

from coordinator.cli.root import cli
from shared.cli import run_cli


def main() -> None:
    run_cli(cli)
