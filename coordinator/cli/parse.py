"""Arguments that several commands take."""

from collections.abc import Iterable

from shared.errors import ConfigError


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE …` as a mapping. Raises `ConfigError`."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator and value):
            raise ConfigError(f"a label is KEY=VALUE, not {pair!r}")
        out[key] = value
    return out
