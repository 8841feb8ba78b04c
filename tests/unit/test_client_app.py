"""The device's client apps, called as Flower calls them: a message in, a message out."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from edge_agent.client_app import load_app
from edge_agent.storage import DataStore
from shared.client_apps import UNFIT
from shared.errors import NotFound, UpdateRejected
from shared.flower import new_message, to_numpy
from shared.learning.models import initial_state
from shared.learning.spec import ModelSpec, new_spec
from tests.unit.learning.pictures import pictures

IMAGES = "image-classifier"
SPEC = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})
STATE = initial_state(SPEC, np.random.default_rng(0))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    DataStore(tmp_path / "data").ingest(*pictures(200))
    config: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "state_dir": str(tmp_path / "state")}
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})


def ask(arrays: dict[str, np.ndarray], *, kind: str = "train", spec: ModelSpec | None = SPEC, **config: Any) -> Message:
    values = {name.replace("_", "-"): value for name, value in config.items()}
    records: dict[str, Any] = {
        "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        "config": ConfigRecord({"server-round": 1, **values}),
    }
    if spec is not None:
        records["model"] = ConfigRecord({"json": spec.to_json()})
    return new_message(RecordDict(records), run_id=1, node_id=7, message_type=kind)


def arrays_of(reply: Message) -> dict[str, np.ndarray]:
    return {name: to_numpy(array) for name, array in reply.content.array_records["arrays"].items()}


def metrics_of(reply: Message) -> dict[str, Any]:
    return dict(reply.content.metric_records["metrics"])


def softmax_zeros() -> dict[str, np.ndarray]:
    return {"weight": np.zeros((10, 144), np.float32), "bias": np.zeros(10, np.float32)}


def test_an_unknown_app_lists_what_there_is() -> None:
    with pytest.raises(NotFound, match="echo, image-classifier, softmax"):
        load_app("os.system")


def test_echo_sends_back_what_came(context: Context) -> None:
    reply = load_app("echo")(ask({"w": np.arange(3)}, spec=None), context)
    assert np.array_equal(arrays_of(reply)["w"], np.arange(3))
    assert metrics_of(reply) == {"num-examples": 1}


def test_echo_with_a_spread_answers_a_little_above_what_came(context: Context) -> None:
    reply = load_app("echo")(ask({"w": np.ones(3, np.float32), "n": np.arange(3)}, spec=None, spread=0.5), context)
    assert np.all((arrays_of(reply)["w"] > 1) & (arrays_of(reply)["w"] < 1.5))
    assert np.array_equal(arrays_of(reply)["n"], np.arange(3))


def test_softmax_learns_round_by_round(context: Context) -> None:
    app, state = load_app("softmax"), softmax_zeros()
    for _ in range(4):
        state = arrays_of(app(ask(state, spec=None, lr=0.5), context))
    found = metrics_of(app(ask(state, spec=None, kind="evaluate"), context))
    assert found["eval_acc"] > 0.9


@pytest.mark.parametrize("name", ["echo", "softmax"])
def test_apps_for_large_fleets_load_no_torch(name: str) -> None:
    code = (
        f"import sys; from edge_agent.client_app import load_app; load_app({name!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_mod_is_around_training_and_evaluation(context: Context) -> None:
    seen: list[str] = []

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    app = load_app("softmax", [mod])
    app(ask(softmax_zeros(), spec=None), context)
    app(ask(softmax_zeros(), spec=None, kind="evaluate"), context)
    assert seen == ["train", "evaluate"]


@pytest.mark.slow
def test_the_image_classifier_learns_quantization_aware_round_by_round(context: Context) -> None:
    app, state = load_app("image-classifier"), STATE
    first = metrics_of(app(ask(state, lr=0.02), context))
    for number in range(1, 4):
        reply = app(ask(state, lr=0.02, epochs=2, server_round=number), context)
        assert list(arrays_of(reply)) == list(state)
        assert {a.dtype for a in arrays_of(reply).values()} == {np.dtype(np.float32)}
        assert all(arrays_of(reply)[name].shape == state[name].shape for name in state)
        state = arrays_of(reply)
    last = metrics_of(app(ask(state, kind="evaluate"), context))
    assert first["num-examples"] + last["num-examples"] == 200
    assert last["eval_acc"] > first["eval_acc_before"] + 0.4
    assert {"train_loss", "eval_loss_before", "drift", "confidence"} < first.keys()
    assert all(np.isfinite(value) for value in first.values())


def test_the_same_message_gives_the_same_update(context: Context) -> None:
    app = load_app("image-classifier")
    one, other = (arrays_of(app(ask(STATE, qat=False), context)) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_replay_buffer_is_kept_and_damage_to_it_only_costs_its_making(context: Context, tmp_path: Path) -> None:
    app, message = load_app("image-classifier"), ask(STATE, qat=False, replay_size=30, recent_examples=64)
    reply = app(message, context)
    kept = tmp_path / "state" / "replay.safetensors"
    first = kept.read_bytes()
    app(message, context)
    assert kept.read_bytes() == first
    kept.write_bytes(first[:100])
    app(message, context)
    assert kept.read_bytes() == first
    assert metrics_of(reply)["num-examples"] == 64


def test_new_data_that_looks_different_is_reported_as_drift(context: Context, tmp_path: Path) -> None:
    x, y = pictures(200, seed=3)
    app, message = load_app("image-classifier"), ask(STATE, qat=False)
    assert metrics_of(app(message, context))["drift"] == 0
    DataStore(tmp_path / "data").ingest(x * np.float32(0.3), y)
    assert metrics_of(app(message, context))["drift"] > 1


def poisoned() -> dict[str, np.ndarray]:
    return {**STATE, "0.0.weight": np.full_like(STATE["0.0.weight"], np.nan)}


UNFIT_TASKS: dict[str, tuple[str, Callable[[], Message], str]] = {
    "no model": (IMAGES, lambda: ask(STATE, spec=None), "no ConfigRecord 'model'"),
    "an unknown setting": (IMAGES, lambda: ask(STATE, learning_rate=0.1), "config.learning-rate: unknown key"),
    "an impossible setting": (IMAGES, lambda: ask(STATE, lr=-1.0), "config: lr is positive"),
    "a word for a number": (IMAGES, lambda: ask(STATE, epochs="many"), "config.epochs: expected int"),
    "arrays of another model": (IMAGES, lambda: ask({"w": np.zeros(3, np.float32)}), "not those of the model"),
    "NaN": (IMAGES, lambda: ask(poisoned()), "not those of the model"),
    "an unknown factory": (IMAGES, lambda: ask(STATE, spec=new_spec("evil", {})), "evil"),
    "a model for other pictures": (
        IMAGES,
        lambda: ask(initial_state(wide(), np.random.default_rng(0)), spec=wide()),
        r"\[1, 12, 20\]",
    ),
    "arrays for other features": (
        "softmax",
        lambda: ask({**softmax_zeros(), "weight": np.zeros((10, 9), np.float32)}, spec=None),
        "144 features",
    ),
    "more spread than there may be": ("echo", lambda: ask({"w": np.ones(3)}, spec=None, spread=2.0), "spread is"),
}


def wide() -> ModelSpec:
    return new_spec("cnn-small", {"shape": "1x12x20", "width": 8})


@pytest.mark.parametrize(("app", "message", "says"), UNFIT_TASKS.values(), ids=UNFIT_TASKS)
def test_a_task_that_the_device_cannot_do_is_answered_so_whatever_is_wrong_with_it(
    app: str, message: Callable[[], Message], says: str, context: Context
) -> None:
    reply = load_app(app)(message(), context)
    assert reply.error.code == UNFIT
    assert re.search(says, reply.error.reason or ""), reply.error.reason


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_training_that_diverges_is_a_failure_of_that_attempt(context: Context) -> None:
    with pytest.raises(UpdateRejected, match="lower lr"):
        load_app("softmax")(ask({name: array + 3e38 for name, array in softmax_zeros().items()}, spec=None), context)


def test_a_device_without_examples_says_so(tmp_path: Path) -> None:
    config: dict[str, Any] = {"data_dir": str(tmp_path), "state_dir": str(tmp_path)}
    empty = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    reply = load_app(IMAGES)(ask(STATE), empty)
    assert reply.error.code == UNFIT
    assert "ingest" in (reply.error.reason or "")
