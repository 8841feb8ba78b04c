"""What a simulation shows while it runs: a live panel on a terminal, plain lines with their second anywhere else.

Colour only on a terminal, and never with NO_COLOR set (rich sees to both).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.clock import Clock, SystemClock
from simulations.loadgen import LoadStatus
from simulations.outcome import Check, Outcome, Side, total
from simulations.report import kilobytes, milliseconds, percent

_LINES_SHOWN = 10


class Screen(Protocol):
    """Where a simulation tells what it does."""

    def step(self, number: int, text: str) -> None:
        """A new step of the story begins."""
        ...

    def say(self, text: str) -> None: ...

    def watch(self, panel: Callable[[], RenderableType]) -> None:
        """Show what `panel` returns, again and again, below the lines; plain output leaves it out."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class PlainScreen:
    """One line an event, each with the second it happened at."""

    console: Console
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self._start = self.clock.monotonic()

    def step(self, number: int, text: str) -> None:
        self._line(f"== {number}. {text}")

    def say(self, text: str) -> None:
        self._line(f"   {text}")

    def _line(self, text: str) -> None:
        seconds = self.clock.monotonic() - self._start
        self.console.print(f"{seconds:6.1f}s {text}", soft_wrap=True, highlight=False, markup=False)

    def watch(self, panel: Callable[[], RenderableType]) -> None:
        """Lines only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LiveScreen:
    """Finished steps scroll by; the present one, its last lines and a panel stay at the bottom."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._start = self._clock.monotonic()
        self._step = Text("")
        self._lines: list[Text] = []
        self._panel: Callable[[], RenderableType] | None = None
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def step(self, number: int, text: str) -> None:
        self._flush()
        self._step = Text.assemble((f"{self._seconds():6.1f}s ", "dim"), (f"{number}. {text}", "bold cyan"))

    def say(self, text: str) -> None:
        self._lines.append(Text.assemble((f"{self._seconds():6.1f}s ", "dim"), f"   {text}"))

    def watch(self, panel: Callable[[], RenderableType]) -> None:
        self._panel = panel

    def _seconds(self) -> float:
        return self._clock.monotonic() - self._start

    def _flush(self) -> None:
        """Move the finished step above the live part."""
        for text in [self._step, *self._lines] if self._step.plain else []:
            self._live.console.print(text)
        self._lines = []

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._step, *self._lines[-_LINES_SHOWN:]]
        if self._panel is not None:
            parts.append(self._panel())
        return Group(*parts)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._flush()


def screen(console: Console, *, plain: bool = False) -> Screen:
    """The one that fits where the output goes; `plain` on a terminal too."""
    return LiveScreen(console) if console.is_terminal and not plain else PlainScreen(console)


def load_line(status: LoadStatus | None) -> Text:
    """The live load so far."""
    if status is None:
        return Text("")
    text = Text.assemble(("live requests: ", "dim"), f"{status.answered:,} answered, ")
    text.append(f"{status.failed} failed", style="bold red" if status.failed else "green")
    text.append(f", median {status.p50_ms:.1f} ms")
    if status.releases:
        serving = ", ".join(f"{release} on {devices}" for release, devices in sorted(status.releases.items()))
        text.append(f"; release {serving}")
    return text


def closing_table(outcome: Outcome) -> Table:
    """Before and after, a line a device and one for the fleet."""
    table = Table(title=outcome.title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)  # eighty columns hold it
    for heading in ("device", "accuracy", "int8 model", "ms (p50)", "answered", "failed"):
        table.add_column(heading, justify="left" if heading == "device" else "right", no_wrap=True)
    for one in outcome.devices:
        table.add_row(one.name, *_sides(one.before, one.after), f"{one.answered:,}", _failed(one.failed))
    whole = total(outcome)
    table.add_section()
    sides = _sides(whole.before, whole.after)
    table.add_row("fleet", *sides, f"{whole.answered:,}", _failed(whole.failed), style="bold")
    return table


def _sides(before: Side, after: Side) -> tuple[str, str, str]:
    return (
        f"{percent(before.accuracy)} → {percent(after.accuracy)}",
        f"{kilobytes(before.bytes)} → {kilobytes(after.bytes)}",
        f"{milliseconds(before.p50_ms)} → {milliseconds(after.p50_ms)}",
    )


def _failed(count: int) -> Text:
    return Text(str(count), style="bold red" if count else "")


def closing_lines(outcome: Outcome) -> list[Text]:
    """The fleet's figures in words, then what had to hold."""
    whole = total(outcome)
    up, down = kilobytes(whole.bytes_up), kilobytes(whole.bytes_down)
    lines = [
        Text(f"a device's round: {up} up, {down} down; float32 FedAvg: {kilobytes(whole.fp32_bytes)} each way"),
        Text(f"rounds committed: {whole.rounds}; devices counted: {whole.counted:.1f} a round"),
        Text(f"requests cut by the kill: {whole.cut}; not sent while the device was gone: {outcome.held_back}"),
    ]
    return [*lines, *check_lines(outcome.checks)]


def check_lines(checks: Sequence[Check]) -> list[Text]:
    """What had to hold, a line each."""
    lines = []
    for check in checks:
        style = "green" if check.held else "bold red"
        mark = "held    " if check.held else "NOT HELD"
        lines.append(Text.assemble((mark, style), f"  {check.text} ({check.found})"))
    return lines


def show_closing(console: Console, outcome: Outcome) -> None:
    """Table and lines; wide enough not to be cut when the output is a file."""
    console.print(closing_table(outcome))
    for text in closing_lines(outcome):
        console.print(text, soft_wrap=True)
