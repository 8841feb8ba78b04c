"""How every program of ours ends: 0, or one line on standard error and the exit code of the failure's class."""

import sys
from typing import NoReturn

import click

from shared.errors import LocalError, ShoalError

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
        _complain(error)
        sys.exit(error.exit_code)
    except OSError as error:  # a path that a person named
        _complain(error)
        sys.exit(LocalError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(error: Exception) -> None:
    """In one line, also where a library that is quoted takes several."""
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
