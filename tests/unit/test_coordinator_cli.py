"""What the `coordinator` command prints and how it ends."""

import contextlib
import io
import os
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.builder import Builder, Initial
from coordinator.cli.parse import parse_arguments
from coordinator.cli.render import Column, print_fields, print_table, print_text, progress
from coordinator.cli.root import cli
from coordinator.releases.plan import RolloutPlan
from coordinator.store.engine import open_engine
from protos.fleet.v1 import admin_pb2
from shared.cli import run_cli
from shared.errors import ChildFailed, ConfigError, InputError, NotFound, Unavailable

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
    assert ("--json" in shown.output) or path in ("init", "serve", "job example")
    assert max(map(len, shown.output.splitlines())) <= 80


@pytest.mark.parametrize("noun", ["", *sorted({path.split()[0] for path in COMMANDS if " " in path})])
def test_the_list_of_commands_says_what_each_does_in_whole_sentences(noun: str) -> None:
    shown = CliRunner().invoke(cli, [*noun.split(), "--help"], terminal_width=80)

    assert shown.exit_code == 0
    assert "..." not in shown.output.partition("Commands:")[2]
    assert max(map(len, shown.output.splitlines())) <= 80


def test_the_plan_in_the_help_of_rollouts_is_one() -> None:
    shown = CliRunner().invoke(cli, ["rollout", "start", "--help"]).output
    plan = RolloutPlan.parse(shown.partition("careful.toml:\n")[2].partition("\n\n")[0])
    assert (plan.stages, plan.gate.accuracy_budget) == ((1, 5, 0.5, 1.0), 0.01)


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


def test_an_argument_that_is_no_text_is_refused_before_a_library_trips_over_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["coordinator", "device", "show", os.fsdecode(b"dev\xff")])
    with pytest.raises(SystemExit) as ended:
        run_cli(cli)

    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the argument b'dev\\xff' is not valid UTF-8\n"


def test_a_command_that_was_interrupted_ends_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["interrupted"])
    with pytest.raises(SystemExit) as ended:
        run_cli(interrupted)

    assert ended.value.code == 130


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


BAD_URLS = {
    "mysql://somewhere": "begins with postgresql",
    "postgresql://fleet": "begins with postgresql",
    "nonsense": "cannot be read as a URL",
    "postgresql+psycopg://u:secret@host:port/fleet": "cannot be read as a URL",
    "postgresql+psycopg://u:p@ssword:secret@db:5432/fleet": "write %40 for @",
    "postgresql+psycopg://host/fleet?speed=9": 'invalid connection option "speed"',
    "sqlite:///": "absolute path",
    "sqlite:///fleet.db": "absolute path",
}


@pytest.mark.parametrize(("url", "says"), BAD_URLS.items())
def test_a_database_that_cannot_be_is_refused_in_one_line_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        open_engine(url)
    assert refused.value.path == "database_url"
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "--advertise", "http://fleet:1"],
        ["init", "--advertise", ""],
        *(["init", "--database-url", url] for url in BAD_URLS),
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


class OneRound:
    """A coordinator that knows one round, of devices in these groups."""

    def __init__(self, *groups: int) -> None:
        self.groups = groups

    def GetRound(self, request: admin_pb2.RoundRequest, timeout: float) -> admin_pb2.Round:  # noqa: N802
        devices = [
            admin_pb2.RoundDevice(name=f"d{place}", outcome="counted", group=group)
            for place, group in enumerate(self.groups)
        ]
        return admin_pb2.Round(state="COMMITTED", attempt=1, devices=devices)


@pytest.mark.parametrize(
    ("groups", "shown"),
    [
        ((0, 0), ["DEVICE OUTCOME", "d0 counted", "d1 counted"]),
        ((2, 1), ["DEVICE GROUP OUTCOME", "d1 1 counted", "d0 2 counted"]),
    ],
    ids=["one sum", "two groups"],
)
def test_a_round_shows_who_was_in_which_group_where_there_were_several(
    groups: tuple[int, ...], shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "coordinator.cli.commands.round_show"
    monkeypatch.setattr(f"{module}.admin", lambda where: contextlib.nullcontext(OneRound(*groups)))
    outcome = CliRunner().invoke(cli, ["round", "show", "x", "1"], catch_exceptions=False)
    table = [" ".join(line.split()) for line in outcome.output.splitlines()[-3:]]
    assert [row[: len(wanted)] for row, wanted in zip(table, shown, strict=True)] == shown


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


def test_the_arguments_of_a_network_are_numbers_and_truth_values_where_they_look_so() -> None:
    typed = ["width=16", "ratio=0.5", "deep=true", "shape=1x28x28", "classes=cat,dog", 'name="7"', "day=2026-11-24"]
    assert parse_arguments(typed) == {
        "width": 16,
        "ratio": 0.5,
        "deep": True,
        "shape": "1x28x28",
        "classes": "cat,dog",
        "name": "7",
        "day": "2026-11-24",
    }
    with pytest.raises(ConfigError, match="an argument is KEY=VALUE, not 'width'"):
        parse_arguments(["width"])


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


@pytest.mark.parametrize(
    "more",
    {
        "a rate that is no number": ("--lr", "nan"),
        "an argument without a value": ("--arg", "width"),
        "a folder that is there": ("--out", "."),
        "a file that is no archive": (),
    }.values(),
)
def test_a_model_that_cannot_be_built_is_refused_before_a_worker_starts(more: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_bytes(b"junk")
    out = tmp_path / "bundle"
    words = ["model", "build", "--factory", "cnn-small", "--data", str(tmp_path / "junk.npz"), "--out", str(out), *more]
    outcome = CliRunner().invoke(cli, words)
    assert isinstance(outcome.exception, InputError)
    assert not out.exists()


def built(folder: Path, labels: list[int], monkeypatch: pytest.MonkeyPatch, *more: str, out: str = "bundle") -> Result:
    """`model build` where a worker that starts is an error of its own."""

    async def start(self: Builder, ask: Initial) -> None:
        raise ChildFailed(f"a worker starts: {ask.arguments}")

    monkeypatch.setattr(Builder, "initial", start)
    np.savez(folder / "data.npz", x=np.zeros((len(labels), 1, 4, 4), np.float32), y=np.array(labels))
    words = ["model", "build", "--factory", "cnn-small", "--data", str(folder / "data.npz"), "--out", str(folder / out)]
    return CliRunner().invoke(cli, [*words, *more])


@pytest.mark.parametrize("out", ["data.npz/bundle", "data.npz/new/bundle", "n" * 250])
def test_a_place_that_cannot_be_written_is_found_out_before_the_training(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = built(tmp_path, [0, 1], monkeypatch, out=out).exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"--out {tmp_path / out} cannot be made: ")


def test_folders_that_were_made_for_a_build_that_failed_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    assert isinstance(built(tmp_path, [0, 1], monkeypatch, out="mine/new/folder/bundle").exception, ChildFailed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_one_wrong_label_does_not_make_a_network_of_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [*range(10), 77]
    error = built(tmp_path, labels, monkeypatch).exception
    meant = built(tmp_path, labels, monkeypatch, "--arg", "classes=78").exception
    whole = built(tmp_path, labels[:10], monkeypatch).exception

    assert type(error) is InputError
    assert str(error) == (
        "data.npz has label 77, but no example of 67 labels below it, such as 10:"
        " correct the labels, or say --arg classes=78"
    )
    assert str(meant) == "a worker starts: {'shape': '1x4x4', 'classes': 78}"
    assert str(whole) == "a worker starts: {'shape': '1x4x4', 'classes': 10}"
