"""`coordinator round show`: what became of each device, in words that are explained."""

import contextlib
import re

import pytest
from click.testing import CliRunner

from coordinator.cli.root import cli
from coordinator.rounds.round import Outcome
from protos.fleet.v1 import admin_pb2


class OneRound:
    """A coordinator that knows one round, of these devices."""

    def __init__(self, *devices: admin_pb2.RoundDevice) -> None:
        self.devices = devices

    def GetRound(self, request: admin_pb2.RoundRequest, timeout: float) -> admin_pb2.Round:  # noqa: N802
        return admin_pb2.Round(state="COMMITTED", attempt=1, devices=self.devices)


def table(monkeypatch: pytest.MonkeyPatch, *devices: admin_pb2.RoundDevice) -> list[str]:
    """Title and rows, with one blank between cells."""
    module = "coordinator.cli.commands.round_show"
    monkeypatch.setattr(f"{module}.admin", lambda where: contextlib.nullcontext(OneRound(*devices)))
    outcome = CliRunner().invoke(cli, ["round", "show", "x", "1"], catch_exceptions=False)
    return [" ".join(line.split()) for line in outcome.output.splitlines()[-1 - len(devices) :]]


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
    devices = [
        admin_pb2.RoundDevice(name=f"d{place}", outcome="counted", group=group) for place, group in enumerate(groups)
    ]
    found = table(monkeypatch, *devices)
    assert [row[: len(wanted)] for row, wanted in zip(found, shown, strict=True)] == shown


def test_the_examples_of_a_device_are_shown_secret_or_were_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = admin_pb2.RoundDevice(name="c", outcome="recovered", bytes_up=2500, seconds=1.25, reason="no answer")
    assert table(
        monkeypatch,
        admin_pb2.RoundDevice(name="a", outcome="counted", weight=7),
        admin_pb2.RoundDevice(name="b", outcome="counted"),
        lost,
    ) == [
        "DEVICE OUTCOME EXAMPLES UP DOWN SECONDS REASON",
        "a counted 7 0 B 0 B 0.0 -",
        "b counted secret 0 B 0 B 0.0 -",
        "c recovered - 2.5 KB 0 B 1.2 no answer",
    ]


@pytest.mark.parametrize("outcome", Outcome)
def test_the_help_explains_every_outcome(outcome: Outcome) -> None:
    shown = CliRunner().invoke(cli, ["round", "show", "--help"]).output
    assert re.search(rf"^  {outcome}  +\w+", shown, re.MULTILINE)
