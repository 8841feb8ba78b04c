"""The publisher of release metadata: what devices can verify at any moment, also after a crash between two writes."""

import stat
from pathlib import Path

import pytest

from coordinator.releases.metadata import DAY_S, ROLES, Pen, RoleRule
from coordinator.releases.repository import Repository
from shared.errors import Conflict, Corrupt, InputError, NotFound, Untrusted
from shared.files import write_atomic
from shared.signing.trust import Trust
from tests.unit.releases.factories import NOW, a_manifest, a_pen


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class FailingWriter:
    """Writes `allowed` files, then dies: before the next one, or right after it."""

    def __init__(self, allowed: int, *, after: bool = False) -> None:
        self.allowed = allowed
        self.after = after
        self.written: list[str] = []

    def __call__(self, path: Path, data: bytes) -> None:
        dies = len(self.written) == self.allowed
        if not dies or self.after:
            write_atomic(path, data)
            self.written.append(path.name)
        if dies:
            raise Killed


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(a_pen(tmp_path), NOW)


def test_a_new_repository_verifies(repository: Repository, tmp_path: Path) -> None:
    assert Trust(tmp_path / "trust", repository.first_root).update(repository.bundle_of_metadata()).targets == {}


def test_init_again_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    before = repository.bundle_of_metadata()
    assert Repository.init(a_pen(tmp_path), NOW + 60).bundle_of_metadata() == before


def test_keys_are_readable_by_their_owner_alone(repository: Repository, tmp_path: Path) -> None:
    keys = list((tmp_path / "keys").iterdir())
    assert len(keys) == len(ROLES)
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_root_keys_may_be_kept_elsewhere(tmp_path: Path) -> None:
    pen = a_pen(tmp_path)
    places = type(pen.places)(pen.places.metadata, pen.places.keys, tmp_path / "vault")
    repository = Repository.init(Pen(places), NOW)
    assert len(list((tmp_path / "vault").iterdir())) == 1
    (tmp_path / "vault").rename(tmp_path / "taken away")
    repository.publish(a_manifest(), NOW)
    assert repository.refresh(NOW + 300 * DAY_S) == ROLES[1:]  # the root waits for its keys
    with pytest.raises(Corrupt, match="0 of 1 root keys"):
        repository.rotate("timestamp", NOW)
    assert Repository(Pen(places)).is_published("digits", 1)


def test_a_published_release_is_a_target(repository: Repository, tmp_path: Path) -> None:
    manifest = a_manifest()
    repository.publish(manifest, NOW)
    target = Trust(tmp_path / "trust", repository.first_root).update(repository.bundle_of_metadata()).find("digits", 1)
    assert (target.digest, target.length, target.withdrawn) == (manifest.digest, len(manifest.to_bytes()), False)


def test_publishing_again_changes_nothing(repository: Repository) -> None:
    repository.publish(a_manifest(), NOW)
    before = repository.bundle_of_metadata()
    repository.publish(a_manifest(), NOW + 5)
    assert repository.bundle_of_metadata() == before


def test_a_number_is_never_signed_with_other_contents(repository: Repository) -> None:
    repository.publish(a_manifest(), NOW)
    before = repository.bundle_of_metadata()
    with pytest.raises(Conflict, match="other contents"):
        repository.publish(a_manifest(salt="another"), NOW)
    assert repository.bundle_of_metadata() == before


def test_withdrawing_marks_the_target_and_keeps_it(repository: Repository, tmp_path: Path) -> None:
    repository.publish(a_manifest(), NOW)
    repository.withdraw("digits", 1, NOW)
    before = repository.bundle_of_metadata()
    repository.withdraw("digits", 1, NOW)
    assert repository.bundle_of_metadata() == before
    catalogue = Trust(tmp_path / "trust", repository.first_root).update(before)
    assert catalogue.find("digits", 1).withdrawn
    with pytest.raises(NotFound, match="never signed"):
        repository.withdraw("digits", 2, NOW)


def test_refresh_signs_what_is_due_and_nothing_else(repository: Repository) -> None:
    assert repository.refresh(NOW + 0.4 * DAY_S) == ()
    assert repository.refresh(NOW + 0.6 * DAY_S) == ("timestamp",)
    assert repository.refresh(NOW + 4 * DAY_S) == ("snapshot", "timestamp")
    assert repository.refresh(NOW + 61 * DAY_S) == ("targets", "snapshot", "timestamp")
    assert repository.refresh(NOW + 250 * DAY_S) == ROLES
    assert repository.refresh(NOW + 250 * DAY_S) == ()


@pytest.mark.parametrize("role", ROLES)
def test_a_rotated_key_signs_and_the_old_one_is_gone(repository: Repository, tmp_path: Path, role: str) -> None:
    trust = Trust(tmp_path / "trust", repository.first_root)
    trust.update(repository.bundle_of_metadata())
    before = {path.name for path in (tmp_path / "keys").iterdir()}
    repository.rotate(role, NOW)
    after = {path.name for path in (tmp_path / "keys").iterdir()}
    assert len(before - after) == len(after - before) == 1
    repository.publish(a_manifest(), NOW)
    assert trust.update(repository.bundle_of_metadata()).find("digits", 1)
    fresh = Trust(tmp_path / "a device that was away", repository.first_root)
    assert fresh.update(repository.bundle_of_metadata()).find("digits", 1)


def test_only_the_four_roles_exist(repository: Repository) -> None:
    with pytest.raises(InputError, match="a role is one of root"):
        repository.rotate("mirrors", NOW)


def test_a_role_asks_for_no_more_signatures_than_it_has_keys() -> None:
    with pytest.raises(ValueError, match="at least as many keys"):
        RoleRule(DAY_S, keys=1, threshold=2)


def test_thresholds_hold_through_publishing_and_rotation(tmp_path: Path) -> None:
    two_of_three = RoleRule(DAY_S, keys=3, threshold=2)
    repository = Repository.init(a_pen(tmp_path, rules={"root": two_of_three, "targets": two_of_three}), NOW)
    repository.publish(a_manifest(), NOW)
    repository.rotate("targets", NOW)
    repository.rotate("root", NOW)
    trust = Trust(tmp_path / "trust", repository.first_root)
    assert trust.update(repository.bundle_of_metadata()).find("digits", 1)


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"])
def test_damaged_files_are_noticed_when_opened(repository: Repository, tmp_path: Path, name: str) -> None:
    path = tmp_path / "metadata" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Corrupt, match="restore it"):
        Repository(a_pen(tmp_path))


def test_a_folder_without_metadata_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="coordinator init"):
        Repository(a_pen(tmp_path))


@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
@pytest.mark.parametrize("allowed", range(4))
def test_killed_while_publishing_the_repository_verifies_and_the_release_is_whole_or_absent(
    tmp_path: Path, allowed: int, after: bool
) -> None:
    Repository.init(a_pen(tmp_path), NOW).publish(a_manifest(1), NOW)
    writer = FailingWriter(allowed, after=after)
    try:
        Repository(a_pen(tmp_path, writer)).publish(a_manifest(2), NOW)
        killed = False
    except Killed:
        killed = True
    assert killed is (allowed < 3)
    _check_verifies_and_goes_on(tmp_path, present="timestamp.json" in writer.written)


@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
@pytest.mark.parametrize("allowed", range(5))
@pytest.mark.parametrize("role", ROLES)
def test_killed_while_rotating_a_key_devices_can_follow_before_and_after(
    tmp_path: Path, allowed: int, after: bool, role: str
) -> None:
    first = Repository.init(a_pen(tmp_path), NOW)
    first.publish(a_manifest(1), NOW)
    trust = Trust(tmp_path / "trust", first.first_root)
    trust.update(first.bundle_of_metadata())
    try:
        Repository(a_pen(tmp_path, FailingWriter(allowed, after=after))).rotate(role, NOW)
    except Killed:
        assert allowed < 4
    assert trust.update(Repository(a_pen(tmp_path)).bundle_of_metadata()).find("digits", 1)
    _check_verifies_and_goes_on(tmp_path, present=False)


@pytest.mark.parametrize("allowed", range(4))
def test_killed_while_made_it_is_made_anew(tmp_path: Path, allowed: int) -> None:
    with pytest.raises(Killed):
        Repository.init(a_pen(tmp_path, FailingWriter(allowed)), NOW)
    with pytest.raises(NotFound):
        Repository(a_pen(tmp_path))
    repository = Repository.init(a_pen(tmp_path), NOW)
    assert Trust(tmp_path / "trust", repository.first_root).update(repository.bundle_of_metadata()).targets == {}


def _check_verifies_and_goes_on(folder: Path, *, present: bool) -> None:
    repository = Repository(a_pen(folder))
    trust = Trust(folder / "a new device", repository.first_root)
    catalogue = trust.update(repository.bundle_of_metadata())
    assert catalogue.find("digits", 1)
    if present:
        assert catalogue.find("digits", 2)
    else:
        with pytest.raises(Untrusted, match="not in the signed metadata"):
            catalogue.find("digits", 2)
    repository.publish(a_manifest(2), NOW)
    repository.publish(a_manifest(3), NOW)
    assert set(trust.update(repository.bundle_of_metadata()).targets) == {
        f"digits/{number}/manifest.json" for number in (1, 2, 3)
    }
