"""What a job reads on the coordinator's machine: checked when it is submitted, read again when it is needed."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from shared.errors import ConfigError, Malformed, NotFound
from shared.learning.examples import Outline, outline_of_file
from shared.learning.headers import check_safetensors
from shared.learning.spec import InputSchema

ARRAYS_FILE, PUBLIC_DATA = "job.start.arrays_file", "job.public.data"
MAX_PUBLIC_BYTES = 1 << 30  # unpacked: the worker that uses it needs a multiple of that


def with_whole_paths(text: str, folder: Path) -> str:
    """The job file with its relative paths made whole, as meant from `folder`; all else in it stays as it was written.

    A file that is not TOML comes back as it is: whoever parses it says why. Raises `ConfigError` for a path that it cannot find in
    the text, written as it may be.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text
    for where in (ARRAYS_FILE, PUBLIC_DATA):
        _, table, key = where.split(".")
        section = values.get(table)
        path = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(path, str) and path and not Path(path).is_absolute():
            whole = os.path.abspath(folder / path)
            values = {**values, table: {**section, key: whole}}
            text = _replaced(text, path, whole, values, where)
    return text


def _replaced(text: str, old: str, new: str, wanted: dict[str, Any], where: str) -> str:
    """Of all the places where `old` is written, the one that makes the file say what is wanted."""
    for literal in (json.dumps(old, ensure_ascii=False), f"'{old}'"):
        at = text.find(literal)
        while at >= 0:
            candidate = text[:at] + json.dumps(new, ensure_ascii=False) + text[at + len(literal) :]
            if _says(candidate, wanted):
                return candidate
            at = text.find(literal, at + 1)
    raise ConfigError(f"write the whole path, {new}", path=where)


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return repr(tomllib.loads(text)) == repr(wanted)  # NaN is not equal to itself
    except tomllib.TOMLDecodeError:
        return False


def read_arrays(name: str) -> bytes:
    """What `start.arrays_file` holds; nothing but a safetensors file is read whole. Raises `ConfigError`."""
    path = _whole(name, ARRAYS_FILE)
    try:
        if not path.is_file():
            raise ConfigError(f"there is no file {name} on the coordinator's machine", path=ARRAYS_FILE)
        if path.suffix != ".safetensors" or not path.stat().st_size:  # files of /proc are empty, and may wait for ever
            raise ConfigError(f"{name} is no .safetensors file, or an empty one", path=ARRAYS_FILE)
        check_safetensors(path)
        return path.read_bytes()
    except Malformed as error:
        raise ConfigError(f"{name}: {error.message}", path=ARRAYS_FILE) from error
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}", path=ARRAYS_FILE) from error


def check_public(name: str) -> Outline:
    """Whether `public.data` can be used, without holding it in memory. Raises `ConfigError`."""
    path = _whole(name, PUBLIC_DATA)
    try:
        return outline_of_file(path, max_bytes=MAX_PUBLIC_BYTES)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}", path=PUBLIC_DATA) from error
    except NotFound as error:
        raise ConfigError(f"there is no file {name} on the coordinator's machine", path=PUBLIC_DATA) from error
    except Malformed as error:
        raise ConfigError(error.message, path=PUBLIC_DATA, detail=error.detail) from error


def require_fit(examples: Outline, schema: InputSchema, name: str, *, where: str = "") -> None:
    """Raises `ConfigError` unless the examples in the file `name` are what the model takes."""
    if examples.shape != schema.shape or examples.highest >= len(schema.classes):
        raise ConfigError(
            f"{name} holds examples of shape {list(examples.shape)} with labels up to {examples.highest}; the model takes "
            f"{list(schema.shape)} and {len(schema.classes)} classes",
            path=where,
        )


def _whole(name: str, where: str) -> Path:
    path = Path(name)
    if not path.is_absolute():
        raise ConfigError(f"write the whole path of a file on the coordinator's machine, not {name}", path=where)
    return path
