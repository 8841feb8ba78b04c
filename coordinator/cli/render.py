"""What commands print: JSON for programs, tables for people, colour only on a terminal."""

import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from shared.text import clean_text

NOTHING = "-"  # an empty cell
GAP = "  "
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


def print_table(rows: Iterable[Any], columns: Sequence[Column], *, empty: str, tail: Column | None = None) -> None:
    """A row a line; `empty` when there are no rows. On a terminal too narrow for it, `tail` (free text) goes on a line of its
    own below its row, and what is still too wide is folded. Cells are shown as they are: devices wrote some of them.
    """
    shown = [*columns, tail] if tail else list(columns)
    cells = [[clean_text(cell(row), CELL_LIMIT) for _, cell in shown] for row in rows]
    if not cells:
        click.echo(empty)
        return
    titles, room = [title for title, _ in shown], _room()
    if room is None or _widest(titles, cells) <= room:
        _print_rows(titles, cells)
        return
    below = [f"  {titles[-1].lower()}: {row[-1]}" if tail and row[-1] != NOTHING else "" for row in cells]
    if tail:
        titles, cells = titles[:-1], [row[:-1] for row in cells]
    if _widest(titles, cells) <= room:
        _print_rows(titles, cells, below)
    else:
        _print_folded(titles, cells, below)


def _room() -> int | None:
    """Columns of the terminal; None when the output goes to a program, which gets whole rows."""
    import os
    import shutil
    import sys

    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if narrow else None


def _widths(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(titles, *cells, strict=True)]


def _widest(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    widths = _widths(titles, cells)
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _print_rows(titles: Sequence[str], cells: Sequence[Sequence[str]], below: Sequence[str] = ()) -> None:
    from rich.cells import cell_len

    widths = _widths(titles, cells)

    def line(row: Sequence[str]) -> str:
        return GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()

    click.echo(click.style(line(titles), bold=True))
    for row, text in zip(cells, below or [""] * len(cells), strict=True):
        click.echo(line(row))
        if text:
            click.echo(text)


def _print_folded(titles: Sequence[str], cells: Sequence[Sequence[str]], below: Sequence[str]) -> None:
    """The first column, which people copy, stays whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, overflow="fold", no_wrap=number == 0)
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False, soft_wrap=False).print(table)
    for row, text in zip(cells, below, strict=True):
        if text:
            click.echo(f"{row[0]}{text}")


def print_text(line: str) -> None:
    """One line of a stream for people."""
    click.echo(clean_text(line, CELL_LIMIT))


def print_fields(pairs: Iterable[tuple[str, str]]) -> None:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print_text(f"{name.ljust(width)}  {value}")


def moment(at: float) -> str:
    """A time in UTC, to the second; `-` for 0, `never` for one that no calendar holds."""
    if not at:
        return NOTHING
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "never"


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
