"""`coordinator job submit` against a whole coordinator: paths in the job file, here and from afar; what is refused, in one line."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save

from coordinator.app import initialise, running
from coordinator.cli.client import Where, admin
from coordinator.cli.root import cli
from coordinator.config import CoordinatorConfig, Home
from coordinator.fleet.registry import EnrolmentRequest
from coordinator.rpc.admin import Nouns
from protos.fleet.v1 import admin_pb2
from shared.errors import ConfigError
from shared.signing.certificates import generate_key, make_csr

ANY_PORT = CoordinatorConfig(enrolment_port=0, fleet_port=0, metrics_port=0, log_level="error")
JOB = """# nightly
name = "nightly"
client_app = "softmax"
rounds = 2
[start]
arrays_file = "start.safetensors"  # beside this file
[public]
data = "../public.npz"
[selection]
min_devices = 3
[train]
lr = 0.1
"""


@dataclass(frozen=True)
class Place:
    """A coordinator that serves."""

    home: Path
    nouns: Nouns

    def join(self, name: str, profile_json: str) -> None:
        """A device that says this of itself."""
        registry = self.nouns.registry
        tokens, _ = registry.create_tokens(count=1, valid_for_s=60, labels={}, require_approval=False, actor="test")
        registry.enrol(EnrolmentRequest(tokens[0].text, make_csr(generate_key(), name), name, {}, profile_json))

    def rows(self) -> list[admin_pb2.Device]:
        with admin(Where(self.home)) as stub:
            return list(stub.ListDevices(admin_pb2.ListDevicesRequest(), timeout=10.0).devices)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    home = Home(tmp_path / "home")
    initialise(home, ANY_PORT)
    async with running(home, ANY_PORT) as parts:
        yield Place(home.path, parts.nouns)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file in a folder of its own, with the files that it names."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "start.safetensors").write_bytes(
        save({"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32)})
    )
    np.savez(tmp_path / "public.npz", x=np.zeros((4, 1, 2, 2), np.float32), y=np.array([0, 1, 0, 1]))
    file = folder / "job.toml"
    file.write_text(JOB)
    return file


async def run(*words: object) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, [str(word) for word in words])


async def test_relative_paths_are_meant_from_the_job_files_folder_wherever_the_coordinator_was_started(
    place: Place, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job.parent)

    done = await run("job", "submit", "job.toml", "--key", "k", "--home", place.home)
    again = await run("job", "submit", job, "--key", "k", "--home", place.home)

    assert done.exit_code == 0, done.output
    assert again.exit_code == 0, again.output
    whole = JOB.replace("start.saf", f"{job.parent}/start.saf").replace("../pub", f"{tmp_path}/pub")
    assert [stored.toml for stored in place.nouns.jobs.jobs()] == [whole]


async def test_from_afar_a_relative_path_is_refused_and_a_whole_one_is_taken(place: Place, job: Path) -> None:
    ann = job.parent / "ann"
    assert (await run("admin", "issue", "ann", "--out", ann, "--home", place.home)).exit_code == 0

    refused = await run("job", "submit", job, "--profile", ann)
    job.write_text(JOB.replace("start.saf", f"{job.parent}/start.saf").replace("../pub", f"{job.parent.parent}/pub"))
    taken = await run("job", "submit", job, "--profile", ann)

    assert str(refused.exception) == (
        "job.public.data: write the whole path of a file on the coordinator's machine, not ../public.npz"
    )
    assert taken.exit_code == 0, taken.output


REFUSED: dict[str, tuple[str, str, str]] = {
    "a setting that the app does not have": ("lr =", "learning_rate =", "job.train.learning_rate: unknown key"),
    "an impossible setting": ("lr = 0.1", "lr = -5", "job.train: lr is positive"),
    "an app that nobody has": ('"softmax"', '"magic"', "job.client_app: no device says that it has 'magic'"),
    "public data that is not there": ("public.npz", "gone.npz", "job.public.data: there is no file"),
}


@pytest.mark.parametrize(("old", "new", "says"), REFUSED.values(), ids=REFUSED)
async def test_a_job_that_cannot_work_is_refused_and_not_stored(
    place: Place, job: Path, old: str, new: str, says: str
) -> None:
    job.write_text(JOB.replace(old, new))
    place.join("dev1", '{"client_apps": ["echo"]}')

    done = await run("job", "submit", job, "--home", place.home)

    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)
    assert place.nouns.jobs.jobs() == []


async def test_an_app_that_one_enrolled_device_has_is_accepted_and_shown_with_the_device(
    place: Place, job: Path
) -> None:
    job.write_text(JOB.replace('"softmax"', '"letters"').replace("[train]\nlr = 0.1\n", ""))
    place.join("dev1", json.dumps({"client_apps": ["echo", *(f"a{number:050d}" for number in range(1000))]}))
    refused = await run("job", "submit", job, "--home", place.home)
    place.join("dev2", '{"client_apps": ["letters", "echo"]}')

    taken = await run("job", "submit", job, "--home", place.home)
    shown = await run("device", "show", "dev2", "--home", place.home)
    listed = await run("device", "list", "--json", "--home", place.home)

    assert isinstance(refused.exception, ConfigError)
    assert "there are echo, image-classifier, softmax, a0" in str(refused.exception)
    assert [device["name"] for device in json.loads(listed.output)] == ["dev1", "dev2"]
    assert "client_apps" not in listed.output, "`device show` has them"
    rows = await asyncio.to_thread(place.rows)
    assert max(row.ByteSize() for row in rows) < 500, "all devices share one message of 4 MB"
    assert taken.exit_code == 0, taken.output
    assert "echo letters" in shown.output
