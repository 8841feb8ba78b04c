"""What both ends know of the built-in client apps: one reading of their settings, for a job's file and on a device."""

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode

from edge_agent.client_app.records import read_config
from shared.client_apps import (
    BUILT_IN,
    UNFIT,
    EchoConfig,
    ImageClassifierConfig,
    SoftmaxConfig,
    app_names,
    read_settings,
)
from shared.errors import ConfigError, Malformed

READ: dict[str, tuple[type[Any], dict[str, object], Any]] = {
    "nothing": (SoftmaxConfig, {}, SoftmaxConfig()),
    "hyphens": (SoftmaxConfig, {"batch-size": 8}, SoftmaxConfig(batch_size=8)),
    "underscores": (SoftmaxConfig, {"batch_size": 8}, SoftmaxConfig(batch_size=8)),
    "a whole number for a float": (ImageClassifierConfig, {"lr": 1}, ImageClassifierConfig(lr=1.0)),
    "what Flower's strategies add": (EchoConfig, {"server-round": 3, "proximal-mu": 0.5}, EchoConfig(3, 0.5)),
}
REFUSED: dict[str, tuple[type[Any], dict[str, object], str]] = {
    "an unknown name": (SoftmaxConfig, {"speed": 1}, "x.speed: unknown key; there are batch_size, epochs, lr, "),
    "a name twice": (SoftmaxConfig, {"batch-size": 8, "batch_size": 8}, "x.batch_size: given twice"),
    "text for a number": (SoftmaxConfig, {"lr": "fast"}, "x.lr: expected a number, found str 'fast'"),
    "a float for a count": (ImageClassifierConfig, {"epochs": 1.5}, "x.epochs: expected int"),
    "a number for a yes": (ImageClassifierConfig, {"qat": 1}, "x.qat: expected bool"),
    "a rate below zero": (ImageClassifierConfig, {"lr": -5}, "x: lr is positive"),
    "a rate that is NaN": (SoftmaxConfig, {"lr": float("nan")}, "x: lr is positive"),
    "an endless pull": (SoftmaxConfig, {"proximal_mu": float("inf")}, "x: proximal_mu"),
    "a batch of one where BatchNorm needs two": (ImageClassifierConfig, {"batch_size": 1}, "batch_size 2 to 4096"),
    "a negative buffer": (ImageClassifierConfig, {"replay_size": -1}, "replay_size"),
    "too much spread": (EchoConfig, {"spread": 1.5}, "x: spread is a number from 0 to 1"),
}


@pytest.mark.parametrize(("kind", "values", "expected"), READ.values(), ids=READ)
def test_settings_are_read_alike_from_a_job_and_from_a_message(
    kind: type[Any], values: dict[str, Any], expected: object
) -> None:
    assert read_settings(kind, values, where="x") == expected
    assert read_config(RecordDict({"config": ConfigRecord(values)}), kind) == expected


@pytest.mark.parametrize(("kind", "values", "says"), REFUSED.values(), ids=REFUSED)
def test_settings_are_refused_alike_in_a_job_and_in_a_message(
    kind: type[Any], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as asked:
        read_settings(kind, values, where="x")
    with pytest.raises(Malformed) as sent:
        read_config(RecordDict({"config": ConfigRecord(values)}), kind)
    assert says in asked.value.message
    assert sent.value.message == asked.value.message.replace("x", "config", 1)


def test_each_app_is_a_module_of_its_name_on_the_device() -> None:
    assert app_names() == sorted(BUILT_IN)
    for name in BUILT_IN:
        assert callable(import_module(f"edge_agent.client_app.{name.replace('-', '_')}").build)


def test_what_a_secret_sum_averages_is_what_the_app_reports() -> None:
    assert all(app.bounds.keys() <= app.trained for app in BUILT_IN.values())


def test_our_error_code_is_none_of_flowers() -> None:
    assert UNFIT not in {value for name, value in vars(ErrorCode).items() if name.isupper()}


def test_to_check_a_job_takes_neither_torch_nor_flower() -> None:
    code = "import sys, coordinator.rounds.plan, coordinator.rounds.inputs; sys.exit(bool({'torch', 'flwr'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
