"""What our programs share: how one finds its commands, and how it ends: 0, or one line on standard error and the exit code of
the failure's class.
"""

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NoReturn

import click

from shared.errors import ConfigError, DigestMismatch, InputError, LocalError, Malformed, ShoalError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_cli(cli: click.Command) -> NoReturn:
    """Run one command of the command line in `sys.argv`."""
    try:
        _check_words(sys.argv[1:])
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


@contextlib.contextmanager
def given() -> Iterator[None]:
    """Around what reads something that a person typed or named. What would be a peer's fault elsewhere is theirs: `InputError`."""
    try:
        yield
    except (Malformed, DigestMismatch) as error:
        raise InputError(error.message, detail=error.detail) from error


def parse_pairs(pairs: Iterable[str], *, what: str = "a label") -> dict[str, str]:
    """`KEY=VALUE …` as a mapping. Raises `ConfigError`."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator and value):
            raise ConfigError(f"{what} is KEY=VALUE, not {pair!r}")
        out[key] = value
    return out


class CommandFiles(click.Group):
    """The commands of a folder: `VERB.py` is PROGRAM VERB, `NOUN_VERB.py` is PROGRAM NOUN VERB; each holds a `command`. One is
    imported only when it is asked for, so that `--help` is instant. `nouns` has a line of help for each.
    """

    def __init__(self, *args: Any, folder: ModuleType, nouns: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._folder = folder
        self._nouns = nouns

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _names(self._folder) if "_" not in name] + list(self._nouns)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._nouns:
            return _Noun(self._folder, name=cmd_name, help=self._nouns[cmd_name], no_args_is_help=True)
        return _load(self._folder, cmd_name) if cmd_name in self.list_commands(ctx) else None


class _Noun(click.Group):
    def __init__(self, folder: ModuleType, **settings: Any) -> None:
        super().__init__(**settings)
        self._folder = folder

    def list_commands(self, ctx: click.Context) -> list[str]:
        prefix = f"{self.name}_"
        return [name.removeprefix(prefix) for name in _names(self._folder) if name.startswith(prefix)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(self._folder, f"{self.name}_{cmd_name}") if cmd_name in self.list_commands(ctx) else None


def _names(folder: ModuleType) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def _load(folder: ModuleType, name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"{folder.__name__}.{name}").command
    return command


def _check_words(words: list[str]) -> None:
    """Python passes bytes that are no UTF-8 on as lone surrogates; protobuf and SQL refuse them, later and in their own words."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"the argument {os.fsencode(word)!r} is not valid UTF-8") from None


def _complain(error: Exception) -> None:
    """In one line, also where a library that is quoted takes several."""
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
