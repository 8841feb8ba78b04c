"""A wrong label in an ingested file costs that example, not the device's part in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from edge_agent.client_app import load_app, memory
from edge_agent.storage import DataStore
from shared.client_apps import UNFIT
from tests.unit.learning.pictures import pictures
from tests.unit.test_client_app import STATE, ask, metrics_of, softmax_zeros

RNG = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "data")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    config: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "state_dir": str(tmp_path / "state" / "app")}
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})


def mislabelled(count: int, wrong: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures(count, seed=seed)
    y[:wrong] = 77
    return x, y


def absorbed(store: DataStore, folder: Path, classes: int = 10) -> set[int]:
    buffer = memory.absorb(store, folder, 100, RNG, shape=(1, 12, 12), classes=classes)
    return set(buffer.y.tolist())


@pytest.mark.parametrize("app", ["image-classifier", "softmax"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_others_are_used(app: str, kind: str, store: DataStore, context: Context) -> None:
    store.ingest(*mislabelled(100, wrong=20))
    settings: dict[str, Any] = {"qat": False, "replay_size": 50} if app == "image-classifier" else {}
    message = ask(STATE, kind=kind, **settings) if settings else ask(softmax_zeros(), kind=kind, spec=None)
    split = store.split(classes=10)
    reply = load_app(app)(message, context)
    assert metrics_of(reply)["num-examples"] == len(split.train_y if kind == "train" else split.held_y)


@pytest.mark.parametrize("app", ["image-classifier", "softmax"])
def test_with_no_other_the_task_is_refused_by_name(app: str, store: DataStore, context: Context) -> None:
    chunk = store.ingest(*mislabelled(30, wrong=30)).chunk
    reply = load_app(app)(ask(STATE) if app == "image-classifier" else ask(softmax_zeros(), spec=None), context)
    assert reply.error.code == UNFIT
    assert f"{chunk.id} has labels up to 77, the model has 10 classes" in (reply.error.reason or "")


def test_the_replay_buffer_gives_no_label_that_the_model_lacks_and_keeps_it_for_one_that_has_it(
    store: DataStore, tmp_path: Path
) -> None:
    store.ingest(*mislabelled(100, wrong=20))
    assert 77 not in absorbed(store, tmp_path)
    assert 77 in absorbed(store, tmp_path, classes=100)


def test_what_was_removed_leaves_the_replay_buffer(store: DataStore, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "app"
    bad = store.ingest(*mislabelled(60, wrong=60)).chunk
    store.ingest(*pictures(60, seed=1))
    assert 77 in absorbed(store, folder, classes=100)
    store.remove(bad.id)
    assert 77 not in absorbed(store, folder, classes=100)
    memory.forget(tmp_path / "state")
    assert list(folder.iterdir()) == []


def test_drift_is_judged_without_a_file_that_goes_meanwhile(store: DataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        store.ingest(*pictures(100, seed=seed))
    listed = store.chunks()
    store.remove(listed[2].id)
    monkeypatch.setattr(store, "chunks", lambda: listed)
    assert memory.drift_of(store) == 0
