"""`edge-agent`: what a device's owner types. A command is a file in `commands/`."""

import sys

from edge_agent.cli.root import cli
from shared.errors import ShoalError


def main() -> None:
    """Run one command. A failure is one line on standard error and the exit code of its class."""
    import click

    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except ShoalError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


__all__ = ["cli", "main"]
