"""What a device trusts stays whole: on a full disk, when it is killed, when somebody changes it on disk."""

import shutil

import pytest

from shared.errors import Corrupt, StorageFull
from shared.signing.trust import Trust
from tests.protocol.tuf_world import World
from tests.unit.releases.factories import NOW, a_manifest


def test_a_full_disk_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.on_disk()
    world.repository.publish(a_manifest(2), NOW)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(StorageFull, match="no space left for release metadata"):
        world.trust.update(world.files())
    monkeypatch.undo()
    assert world.on_disk() == before
    assert world.trust.update(world.files()).find("digits", 2)


def test_killed_before_the_swap_the_old_state_is_trusted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    old = world.files()
    before = (world.folder / "trust" / "current").resolve()
    world.repository.publish(a_manifest(2), NOW)
    monkeypatch.setattr(Trust, "_replace", die)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
    with pytest.raises(Killed):
        world.trust.update(world.files())
    monkeypatch.undo()
    assert (world.folder / "trust" / "current").resolve() == before
    assert len(list((world.folder / "trust").iterdir())) == 3
    after = Trust(world.folder / "trust", world.repository.first_root)
    assert len(list((world.folder / "trust").iterdir())) == 2  # what the crash left is gone
    assert after.update(old).find("digits", 1)
    assert after.update(world.files()).find("digits", 2)


# ---- what a device believes before it hears anything


def test_after_a_restart_a_device_believes_what_it_did(world: World) -> None:
    world.repository.publish(a_manifest(2), NOW)
    world.repository.withdraw("digits", 1, NOW)
    before = world.trust.update(world.files())
    assert Trust(world.folder / "trust", world.repository.first_root).catalogue() == before
    assert before.is_withdrawn("digits", 1)


def test_a_device_that_was_told_nothing_believes_nothing(world: World) -> None:
    assert Trust(world.folder / "fresh", world.repository.first_root).catalogue() is None


@pytest.mark.parametrize("name", ["targets.json", "root.json"])
def test_trusted_metadata_that_was_changed_on_disk_is_not_believed_and_the_next_order_mends_it(
    world: World, name: str
) -> None:
    path = (world.folder / "trust" / "current" / name).resolve()
    path.write_bytes(path.read_bytes().replace(b'"version":', b'"wersion":'))
    with pytest.raises(Corrupt, match="next order"):
        world.trust.catalogue()
    assert world.trust.update(world.files()).find("digits", 1)
    assert world.trust.catalogue() is not None


def test_a_release_that_was_written_into_the_trusted_metadata_is_not_believed(world: World) -> None:
    path = (world.folder / "trust" / "current" / "targets.json").resolve()
    path.write_bytes(path.read_bytes().replace(b"digits/1/", b"digits/9/"))
    with pytest.raises(Corrupt):
        world.trust.catalogue()


def test_equal_metadata_again_is_no_attack(world: World) -> None:
    assert world.trust.update(world.files()) == world.trust.update(world.files())
