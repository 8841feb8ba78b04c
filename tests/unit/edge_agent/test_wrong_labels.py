"""A wrong label in an ingested file costs that example, not the device's part in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from edge_agent.client_app import load_app, memory
from edge_agent.storage import DataStore
from shared.client_apps import UNFIT
from shared.files import atomic_file
from shared.learning.continual import ReplayBuffer
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


@pytest.mark.parametrize("moment", ["before the write", "during the write"])
def test_what_is_removed_while_the_buffer_is_made_is_not_written_back(
    moment: str, store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state" / "app"
    bad = store.ingest(*mislabelled(60, wrong=60)).chunk
    store.ingest(*pictures(60, seed=1))

    def removed() -> None:
        if bad in store.chunks():
            store.remove(bad.id)
            memory.forget(tmp_path / "state")

    def late(path: Path, data: bytes, *, mode: int) -> None:
        if moment == "before the write":
            removed()
        with atomic_file(path, mode=mode) as file:
            file.write(data)
            removed()

    monkeypatch.setattr(memory, "write_atomic", late)
    assert 77 not in absorbed(store, folder, classes=100)
    assert [path.name for path in folder.iterdir()] == [memory.FILE]
    assert ReplayBuffer.from_bytes((folder / memory.FILE).read_bytes()).sources == (store.chunks()[0].name,)


def test_half_a_buffer_is_forgotten_as_a_whole_one_is_and_alone_at_the_start(tmp_path: Path) -> None:
    whole, half, other = (tmp_path / "app" / name for name in (memory.FILE, f".{memory.FILE}.0011.tmp", "other"))
    whole.parent.mkdir()
    for path in (whole, half, other):
        path.write_bytes(b"x")
    memory.forget_halves(tmp_path)
    assert sorted(whole.parent.iterdir()) == sorted([whole, other])
    half.write_bytes(b"x")
    memory.forget(tmp_path)
    assert list(whole.parent.iterdir()) == [other]


def test_drift_is_judged_without_a_file_that_goes_meanwhile(store: DataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        store.ingest(*pictures(100, seed=seed))
    listed = store.chunks()
    store.remove(listed[2].id)
    monkeypatch.setattr(store, "chunks", lambda: listed)
    assert memory.drift_of(store) == 0
