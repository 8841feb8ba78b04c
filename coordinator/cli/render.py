"""What commands print: JSON for programs, tables for people, colour only on a terminal."""

import contextlib
import datetime
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def print_table(rows: Iterable[Any], columns: Sequence[Column], *, empty: str) -> None:
    """A row a line; `empty` when there are no rows. The columns that matter most come first: on a terminal too narrow for all, the
    last ones go below their row. Cells are shown as they are: devices wrote some of them.
    """
    titles = [title for title, _ in columns]
    cells = [[clean_text(cell(row), CELL_LIMIT) for _, cell in columns] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths, room = _widths(titles, cells), _room()
    fit = len(columns) if room is None else _how_many_fit(widths, room)
    click.echo(click.style(_line(titles[:fit], widths), bold=True))
    for row in cells:
        click.echo(_line(row[:fit], widths))
        below = [
            f"{title.lower()}: {cell}" for title, cell in zip(titles[fit:], row[fit:], strict=True) if cell != NOTHING
        ]
        if below:
            click.echo(_wrapped(GAP.join(below), room, first="  ", rest="    "))


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


def _how_many_fit(widths: Sequence[int], room: int) -> int:
    """Columns, one at least."""
    ends = itertools.accumulate(width + len(GAP) for width in widths)
    return max(1, sum(end - len(GAP) <= room for end in ends))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    return GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=False)).rstrip()


def _wrapped(text: str, room: int | None, *, first: str, rest: str) -> str:
    """Between words; what people copy stays whole."""
    if room is None:
        return first + text
    wrapper = textwrap.TextWrapper(room, first, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text) or first


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Where to say what is being done: on a terminal one line that changes, on standard error; elsewhere nowhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: None
        return
    with console.status("starting") as status:
        yield lambda line: status.update(Text(clean_text(line)))


def print_text(line: str) -> None:
    """One line of a stream for people."""
    click.echo(clean_text(line, CELL_LIMIT))


def print_fields(pairs: Iterable[tuple[str, str]]) -> None:
    """A name and a value a line."""
    pairs, room = list(pairs), _room()
    width = max(len(name) for name, _ in pairs) + len(GAP)
    for name, value in pairs:
        click.echo(_wrapped(clean_text(value, CELL_LIMIT), room, first=name.ljust(width), rest=" " * width))


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
    """`KEY=VALUE …`, sorted."""
    return " ".join(f"{key}={mapping[key]}" for key in sorted(mapping))
