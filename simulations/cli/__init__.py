"""`simulate`: the whole fleet on one machine. A command is a file."""

import sys

import click

from shared.errors import ShoalError
from simulations.cli.data import data
from simulations.cli.demo import demo
from simulations.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal")
def cli() -> None:
    """Run a coordinator and many agents on one machine, on real data, with real faults."""


cli.add_command(data)
cli.add_command(demo)
cli.add_command(run)


def main() -> None:
    """Run one command. A failure is one line on standard error and the exit code of its class."""
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
