"""`simulate`: the whole fleet on one machine. A command is a file."""

import click

from shared.cli import run_cli
from simulations.cli.data import data
from simulations.cli.demo import demo
from simulations.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal", prog_name="simulate")
def cli() -> None:
    """Run a coordinator and many agents on one machine, on real data, with real faults.

    \b
    simulate demo                            the whole loop in three minutes
    simulate run kill-while-masks-are-out    one fault, and what must hold
    simulate data list                       real data sets
    """


cli.add_command(data)
cli.add_command(demo)
cli.add_command(run)


def main() -> None:
    run_cli(cli)
