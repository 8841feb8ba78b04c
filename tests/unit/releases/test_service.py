"""From a bundle folder to a signed release: whole or not at all, wherever it is cut off."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from coordinator.releases.memory import MemoryReleaseStore
from coordinator.releases.release import Release
from coordinator.releases.repository import Repository
from coordinator.releases.service import ReleaseService
from shared.blobs import FolderBlobs, MemoryBlobs
from shared.clock import ManualClock
from shared.errors import DigestMismatch, Malformed, NotFound, StorageFull
from shared.signing.manifest import FILES, FileEntry, Manifest
from shared.signing.trust import Catalogue, Trust
from tests.unit.releases.factories import NOW, a_bundle, a_pen, inspect


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryReleaseStore()
        self.blobs = MemoryBlobs()
        self.clock = ManualClock(NOW)
        Repository.init(a_pen(folder), NOW)
        self.full = False
        self.service = self.restart()

    def restart(self) -> ReleaseService:
        """As after SIGKILL: what is stored stays, what was in memory is gone."""
        self.service = ReleaseService(
            self.store, Repository(a_pen(self.folder, self._write)), self.blobs, inspect, self.clock
        )
        return self.service

    def _write(self, path: Path, data: bytes) -> None:
        if self.full:
            raise StorageFull("no space left")
        path.write_bytes(data)

    def catalogue(self) -> Catalogue:
        return Trust(self.folder / "trust", self.service.first_root).update(self.service.metadata())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_bundle_becomes_release_one_with_files_row_and_signature(world: World) -> None:
    release = world.service.publish(a_bundle(world.folder / "bundle"), "digits", {"job": "job-1", "round": 6})
    assert str(release) == "digits:1"
    assert world.service.release("digits") == release
    assert release.report == {"file": "report.json", "salt": ""}
    assert dict(release.manifest.lineage) == {"job": "job-1", "round": 6}
    assert world.catalogue().find("digits", 1).digest == release.digest
    manifest = Manifest.from_bytes(world.blobs.read(release.digest))
    assert all(world.blobs.size(entry.digest) == entry.size for entry in manifest.files.values())


def test_releases_are_numbered_for_each_model(world: World) -> None:
    for salt in ("one", "two"):
        for model in ("digits", "signs"):
            world.service.publish(a_bundle(world.folder / f"{model}-{salt}", f"{model} {salt}"), model)
    assert [str(release) for release in world.service.releases()] == ["digits:1", "digits:2", "signs:1", "signs:2"]


def test_the_same_bundle_again_is_the_same_release(world: World) -> None:
    first = world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    world.clock.advance(60)
    assert world.service.publish(a_bundle(world.folder / "copy"), "digits") == first
    assert len(world.service.releases()) == 1


def test_the_bundle_of_a_withdrawn_release_gets_a_number_of_its_own(world: World) -> None:
    world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    world.store.withdraw("digits", 1)
    assert world.service.publish(world.folder / "bundle", "digits").number == 2


def test_a_bundle_that_does_not_pass_inspection_leaves_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path) -> Mapping[str, FileEntry]:
        raise Malformed("weights do not fit the model")

    store, blobs = MemoryReleaseStore(), MemoryBlobs()
    repository = Repository.init(a_pen(tmp_path), NOW)
    before = repository.bundle_of_metadata()
    service = ReleaseService(store, repository, blobs, refuse, ManualClock(NOW))
    with pytest.raises(Malformed, match="weights do not fit"):
        service.publish(a_bundle(tmp_path / "bundle"), "digits")
    assert (service.releases(), list(blobs.digests()), service.metadata()) == ([], [], before)


def test_a_name_that_is_no_name_is_refused(world: World) -> None:
    with pytest.raises(Malformed, match="not a valid name"):
        world.service.publish(a_bundle(world.folder / "bundle"), "../digits")


def test_a_file_that_changes_after_inspection_is_noticed(tmp_path: Path) -> None:
    def inspect_then_change(folder: Path) -> Mapping[str, FileEntry]:
        found = inspect(folder)
        (folder / "weights.safetensors").write_text("swapped", encoding="utf-8")
        return found

    repository = Repository.init(a_pen(tmp_path), NOW)
    blobs = FolderBlobs(tmp_path / "blobs")
    service = ReleaseService(MemoryReleaseStore(), repository, blobs, inspect_then_change, ManualClock(NOW))
    with pytest.raises(DigestMismatch):
        service.publish(a_bundle(tmp_path / "bundle"), "digits")
    assert service.releases() == []
    assert not repository.is_published("digits", 1)


@pytest.mark.parametrize("report", ["[]", "nonsense", '{"accuracy": NaN}'])
def test_a_report_that_is_no_report_is_refused(world: World, report: str) -> None:
    folder = a_bundle(world.folder / "bundle")
    (folder / "report.json").write_text(report, encoding="utf-8")
    with pytest.raises(Malformed, match=r"report\.json"):
        world.service.publish(folder, "digits")
    assert world.service.releases() == []


def test_a_disk_that_fills_while_signing_leaves_the_release_to_be_signed_later(world: World) -> None:
    before = world.service.metadata()
    world.full = True
    with pytest.raises(StorageFull):
        world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    with pytest.raises(StorageFull):
        world.service.metadata()  # no command leaves with metadata that lags behind
    world.full = False
    assert world.service.metadata() != before
    assert world.catalogue().find("digits", 1).digest == world.service.release("digits", 1).digest


def test_killed_between_row_and_signature_the_release_is_signed_before_anyone_hears_of_it(world: World) -> None:
    world.full = True
    with pytest.raises(StorageFull):
        world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    world.full = False
    world.restart()
    assert world.catalogue().find("digits", 1).digest == world.service.release("digits", 1).digest


def test_killed_between_withdrawal_and_signature_the_mark_is_made_good(world: World) -> None:
    world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    world.store.withdraw("digits", 1)
    world.restart()
    assert world.catalogue().find("digits", 1).withdrawn


def test_killed_before_the_row_nothing_is_visible_and_publishing_again_works(world: World) -> None:
    class Killed(BaseException):
        pass

    def die(release: Release) -> None:
        raise Killed

    add = world.store.add_release
    world.store.add_release = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        world.service.publish(a_bundle(world.folder / "bundle"), "digits")
    world.store.add_release = add  # type: ignore[method-assign]
    world.restart()
    assert world.catalogue().targets == {}
    with pytest.raises(NotFound, match="model list"):
        world.service.release("digits")
    assert world.service.publish(world.folder / "bundle", "digits").number == 1
    assert len(list(world.blobs.digests())) == len(FILES) + 1  # and its manifest


def test_metadata_is_signed_again_before_it_expires(world: World) -> None:
    assert world.service.refresh() == ()
    world.clock.advance(0.6 * 86_400)
    assert world.service.refresh() == ("timestamp",)
