"""`coordinator model build`: what is refused before a worker starts."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.builder import Builder, Initial
from coordinator.cli.parse import parse_arguments
from coordinator.cli.root import cli
from shared.errors import ChildFailed, ConfigError, InputError


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
