"""What the `edge-agent` command prints and how it ends."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.cli import cli
from edge_agent.client_app import memory
from edge_agent.config import Home
from edge_agent.ledger import FileLedgers
from edge_agent.report import as_lines
from edge_agent.storage import Chunk, DataStore
from shared.cli import run_cli
from shared.privacy.accountant import Budget, epsilon
from shared.privacy.events import Skellam
from shared.privacy.ledger import Charge
from shared.signing.tokens import JoinToken
from tests.unit.test_coordinator_cli import every_command

COMMANDS = [" ".join(path) for path in every_command(cli)]
TOKEN = JoinToken.create("0" * 64).text


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program in this process, with a home of its own."""

    def typed(*words: str) -> Done:
        monkeypatch.setattr("sys.argv", ["edge-agent", *words, "--home", str(tmp_path / "home")])
        with pytest.raises(SystemExit) as ended:
            run_cli(cli)
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capsys.readouterr())

    return typed


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[str, list[int]], str]:
    """Writes an ingestable file with these labels."""

    def write(name: str, labels: list[int]) -> str:
        x = np.random.default_rng(len(labels)).random((len(labels), 1, 2, 2)).astype(np.float32)
        np.savez(tmp_path / name, x=x, y=np.array(labels))
        return str(tmp_path / name)

    return write


def join(coordinator: str, name: str, *more: str, token: str = TOKEN) -> tuple[str, ...]:
    return ("enroll", "--coordinator", coordinator, "--name", name, "--token", token, *more)


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_of_every_command_shows_how_it_is_typed(path: str) -> None:
    shown = CliRunner().invoke(cli, [*path.split(), "--help"])
    assert shown.exit_code == 0
    assert f"\n  edge-agent {path}" in shown.output
    assert ("--json" in shown.output) or path in ("run", "data remove")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    {
        "not enrolled": (
            ("status",),
            3,
            "run `edge-agent enroll --coordinator HOST:PORT --name NAME --token-file FILE`",
        ),
        "no token": (("enroll", "--coordinator", "a:1", "--name", "x"), 2, "either --token or --token-file"),
        "half a token": (join("a:1", "x", token="shoal1.abc"), 2, "cut off"),
        "no token at all": (join("a:1", "x", token="junk"), 2, "begins with shoal1."),
        "no port": (join("nowhere", "x"), 2, "--coordinator is HOST:PORT, not 'nowhere'"),
        "port 0": (join("a:0", "x"), 2, "--coordinator is HOST:PORT, not 'a:0'"),
        "a URL": (join("http://a:7450", "x"), 2, "HOST:PORT, without a scheme or a path, not 'http://a:7450'"),
        "a name with a space": (join("a:1", "A b"), 2, "not a valid name: 'A b'"),
        "a label without a value": (join("a:1", "x", "--label", "site"), 2, "a label is KEY=VALUE, not 'site'"),
        "a label with a capital": (join("a:1", "x", "--label", "Site=lab"), 2, "not a valid name: 'Site'"),
        "no file": (("ingest", "/nowhere.npz"), 3, "no file /nowhere.npz"),
        "a file of another kind": (("ingest", __file__), 2, "is neither .npz nor .safetensors"),
        "a file that is not ingested": (("data", "remove", "a.npz"), 3, "no ingested file 'a.npz'"),
    }.values(),
)
def test_a_failure_is_one_line_and_an_exit_code(run: Run, words: tuple[str, ...], code: int, complaint: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (code, "")
    assert complaint in done.err
    assert done.err.count("\n") == 1


def test_a_token_file_that_is_no_text_is_no_token(run: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(bytes(range(128, 256)))
    done = run("enroll", "--coordinator", "a:1", "--name", "x", "--token-file", str(tmp_path / "token"))
    assert (done.code, "not a join token" in done.err) == (2, True)


def test_what_was_ingested_is_listed_and_can_be_removed(run: Run, shard: Callable[[str, list[int]], str]) -> None:
    monday, tuesday = shard("monday.npz", [0, 1, 2, 5]), shard("tuesday.npz", [1, 1, 77])
    assert run("data", "list").out == "no examples yet: add some with `edge-agent ingest FILE`\n"
    first, second = json.loads(run("ingest", monday, tuesday, "--json").out)
    assert (first["file"], first["added"], second["added"]) == (monday, 4, 3)
    assert run("ingest", monday).out == f"{monday}: nothing new, it is here as {first['name']}\n"

    listed = json.loads(run("data", "list", "--json").out)
    assert [(one["name"], one["file"], one["examples"]) for one in listed] == [
        (first["name"], "monday.npz", 4),
        (second["name"], "tuesday.npz", 3),
    ]
    assert (listed[1]["labels"], listed[1]["shape"], listed[1]["damaged"]) == ({"1": 2, "77": 1}, [1, 2, 2], False)
    title, *rows = run("data", "list").out.splitlines()
    assert title.split() == ["NAME", "EXAMPLES", "LABELS", "KB", "INGESTED", "(UTC)", "FILE"]
    assert [row.split("  ")[0] for row in rows] == [first["name"], second["name"]]
    assert "0-2, 5" in rows[0]
    assert "1, 77" in rows[1]

    assert run("data", "remove", "tuesday.npz").out == f"{second['name']} removed\n"
    assert [one["name"] for one in json.loads(run("data", "list", "--json").out)] == [first["name"]]


EVENT = Skellam(variance=400.0, contributors=50, squared_norm=900, dimension=1000)


@pytest.fixture
def spent(run: Run, shard: Callable[[str, list[int]], str], tmp_path: Path) -> Home:
    """A home with monday's file, over which a job had two rounds, and tuesday's."""
    home = Home(tmp_path / "home")
    run("ingest", shard("monday.npz", [0, 1, 2, 5]))
    ledgers = FileLedgers(home.ledger, DataStore(home.data).epochs)
    for number in range(2):
        ledgers.spend(Charge("run 7", f"round-{number}", EVENT, Budget(4.0, 1e-5)), ledgers.epochs())
    run("ingest", shard("tuesday.npz", [1, 1, 77]))
    return home


def privacy(run: Run) -> list[object]:
    return [one["privacy"] for one in json.loads(run("data", "list", "--json").out)]


def cells(run: Run) -> list[str]:
    """What is in the column EPSILON."""
    title, *rows = run("data", "list").out.splitlines()
    start, end = title.index("EPSILON"), title.index("FILE")
    return [row[start:end].strip() for row in rows]


def test_what_private_jobs_have_cost_each_file_is_listed_beside_it(run: Run, spent: Home) -> None:
    at_ours = epsilon({EVENT: 2}, 1e-6)
    assert privacy(run) == [{"epsilon": at_ours, "limit": None, "delta": 1e-6}, None]
    assert cells(run) == [f"{at_ours:.3g}", "-"]

    (spent.path / "agent.toml").write_text("max_epsilon = 8\nmax_epsilon_delta = 1e-5\n")
    looser = epsilon({EVENT: 2}, 1e-5)
    assert looser < at_ours
    assert privacy(run) == [
        {"epsilon": looser, "limit": 8.0, "delta": 1e-5},
        {"epsilon": 0.0, "limit": 8.0, "delta": 1e-5},
    ]
    assert cells(run) == [f"{looser:.3g} of 8", "0 of 8"]


def test_where_nothing_was_spent_and_nothing_is_limited_no_privacy_is_listed(
    run: Run, shard: Callable[[str, list[int]], str]
) -> None:
    run("ingest", shard("monday.npz", [0, 1]))
    assert privacy(run) == [None]
    assert "EPSILON" not in run("data", "list").out


def test_a_cost_that_has_no_bound_is_no_number_in_json(run: Run, spent: Home) -> None:
    (spent.path / "agent.toml").write_text("max_epsilon_delta = 1e-300\n")
    assert privacy(run) == [{"epsilon": None, "limit": None, "delta": 1e-300}, None]
    assert cells(run) == ["inf", "-"]


def test_files_are_listed_also_when_the_ledger_is_damaged(run: Run, spent: Home) -> None:
    spent.ledger.write_text("nothing spent\n")
    assert privacy(run) == [{"epsilon": None, "limit": None, "delta": 1e-6}] * 2
    assert cells(run) == ["ledger damaged"] * 2


@pytest.mark.parametrize("again", ["before", "meanwhile", "gone already"])
def test_with_a_file_goes_what_is_remembered_of_it_also_where_a_former_removal_was_killed(
    again: str, run: Run, shard: Callable[[str, list[int]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = tmp_path / "home" / "state" / "app" / memory.FILE
    path = shard("monday.npz", [0, 1, 2, 5])
    run("ingest", path)
    remove = DataStore.remove

    def remember() -> None:
        memory.absorb(
            DataStore(tmp_path / "home" / "data"),
            buffer.parent,
            9,
            np.random.default_rng(0),
            shape=(1, 2, 2),
            classes=9,
        )
        assert buffer.exists()

    def removing(store: DataStore, name: str) -> Chunk:
        assert not buffer.exists(), "killed after this, the file would be gone and its examples would not"
        if again == "meanwhile":
            remember()
        return remove(store, name)

    remember()
    monkeypatch.setattr(DataStore, "remove", removing)
    if again == "gone already":
        next((tmp_path / "home" / "data").iterdir()).unlink()
    assert run("data", "remove", path).code == (3 if again == "gone already" else 0)
    assert list(buffer.parent.iterdir()) == []


def test_many_labels_are_told_by_their_number(run: Run, shard: Callable[[str, list[int]], str]) -> None:
    run("ingest", shard("a.npz", list(range(0, 200, 2))))
    assert "0 to 198, 100 of them" in run("data", "list").out


def test_the_status_keeps_tasks_apart_that_ended_differently() -> None:
    ended = {"done": 1, "failed": 2, "refused": 12, "cancelled": 3}
    status = {"name": "cam-1", "device": "dev-1", "running": True, "reason": "", "session": "attached"}
    rest = {"inference": "127.0.0.1:1", "tasks_ended": ended, "tasks": ["tsk-1"], "models": [], "installs": []}
    lines = list(as_lines({**status, **rest, "unacknowledged": 0, "spooled_metrics": 0}))
    assert "tasks       1 done, 2 failed, 12 refused, 3 cancelled, 1 under way" in lines
