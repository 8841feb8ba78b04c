"""Arguments that several commands take."""

from collections.abc import Iterable
from pathlib import Path

from shared.errors import ConfigError

MAX_HOURS = 87_600  # ten years


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE …` as a mapping. Raises `ConfigError`."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator and value):
            raise ConfigError(f"a label is KEY=VALUE, not {pair!r}")
        out[key] = value
    return out


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
    if url and not url.startswith(("postgresql+psycopg://", "sqlite:///")):
        raise ConfigError("--database-url begins with postgresql+psycopg:// or sqlite:///")
    return url
