"""The `coordinator` program."""

import click

from coordinator.cli import commands
from shared.cli import CommandFiles

_NOUNS = {
    "token": "Join tokens for new devices.",
    "device": "The devices of the fleet.",
    "model": "Signed releases of models.",
    "job": "Federated training runs.",
    "round": "What each round of a job did, device by device.",
    "rollout": "Releases on their way to devices, in stages.",
    "admin": "Who may command from afar.",
    "keys": "The keys that sign releases.",
}


@click.command(
    cls=CommandFiles,
    folder=commands,
    nouns=_NOUNS,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(package_name="shoal", prog_name="coordinator")
def cli() -> None:
    """Run a fleet of edge devices that learn together: rounds, releases, rollouts.

    \b
    Start here:
      coordinator init                      make the fleet's keys and database
      coordinator serve                     run the coordinator
      coordinator token create              let a device join
      coordinator model build --help        make a first model
      coordinator job example > job.toml    describe a federated training run
      coordinator job submit job.toml       train
      coordinator rollout start digits      release the result in stages

    \b
    From another machine, with a folder that is made here and brought there:
      coordinator admin issue ann --out ann
      coordinator device list --profile ann
    """
