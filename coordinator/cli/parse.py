"""Arguments that several commands take."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

from shared.cli import given, parse_pairs
from shared.errors import ConfigError
from shared.settings import Scalar
from shared.signing.tokens import PREFIX, JoinToken

MAX_HOURS = 87_600  # ten years


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


def token_id(text: str) -> str:
    """A join token's id, also for who gives the whole token. Raises `InputError` for a damaged one."""
    if not text.startswith(PREFIX):
        return text
    with given():
        return JoinToken.parse(text).id


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
