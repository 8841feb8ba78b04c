"""What the `coordinator` command prints and how it ends."""

import contextlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from coordinator.cli.render import Column, print_fields, print_table, print_text
from coordinator.cli.root import cli
from protos.fleet.v1 import admin_pb2
from shared.cli import run_cli
from shared.errors import ConfigError, NotFound, Unavailable

HOSTILE = "[bold red]ok[/] [link=https://evil.example]here[/link] \x1b]0;owned\x07\x1b[2J\ud800\n[/]"


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            if isinstance(found, click.Group):
                yield from every_command(found, (*path, name))
            else:
                yield (*path, name)


COMMANDS = [" ".join(path) for path in every_command(cli)]  # click types a decorated group as a command


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_of_every_command_shows_how_it_is_typed(path: str) -> None:
    shown = CliRunner().invoke(cli, [*path.split(), "--help"])

    assert shown.exit_code == 0
    assert f"\n  coordinator {path}" in shown.output
    assert ("--json" in shown.output) or path in ("init", "serve")


def test_markup_and_escape_sequences_of_a_device_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([HOSTILE], [("REASON", lambda text: text)], empty="none")
    print_fields([("reason", HOSTILE)])
    print_text(HOSTILE)

    shown = capsys.readouterr().out
    assert shown.count("[bold red]ok[/]") == 3
    assert shown.replace("\n", "").isprintable()
    assert len(shown.splitlines()) == 4, "a reason adds no line of its own to a table"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (NotFound("no device 'x'"), 3, "error: no device 'x'\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            20,
            "error: [Errno 2] No such file or directory: '/x'\n",
        ),
        (Unavailable("the database says: one\ntwo"), 23, "error: the database says: one two\n"),
    ],
)
def test_a_failure_is_one_line_and_the_exit_code_of_its_class(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["fails"])
    with pytest.raises(SystemExit) as ended:
        run_cli(fails)

    assert (ended.value.code, capsys.readouterr().err) == (code, said)


def test_a_command_that_was_interrupted_ends_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["interrupted"])
    with pytest.raises(SystemExit) as ended:
        run_cli(interrupted)

    assert ended.value.code == 130


ROWS = [("rol-1", "paused", "three of four devices were silent for an hour"), ("rol-2", "completed", "-")]
COLUMNS_SHOWN: list[Column] = [("ROLLOUT", itemgetter(0)), ("STATE", itemgetter(1))]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_table(ROWS, COLUMNS_SHOWN, empty="none", tail=("REASON", itemgetter(2)))
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


def test_on_a_narrow_terminal_a_reason_goes_below_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert printed(capsys) == [
        "ROLLOUT  STATE",
        "rol-1    paused",
        "  reason: three of four devices were silent for an hour",
        "rol-2    completed",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "--advertise", "http://fleet:1"],
        ["init", "--advertise", ""],
        ["init", "--database-url", "mysql://somewhere"],
        ["init", "--port-base", "65534"],
        *(["token", "create", "--valid-for", value] for value in ("nan", "inf", "1e300", "-1")),
        ["rollout", "start", "digits", "--release", "-1"],
    ],
)
def test_an_impossible_argument_is_refused_before_anything_is_made(arguments: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    outcome = CliRunner().invoke(cli, [*arguments, "--home", str(home)])
    assert isinstance(outcome.exception, ConfigError) or outcome.exit_code == 2
    assert not home.exists()


def test_a_job_file_that_is_no_text_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_bytes(b"\xff\xfe")
    outcome = CliRunner().invoke(cli, ["job", "submit", str(file), "--home", str(tmp_path)])
    assert isinstance(outcome.exception, ConfigError)
    assert "cannot be read as text" in str(outcome.exception)


class Watched:
    """A coordinator whose job or rollout ends as it is told."""

    def __init__(self, end: str) -> None:
        self.end = end

    def WatchJob(self, request: admin_pb2.JobRequest) -> Iterator[admin_pb2.JobEvent]:  # noqa: N802
        yield admin_pb2.JobEvent(round=1, kind="COMMITTED")
        yield admin_pb2.JobEvent(kind=f"job.{self.end}")

    def WatchRollout(self, request: admin_pb2.RolloutRequest) -> Iterator[admin_pb2.Rollout]:  # noqa: N802
        yield admin_pb2.Rollout(state="STAGING")
        yield admin_pb2.Rollout(state=self.end)


@pytest.mark.parametrize("json", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("noun", "end", "code"),
    [
        ("job", "completed", 0),
        ("job", "failed", 40),
        ("job", "stopped", 40),
        ("rollout", "COMPLETED", 0),
        ("rollout", "REFUSED", 40),
        ("rollout", "UNDONE", 40),
    ],
)
def test_what_follows_a_watch_with_and_happens_only_if_all_went_well(
    noun: str, end: str, code: int, json: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"coordinator.cli.commands.{noun}_watch"
    monkeypatch.setattr(f"{module}.admin", lambda where: contextlib.nullcontext(Watched(end)))
    outcome = CliRunner().invoke(cli, [noun, "watch", "x", *json])
    assert outcome.exit_code == code
    assert len(outcome.output.splitlines()) == 2
