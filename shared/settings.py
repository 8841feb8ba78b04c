"""TOML → one frozen dataclass, strictly: unknown keys, wrong types and impossible values are refused, with the key's path.

A dataclass checks its own values in `__post_init__` with `ValueError`; here that becomes a `ConfigError` that names the place.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cattrs import ClassValidationError, Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from shared.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")
Scalar = bool | int | float | str
Numbers = float | tuple[float, ...]  # one for all, or one each
_UNKNOWN = "unknown key "
_converter = Converter(forbid_extra_keys=True)


def _strictly(kind: type) -> Any:
    def structure(value: Any, _: type) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {type(value).__name__} {value!r}")
        return value

    return structure


def _number(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, found {type(value).__name__} {value!r}")
    return float(value)


def _scalar(value: Any, _: type) -> Any:
    if type(value) not in (bool, int, float, str):
        raise TypeError(f"expected a plain value, found {type(value).__name__} {value!r}")
    return value


def _numbers(value: Any, _: type) -> Numbers:
    if isinstance(value, list | tuple):
        return tuple(_number(item, float) for item in value)
    return _number(value, float)


@_converter.register_structure_hook_factory(dataclasses.is_dataclass)
def _table(kind: Any, converter: Converter) -> Any:
    structure = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def structure_table(value: Any, _: type) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a table, found {type(value).__name__} {value!r}")
        return structure(value, kind)

    return structure_table


for _kind in (bool, int, str):
    _converter.register_structure_hook(_kind, _strictly(_kind))
_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(Scalar, _scalar)
_converter.register_structure_hook(Numbers, _numbers)
_converter.register_structure_hook(Path, lambda value, _: Path(_strictly(str)(value, str)))


def from_mapping(kind: type[T], values: Any, *, where: str = "") -> T:
    """`values` (as TOML or JSON gives it) as a `kind`. Raises `ConfigError` naming the first key at fault."""
    try:
        return _converter.structure(values, kind)
    except ClassValidationError as error:
        found = transform_error(error, path=where or kind.__name__, format_exception=_explain)
        message, _, path = min(found, key=_typing_mistakes_first).partition(" @ ")
        raise ConfigError(message, path=path) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error), path=where or kind.__name__) from error


def _explain(error: BaseException, kind: type | None) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        return _UNKNOWN + ", ".join(_with_hint(key, error.cl) for key in sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"missing key {error.args[0]}"
    return str(error)


def _typing_mistakes_first(message: str) -> bool:
    """A key that is misspelt is missing too: say the former."""
    return not message.startswith(_UNKNOWN)


def _with_hint(key: str, kind: Any) -> str:
    known = [item.name for item in dataclasses.fields(kind)]
    close = difflib.get_close_matches(key, known, n=1)
    return f"{key} (did you mean {close[0]}?)" if close else key


def parse_table(text: str, *, where: str = "") -> dict[str, Any]:
    """Raises `ConfigError`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", path=where) from error


def parse_toml(kind: type[T], text: str, *, where: str = "") -> T:
    """Raises `ConfigError`."""
    return from_mapping(kind, parse_table(text, where=where), where=where)


def load_toml(kind: type[T], path: Path) -> T:
    """Raises `ConfigError`, also when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=str(path)) from error
    return parse_toml(kind, text, where=str(path))


def with_overrides(config: D, overrides: Mapping[str, Any] | None) -> D:
    """A frozen dataclass with those `overrides` that are not None, as flags give them. Raises `ConfigError`."""
    try:
        return dataclasses.replace(
            config, **{key: value for key, value in (overrides or {}).items() if value is not None}
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
