"""What `coordinator` prints: tables that fit, nothing that a device could make a terminal obey."""

import io
from operator import itemgetter

import pytest

from coordinator.cli.render import Column, print_fields, print_table, print_text, progress

HOSTILE = "[bold red]ok[/] [link=https://evil.example]here[/link] \x1b]0;owned\x07\x1b[2J\ud800\n[/]"


def test_markup_and_escape_sequences_of_a_device_are_shown_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([HOSTILE], [("REASON", lambda text: text)], empty="none")
    print_fields([("reason", HOSTILE)])
    print_text(HOSTILE)

    shown = capsys.readouterr().out
    assert shown.count("[bold red]ok[/]") == 3
    assert shown.replace("\n", "").isprintable()
    assert len(shown.splitlines()) == 4, "a reason adds no line of its own to a table"


ROWS = [("rol-1", "paused", "three of four devices were silent for an hour"), ("rol-2", "completed", "-")]
COLUMNS_SHOWN: list[Column] = [("ROLLOUT", itemgetter(0)), ("STATE", itemgetter(1)), ("REASON", itemgetter(2))]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_table(ROWS, COLUMNS_SHOWN, empty="none")
    return capsys.readouterr().out.splitlines()


def test_a_program_that_reads_a_listing_gets_a_row_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert printed(capsys) == [
        "ROLLOUT  STATE      REASON",
        "rol-1    paused     three of four devices were silent for an hour",
        "rol-2    completed  -",
    ]


NARROW = {
    "room for all": (
        70,
        [
            "ROLLOUT  STATE      REASON",
            "rol-1    paused     three of four devices were silent for an hour",
            "rol-2    completed  -",
        ],
    ),
    "room for two columns": (
        30,
        [
            "ROLLOUT  STATE",
            "rol-1    paused",
            "  reason: three of four",
            "    devices were silent for an",
            "    hour",
            "rol-2    completed",
        ],
    ),
    "room for one column": (
        16,
        [
            "ROLLOUT",
            "rol-1",
            "  state: paused",
            "    reason:",
            "    three of",
            "    four devices",
            "    were silent",
            "    for an hour",
            "rol-2",
            "  state:",
            "    completed",
        ],
    ),
    "no room at all": (5, ["ROLLOUT", "rol-1", "  state:"]),
}


@pytest.mark.parametrize(("width", "lines"), NARROW.values(), ids=NARROW)
def test_on_a_narrow_terminal_the_last_columns_go_below_their_row(
    width: int, lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert printed(capsys)[: len(lines)] == lines


def test_on_a_narrow_terminal_a_long_value_goes_on_below_itself_and_what_is_copied_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "26")
    print_fields([("state", "paused (too few devices)"), ("manifest", "0123456789abcdef01234567")])
    assert capsys.readouterr().out.splitlines() == [
        "state     paused (too few",
        "          devices)",
        "manifest  0123456789abcdef01234567",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)], ids=["terminal", "file"])
def test_progress_is_for_people_alone(stream: type[io.StringIO], shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = stream()
    monkeypatch.setattr("sys.stderr", console)
    with progress() as say:
        say("epoch 1 of 4: [red]loss 0.5\x1b[2J")
    written = console.getvalue()
    assert ("epoch 1 of 4: [red]loss 0.5" in written) is shown
    assert "\x1b[2J" not in written
