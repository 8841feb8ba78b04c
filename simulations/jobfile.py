"""Nested values as TOML, for the job and plan files that a simulation writes: tables, arrays of tables, scalars."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any], *, prefix: str = "") -> str:
    """Scalars first, then tables in order. Raises `TypeError` for a value that TOML has no form for."""
    lines = [f"{_key(key)} = {_scalar(value)}" for key, value in values.items() if not _is_table(value)]
    for key, value in values.items():
        if not _is_table(value):
            continue
        name = f"{prefix}{_key(key)}"
        for table in value if isinstance(value, list | tuple) else [value]:
            heading = f"[[{name}]]" if isinstance(value, list | tuple) else f"[{name}]"
            lines += ["", heading, to_toml(table, prefix=f"{name}.").rstrip()]
    return "\n".join(lines).strip() + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _quoted(key)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _scalar(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value) if "e" not in repr(value) else f"{value:.17e}"
        case str():
            return _quoted(value)
        case list() | tuple():
            return f"[{', '.join(_scalar(item) for item in value)}]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")
