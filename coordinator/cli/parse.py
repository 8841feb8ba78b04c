"""Arguments that several commands take."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from shared.cli import given, parse_pairs
from shared.errors import ConfigError, InputError
from shared.settings import Scalar
from shared.signing.tokens import PREFIX, JoinToken

MAX_HOURS = 87_600  # ten years
_MAX_TOKEN = 4096  # characters


def parse_arguments(pairs: Iterable[str]) -> dict[str, Scalar]:
    """`KEY=VALUE …` with values as in TOML; what is no number and no truth value is text, with or without quotes. Raises
    `ConfigError`.
    """
    return {key: _scalar(value) for key, value in parse_pairs(pairs, what="an argument").items()}


def _scalar(text: str) -> Scalar:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def token_id(named: str | None, file: TextIO | None) -> str:
    """A join token's id: as it was typed, or of the token that `file` holds. Raises `InputError`, also for a whole token that was
    typed: other users can read arguments.
    """
    if (named is None) == (file is None):
        raise InputError("give either a token's ID or --token-file")
    if file is not None:
        with given():
            return JoinToken.parse(file.read(_MAX_TOKEN)).id
    if named and named.strip().startswith(PREFIX):
        raise InputError(
            "that is a token, which other users can read here: give its ID, from `coordinator token list`, or --token-file"
        )
    return named or ""


def read_text(file: Path) -> str:
    """A TOML file as text. Raises `ConfigError`."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as text", detail=str(error)) from error


def check_hours(hours: float) -> float:
    """How long a token is valid. Raises `ConfigError`."""
    if not 0 < hours <= MAX_HOURS:  # NaN included
        raise ConfigError(f"--valid-for is more than 0 and at most {MAX_HOURS} hours, not {hours:g}")
    return hours


def check_host(host: str, option: str) -> str:
    """A bare name or address. Raises `ConfigError`."""
    if not host or host.count(":") == 1 or not all(sign.isalnum() or sign in "-._:" for sign in host):
        raise ConfigError(f"{option} is a host name or address alone, such as fleet.example.org, not {host!r}")
    return host


def check_database_url(url: str) -> str:
    """Empty, or of a database that we know. Raises `ConfigError`."""
    from coordinator.store.engine import check_url

    if url:
        check_url(url)
    return url
