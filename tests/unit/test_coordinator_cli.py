"""What the `coordinator` command says of itself, what it refuses and how it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from coordinator.cli.root import cli
from coordinator.releases.plan import RolloutPlan
from coordinator.store.engine import open_engine
from protos.fleet.v1 import admin_pb2
from shared.cli import run_cli
from shared.errors import ConfigError, NotFound, Unavailable


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
