"""Finds commands by file name and imports one only when it is asked for, so that `--help` is instant."""

import importlib
import pkgutil

import click

from coordinator.cli import commands

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


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def _load(name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"{commands.__name__}.{name}").command
    return command


class _Noun(click.Group):
    """`coordinator NOUN …`: the files `NOUN_VERB.py`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        prefix = f"{self.name}_"
        return [name.removeprefix(prefix) for name in _names() if name.startswith(prefix)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(f"{self.name}_{cmd_name}") if cmd_name in self.list_commands(ctx) else None


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _names() if "_" not in name] + list(_NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _NOUNS:
            return _Noun(name=cmd_name, help=_NOUNS[cmd_name], no_args_is_help=True)
        return _load(cmd_name) if cmd_name in self.list_commands(ctx) else None


@click.command(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(package_name="shoal", prog_name="coordinator")
def cli() -> None:
    """Run a fleet of edge devices that learn together: rounds, releases, rollouts.

    \b
    Start here:
      coordinator init                      make the fleet's keys and database
      coordinator serve                     run the coordinator
      coordinator token create              let a device join
      coordinator job submit job.toml       train
      coordinator rollout start digits      release the result in stages

    \b
    From another machine:
      coordinator admin issue ann --out ann      here; bring the folder over, then there
      coordinator device list --profile ann
    """
