"""What commands print: JSON for programs, tables for people, colour only on a terminal."""

import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from shared.text import clean_text

CELL_LIMIT = 10_000  # characters; what devices write was cut before
Column = tuple[str, Callable[[Any], str]]


def to_plain(message: Message) -> dict[str, Any]:
    """A message as JSON values. Whole numbers stay numbers, and `…_json` fields become what they hold."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            plain: Any = dict(value)
        elif field.is_repeated:
            plain = [to_plain(item) if field.type == FieldDescriptor.TYPE_MESSAGE else item for item in value]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            plain = to_plain(value)
        else:
            plain = value
        if field.name.endswith("_json"):
            out[field.name.removesuffix("_json")] = json.loads(plain) if plain else None
        else:
            out[field.name] = plain
    return out


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def print_line(value: Any) -> None:
    """One JSON value a line, for streams."""
    click.echo(json.dumps(value, sort_keys=True))


def print_table(rows: Iterable[Any], columns: Sequence[Column], *, empty: str) -> None:
    """A table that fits the terminal; `empty` when there are no rows. Cells are shown as they are: devices wrote some of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean_text(cell(row), CELL_LIMIT)) for _, cell in columns))
    Console(highlight=False, soft_wrap=False).print(table)


def print_text(line: str) -> None:
    """One line of a stream for people."""
    click.echo(clean_text(line, CELL_LIMIT))


def print_fields(pairs: Iterable[tuple[str, str]]) -> None:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print_text(f"{name.ljust(width)}  {value}")


def moment(at: float) -> str:
    """A time in UTC, to the second; empty for 0."""
    if not at:
        return "-"
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def labels(mapping: Any) -> str:
    return " ".join(f"{key}={mapping[key]}" for key in sorted(mapping))
