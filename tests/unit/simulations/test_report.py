import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shared.clock import ManualClock
from simulations import console, report
from simulations.answers import collect
from simulations.loadgen import LoadStatus
from simulations.outcome import Check, Outcome, total
from tests.unit.simulations.factories import some_answers, some_outcome


def test_the_report_is_a_page_that_needs_nothing_else_with_its_numbers_as_json(tmp_path: Path) -> None:
    outcome = some_outcome()
    page = report.write(tmp_path / "demo-report", outcome, some_answers(60)).read_text()
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "everything held" in page
    for device in outcome.devices:
        assert device.name in page
    numbers = json.loads((tmp_path / "demo-report" / "report.json").read_text())
    assert numbers["held"] is True
    assert numbers["total"]["rounds"] == 8
    assert {path.suffix for path in (tmp_path / "demo-report").iterdir()} == {".html", ".json", ".svg", ".safetensors"}


def test_words_from_a_device_are_escaped(tmp_path: Path) -> None:
    outcome = some_outcome()
    evil = replace(outcome.devices[0], name="<script>alert(1)</script>")
    page = report.write(tmp_path, replace(outcome, devices=(evil,)), some_answers(40)).read_text()
    assert "<script>" not in page


def test_a_check_that_does_not_hold_is_said_everywhere(tmp_path: Path) -> None:
    failing = (*some_outcome().checks, Check("no request failed", False, "3 of 900"))
    outcome = replace(some_outcome(), checks=failing)
    assert not outcome.held
    assert "something did not hold" in report.write(tmp_path, outcome, some_answers(40)).read_text()
    assert "NOT HELD  no request failed (3 of 900)" in _printed(outcome)


def test_a_run_that_ended_early_still_gives_a_report(tmp_path: Path) -> None:
    outcome = replace(some_outcome(), devices=(), rounds=(), marks=())
    assert report.write(tmp_path, outcome, collect([])).is_file()
    assert json.loads((tmp_path / "report.json").read_text())["total"]["bytes_up"] is None
    assert "rounds committed: 0" in _printed(outcome)


def test_totals_are_means_of_devices_and_of_committed_rounds_only() -> None:
    outcome = some_outcome()
    abandoned = replace(outcome.rounds[0], state="ABANDONED", counted=0, bytes_up=1e9)
    whole = total(replace(outcome, rounds=(*outcome.rounds, abandoned)))
    assert whole.rounds == 8
    assert whole.counted == pytest.approx((7 * 8 + 7) / 8)
    assert whole.bytes_up < 1e5
    assert whole.cut == 1


def _printed(outcome: Outcome, *, terminal: bool = False) -> str:
    file = io.StringIO()
    console.show_closing(Console(file=file, width=120, force_terminal=terminal), outcome)
    return file.getvalue()


def test_the_closing_table_has_a_line_a_device_and_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    plain = _printed(some_outcome())
    assert plain.count("device-") == 8
    assert "fleet" in plain
    assert "\x1b" not in plain
    assert "\x1b[" in _printed(some_outcome(), terminal=True)


def test_plain_output_is_lines_with_their_second() -> None:
    file, clock = io.StringIO(), ManualClock()
    with console.PlainScreen(Console(file=file, width=40), clock) as screen:
        screen.step(1, "enrol")
        clock.advance(2.5)
        screen.say("[8 devices] joined, " + "and a line longer than the width of the console is not broken")
        screen.watch(lambda: pytest.fail("plain output has no panel"))
    first, second = file.getvalue().splitlines()
    assert first == "   0.0s == 1. enrol"
    assert second.startswith("   2.5s    [8 devices] joined")


def test_a_live_screen_shows_what_became_of_live_requests() -> None:
    file = io.StringIO()
    status = LoadStatus(answered=1234, failed=0, cut=1, held_back=9, p50_ms=2.64, releases={"2": 3, "1": 5})
    with console.LiveScreen(Console(file=file, width=80, force_terminal=True), ManualClock()) as screen:
        screen.watch(lambda: console.load_line(status))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "live requests: 1,234 answered, 0 failed, median 2.6 ms; release 1 on 5, 2 on 3" in text
    assert console.load_line(None).plain == ""


def test_a_live_screen_leaves_every_line_behind_when_it_ends() -> None:
    file = io.StringIO()
    with console.LiveScreen(Console(file=file, width=80, force_terminal=True), ManualClock()) as screen:
        screen.watch(lambda: "panel")
        screen.step(1, "enrol")
        for number in range(30):
            screen.say(f"device {number} joined")
        screen.step(2, "serve")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert [line for line in text.splitlines() if "device 7 joined" in line]
    assert "2. serve" in text.splitlines()[-1]
