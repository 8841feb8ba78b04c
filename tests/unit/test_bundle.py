"""A bundle is whole and right, or it is refused and nothing was written."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.bundle import (
    GRAPH,
    MODEL,
    REPORT,
    WEIGHTS,
    Bundle,
    Report,
    inspect_bundle,
    read_bundle,
    write_bundle,
)
from shared.errors import Conflict, DigestMismatch, Malformed, NotFound, StorageFull, UpdateRejected
from shared.ids import Digest, digest_of
from shared.learning.measure import Probe
from shared.learning.spec import ModelSpec
from shared.signing.manifest import FileEntry
from tests.unit.learning.graphs import SCHEMA, graph_bytes

GOOD = Bundle(
    spec=ModelSpec("linear", SCHEMA),
    state={"weight": np.ones((3, 16), np.float32), "bias": np.zeros(3, np.float32)},
    graph=graph_bytes(),
    report=Report(
        accuracy=0.9, examples=10, probe=Probe((3,), ((1.0, 2.0, 3.0),)), lineage={"job": "job-1", "round": 4}
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_bundle(path, GOOD)
    return path


def test_a_bundle_comes_back_as_it_was_written(folder: Path) -> None:
    again = read_bundle(folder)
    assert (again.spec, again.graph, again.report) == (GOOD.spec, GOOD.graph, GOOD.report)
    assert all(np.array_equal(again.state[name], GOOD.state[name]) for name in GOOD.state)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_the_manifest_says_what_is_on_disk(folder: Path) -> None:
    manifest = inspect_bundle(folder)
    assert sorted(manifest) == [MODEL, GRAPH, REPORT, WEIGHTS]
    for name, entry in manifest.items():
        data = (folder / name).read_bytes()
        assert (entry.digest, entry.size) == (digest_of(data), len(data))
    assert inspect_bundle(folder) == manifest
    assert read_bundle(folder, manifest).spec == GOOD.spec


def test_equal_bundles_have_equal_digests(folder: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "again", GOOD)
    assert inspect_bundle(folder) == inspect_bundle(tmp_path / "again")


def rewritten(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def report_with(**changes: object) -> bytes:
    return json.dumps({**json.loads(GOOD.report.to_json()), **changes}).encode()


def poisoned_weights(folder: Path) -> None:
    from safetensors.numpy import save

    (folder / WEIGHTS).write_bytes(save({"weight": np.full(3, np.nan, np.float32)}))


def linked_out(folder: Path) -> None:
    (folder / GRAPH).unlink()
    (folder / GRAPH).symlink_to("/etc/passwd")


HARM: dict[str, Callable[[Path], object]] = {
    "a missing file": lambda folder: (folder / REPORT).unlink(),
    "an extra file": lambda folder: (folder / "setup.py").write_text("print()"),
    "a link out of the folder": linked_out,
    "an empty file": rewritten(GRAPH, b""),
    "a truncated graph": rewritten(GRAPH, GOOD.graph[:-40]),
    "a pickle for weights": rewritten(WEIGHTS, b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),
    "weights that are not numbers": poisoned_weights,
    "weights with a lying header": rewritten(WEIGHTS, (1 << 40).to_bytes(8, "little") + b"{}"),
    "a model.json with more keys": rewritten(MODEL, GOOD.spec.to_json().replace("{", '{"code":"x",', 1).encode()),
    "a schema that the graph does not have": rewritten(
        MODEL, replace(GOOD.spec, schema=replace(SCHEMA, shape=(1, 5, 5))).to_json().encode()
    ),
    "a report that is no object": rewritten(REPORT, b"[]"),
    "a report with an impossible accuracy": rewritten(REPORT, report_with(accuracy=1.5)),
    "a report with NaN": rewritten(REPORT, report_with(max_logit_difference=float("nan"))),
    "a report with an unknown key": rewritten(REPORT, report_with(html="<script>")),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_a_bundle_is_refused_with(harm: Callable[[Path], object], folder: Path) -> None:
    harm(folder)
    with pytest.raises(Malformed):
        read_bundle(folder)
    with pytest.raises(Malformed):
        inspect_bundle(folder)


def test_an_empty_file_is_called_empty(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"")
    with pytest.raises(Malformed, match=r"^model\.json is empty$"):
        read_bundle(folder)


def test_no_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, GRAPH, REPORT])
def test_one_file_of_another_release_is_noticed(name: str, folder: Path) -> None:
    signed = inspect_bundle(folder)
    signed[name] = FileEntry(Digest("0" * 64), signed[name].size)
    with pytest.raises(DigestMismatch, match=name):
        read_bundle(folder, signed)


def test_a_bundle_is_never_written_over_another(folder: Path) -> None:
    before = inspect_bundle(folder)
    with pytest.raises(Conflict):
        write_bundle(folder, GOOD)
    assert inspect_bundle(folder) == before


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        write_bundle(tmp_path / "a", replace(GOOD, graph=b"junk"))
    with pytest.raises(UpdateRejected):
        write_bundle(tmp_path / "b", replace(GOOD, state={"w": np.full(2, np.inf, np.float32)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        write_bundle(tmp_path / "bundle", GOOD)
    assert list(tmp_path.iterdir()) == []
