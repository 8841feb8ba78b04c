"""How every program of ours ends: 0, or one line on standard error and the exit code of the failure's class."""

import sys
from typing import NoReturn

import click

from shared.errors import ShoalError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_cli(cli: click.Command) -> NoReturn:
    """Run one command of the command line in `sys.argv`."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(INTERRUPTED)
    except ShoalError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
