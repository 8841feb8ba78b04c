"""A first model from the command line: built without a coordinator, published to one."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.app import initialise, running
from coordinator.cli.root import cli
from coordinator.config import CoordinatorConfig, Home
from shared.bundle import read_bundle
from shared.errors import Conflict, InputError, NotFound
from tests.unit.learning.pictures import pictures

ANY_PORT = CoordinatorConfig(enrolment_port=0, fleet_port=0, metrics_port=0, log_level="error")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = pictures(300)
    np.savez(tmp_path / "pictures.npz", x=x, y=y)
    return tmp_path / "pictures.npz"


def build(data: Path, out: Path, *more: str) -> Result:
    words = ("model", "build", "--factory", "cnn-small", "--data", str(data), "--out", str(out), "--json", *more)
    return CliRunner().invoke(cli, words)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_model_is_built_from_examples_alone_and_published(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = await asyncio.to_thread(build, data, out, "--arg", "width=8", "--epochs", "4")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["report"]
    bundle = read_bundle(out)

    assert (bundle.spec.factory, bundle.spec.arguments) == ("cnn-small", {"width": 8})
    assert (bundle.spec.schema.shape, len(bundle.spec.schema.classes)) == ((1, 12, 12), 10)
    assert report["accuracy"] == bundle.report.accuracy
    assert report["accuracy"] > 0.8
    assert isinstance(build(data, out).exception, Conflict)

    home = Home(tmp_path / "home")
    initialise(home, ANY_PORT)
    async with running(home, ANY_PORT) as parts:
        release = await asyncio.to_thread(parts.nouns.releases.publish, out, "digits")
    assert release.number == 1
    assert release.report["lineage"] == {"notes": "cnn-small, 4 epochs on pictures.npz"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_the_worker_refuses_is_an_error_of_input_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    for more, kind in ((("--factory", "nope"), NotFound), (("--arg", "width=9"), InputError)):
        error = build(data, tmp_path / "new" / "folders" / "bundle", *more).exception
        assert type(error) is kind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.npz"]
