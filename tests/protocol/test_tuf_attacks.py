"""Attacks on release metadata, named as in the TUF specification (1.0, section 1.5): each is refused and changes nothing on disk.

The device reads the machine's clock, so what must be expired is signed as if long ago.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from coordinator.releases.metadata import DAY_S, RoleRule
from coordinator.releases.repository import Repository
from shared.errors import Corrupt, StorageFull, Untrusted
from shared.signing.certificates import generate_key, load_key
from shared.signing.trust import MAX_METADATA_BYTES, Trust
from tests.unit.releases.factories import NOW, a_manifest, a_pen

Files = dict[str, bytes]
NOT_AS_SIGNED = "parts do not belong together|a part is too large"


class World:
    """A fleet's repository with release 1, and a device that trusts it."""

    def __init__(self, folder: Path, **rules: RoleRule) -> None:
        self.folder = folder
        self.pen = a_pen(folder, rules=rules)
        self.repository = Repository.init(self.pen, NOW)
        self.repository.publish(a_manifest(1), NOW)
        self.trust = Trust(folder / "trust", self.repository.first_root)
        self.trust.update(self.files())

    def files(self) -> Files:
        return self.repository.bundle_of_metadata()

    def on_disk(self) -> Mapping[str, bytes]:
        """What the device trusts, by name; temporary folders would show."""
        root = self.folder / "trust"
        assert len(list(root.iterdir())) == 2  # the trusted folder, and the link to it
        current = (root / "current").resolve()
        return {
            str(path.relative_to(current)): path.read_bytes() for path in sorted(current.rglob("*")) if path.is_file()
        }

    def refuses(self, files: Mapping[str, bytes], why: str) -> None:
        before = self.on_disk()
        with pytest.raises(Untrusted, match=why):
            self.trust.update(files)
        assert self.on_disk() == before
        assert self.trust.update(self.files()).find("digits", 1)  # and the truth is believed as before

    def signers(self, role: str) -> list[CryptoSigner]:
        root = Metadata[Root].from_bytes(self.files()["1.root.json"]).signed
        return [CryptoSigner(load_key(self.pen.key_file(role, keyid))) for keyid in root.roles[role].keyids]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def forge(files: Files, targets: list[CryptoSigner], online: list[CryptoSigner] | None, world: World) -> Files:
    """The newest metadata with a malicious release 2 in it, signed by the given keys; `online` None keeps the real ones."""
    forged = Metadata[Targets].from_bytes(_one(files, "targets.json"))
    forged.signed.version += 1
    evil = a_manifest(2, salt="evil")
    path = "digits/2/manifest.json"
    forged.signed.targets[path] = TargetFile(len(evil.to_bytes()), {"sha256": evil.digest}, path)
    data = _signed(forged, targets)
    version = forged.signed.version
    snapshot = Metadata[Snapshot].from_bytes(_one(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, data, ["sha256"])
    snapshot_data = _signed(snapshot, world.signers("snapshot") if online is None else online)
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot_data, ["sha256"])
    return {
        **{name: content for name, content in files.items() if name.endswith("root.json")},
        f"{version}.targets.json": data,
        f"{snapshot.signed.version}.snapshot.json": snapshot_data,
        "timestamp.json": _signed(timestamp, world.signers("timestamp") if online is None else online),
    }


def _signed(metadata: Metadata, signers: list[CryptoSigner]) -> bytes:  # type: ignore[type-arg]  # any role
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _one(files: Mapping[str, bytes], ending: str) -> bytes:
    (data,) = [data for name, data in files.items() if name.endswith(ending)]
    return data


def _name(files: Mapping[str, bytes], ending: str) -> str:
    return next(name for name in files if name.endswith(ending))


# ---- rollback


def test_rollback_of_all_metadata_is_refused(world: World) -> None:
    old = world.files()
    world.repository.publish(a_manifest(2), NOW)
    world.trust.update(world.files())
    world.refuses(old, "older than what is trusted")


def test_rollback_is_refused_after_a_restart_of_the_device(world: World) -> None:
    old = world.files()
    world.repository.publish(a_manifest(2), NOW)
    world.trust.update(world.files())
    world.trust = Trust(world.folder / "trust", world.repository.first_root)
    world.refuses(old, "older than what is trusted")


def test_rollback_of_the_timestamp_alone_is_refused(world: World) -> None:
    old = world.files()
    world.repository.refresh(NOW + 0.6 * DAY_S)
    world.trust.update(world.files())
    world.refuses(old, "older than what is trusted")


def test_rollback_of_targets_inside_newer_snapshots_is_refused_even_if_the_online_keys_are_stolen(world: World) -> None:
    old_targets = _one(world.files(), "targets.json")
    version = Metadata[Targets].from_bytes(old_targets).signed.version
    world.repository.publish(a_manifest(2), NOW)
    world.trust.update(world.files())
    files = world.files()
    snapshot = Metadata[Snapshot].from_bytes(_one(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, old_targets, ["sha256"])
    data = _signed(snapshot, world.signers("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    forged = {
        "1.root.json": files["1.root.json"],
        "timestamp.json": _signed(timestamp, world.signers("timestamp")),
        f"{snapshot.signed.version}.snapshot.json": data,
        f"{version}.targets.json": old_targets,
    }
    world.refuses(forged, "older than what is trusted")


def test_rollback_of_a_release_is_refused_unless_every_newer_one_was_withdrawn(world: World) -> None:
    for number in (2, 3):
        world.repository.publish(a_manifest(number), NOW)
    catalogue = world.trust.update(world.files())
    with pytest.raises(Untrusted, match="would roll back digits:3"):
        catalogue.check_install("digits", 1, current=3)
    world.repository.withdraw("digits", 3, NOW)
    catalogue = world.trust.update(world.files())
    with pytest.raises(Untrusted, match="would roll back digits:2"):
        catalogue.check_install("digits", 1, current=3)
    with pytest.raises(Untrusted, match="digits:3 was withdrawn"):
        catalogue.check_install("digits", 3, current=2)
    assert catalogue.check_install("digits", 2, current=3).digest == a_manifest(2).digest


def test_a_release_that_is_not_listed_does_not_open_the_way_back(world: World) -> None:
    with pytest.raises(Untrusted, match="would roll back digits:7"):
        world.trust.update(world.files()).check_install("digits", 1, current=7)


# ---- freeze


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_freeze_expired_metadata_is_refused(tmp_path: Path, role: str) -> None:
    short = {role: RoleRule(DAY_S)}
    long_ago = NOW - 2 * DAY_S
    repository = Repository.init(a_pen(tmp_path, rules={"timestamp": RoleRule(30 * DAY_S), **short}), long_ago)
    trust = Trust(tmp_path / "trust", repository.first_root)
    with pytest.raises(Untrusted, match="expired, so it may be frozen"):
        trust.update(repository.bundle_of_metadata())
    assert list((tmp_path / "trust").iterdir()) == []


def test_freeze_repeating_what_was_valid_once_is_refused_when_it_expires(tmp_path: Path) -> None:
    world = World(tmp_path, timestamp=RoleRule(2 * DAY_S))
    kept_back = world.files()
    timestamp = Metadata[Timestamp].from_bytes(kept_back["timestamp.json"])
    timestamp.signed.expires = timestamp.signed.expires.replace(year=2020)
    timestamp.signed.version += 1
    stale = {**kept_back, "timestamp.json": _signed(timestamp, world.signers("timestamp"))}
    before = world.on_disk()
    with pytest.raises(Untrusted, match="frozen"):
        world.trust.update(stale)
    assert world.on_disk() == before


# ---- mix-and-match


@pytest.mark.parametrize("part", ["snapshot.json", "targets.json"])
def test_mix_and_match_parts_of_different_moments_are_refused(world: World, part: str) -> None:
    # Signatures differ in length by a byte or two, so a foreign part is refused for its length or for its hash.
    old = world.files()
    world.repository.publish(a_manifest(2), NOW)
    new = world.files()
    world.refuses({**new, _name(new, part): _one(old, part)}, NOT_AS_SIGNED)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("timestamp.json", "not signed by enough"),
        ("snapshot.json", NOT_AS_SIGNED),
        ("targets.json", NOT_AS_SIGNED),
    ],
)
def test_mix_and_match_of_two_fleets_is_refused(world: World, tmp_path: Path, part: str, why: str) -> None:
    other = World(tmp_path / "other")
    for repository in (world.repository, other.repository):
        repository.publish(a_manifest(2), NOW)
    mine = world.files()
    world.refuses({**mine, _name(mine, part): _one(other.files(), part)}, why)


def test_mix_and_match_a_missing_part_is_refused(world: World) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    for missing in files:
        if missing != "1.root.json":
            fresh = Trust(world.folder / f"trust without {missing}", world.repository.first_root)
            with pytest.raises(Untrusted, match="a part is missing"):
                fresh.update({name: data for name, data in files.items() if name != missing})
    world.refuses({}, "a part is missing")


# ---- arbitrary install


def test_arbitrary_install_of_a_release_nobody_signed_is_refused(world: World) -> None:
    with pytest.raises(Untrusted, match="digits:2 is not in the signed metadata"):
        world.trust.update(world.files()).check_install("digits", 2, current=1)
    with pytest.raises(Untrusted, match="signs:1 is not in the signed metadata"):
        world.trust.update(world.files()).check_install("signs", 1, current=0)


SIGNERS: Mapping[str, Callable[[], list[CryptoSigner]]] = {
    "nobody": list,
    "a stranger": lambda: [CryptoSigner(generate_key())],
}


@pytest.mark.parametrize("who", SIGNERS)
def test_arbitrary_install_signed_by(world: World, who: str) -> None:
    signers = SIGNERS[who]()
    world.refuses(forge(world.files(), signers, signers, world), "not signed by enough trusted keys")


def test_arbitrary_install_by_a_thief_of_the_online_keys_is_refused(world: World) -> None:
    """Timestamp and snapshot keys alone sign no release."""
    world.refuses(forge(world.files(), world.signers("snapshot"), None, world), "not signed by enough trusted keys")


def test_arbitrary_install_a_foreign_root_is_refused(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    world.refuses(other.files(), "not signed by enough trusted keys")
    root = Metadata[Root].from_bytes(other.files()["1.root.json"])
    root.signed.version = 2
    forged = {**other.files(), "2.root.json": _signed(root, other.signers("root"))}
    world.refuses(forged, "not signed by enough trusted keys")


def test_a_changed_digest_breaks_the_signature(world: World) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = _name(files, "targets.json")
    evil = a_manifest(2, salt="evil").digest.encode()
    changed = files[name].replace(a_manifest(2).digest.encode(), evil)
    assert changed != files[name]
    world.refuses({**files, name: changed}, "do not belong together")


# ---- key compromise


def test_key_compromise_below_the_threshold_installs_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, targets=RoleRule(90 * DAY_S, keys=3, threshold=2))
    one, two, _ = world.signers("targets")
    world.refuses(forge(world.files(), [one], None, world), "not signed by enough trusted keys")
    world.refuses(forge(world.files(), [one, one], None, world), "not signed by enough trusted keys")
    assert world.trust.update(forge(world.files(), [one, two], None, world)).find(
        "digits", 2
    )  # a threshold is what it is


def test_key_compromise_ends_with_the_rotation(world: World) -> None:
    stolen = world.signers("targets")
    world.repository.rotate("targets", NOW)
    world.trust.update(world.files())
    world.refuses(forge(world.files(), stolen, _online(world), world), "not signed by enough trusted keys")


def _online(world: World) -> list[CryptoSigner]:
    return [*world.signers("snapshot"), *world.signers("timestamp")]


# ---- endless data, broken data


@pytest.mark.parametrize("part", ["2.root.json", "timestamp.json", "snapshot.json", "targets.json"])
def test_endless_data_is_refused(world: World, part: str) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = part if part == "2.root.json" else _name(files, part)
    world.refuses({**files, name: b"[" * (MAX_METADATA_BYTES + 1)}, "too large")


@pytest.mark.parametrize("part", ["timestamp.json", "snapshot.json", "targets.json"])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncated_metadata_is_refused(world: World, part: str, length: int) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = _name(files, part)
    world.refuses({**files, name: files[name][:length]}, "release metadata refused")


@pytest.mark.parametrize("data", [b"null", b"[]", b'{"signed": 1}', b'{"a":' * 3000, b"\xff\xfe"])
def test_metadata_that_is_nothing_of_the_kind_is_refused(world: World, data: bytes) -> None:
    world.refuses({**world.files(), "timestamp.json": data}, "release metadata refused")


def test_metadata_of_the_wrong_role_is_refused(world: World) -> None:
    files = world.files()
    world.refuses({**files, "timestamp.json": _one(files, "snapshot.json")}, "release metadata refused")


def test_a_target_without_a_digest_that_we_know_is_refused(world: World) -> None:
    files = world.files()
    targets = Metadata[Targets].from_bytes(_one(files, "targets.json"))
    targets.signed.targets["digits/1/manifest.json"].hashes = {"md5": "0" * 32}
    world_files = _resigned(world, targets)
    world.refuses(world_files, "not valid metadata")


def test_a_strange_mark_of_withdrawal_counts_as_withdrawn(world: World) -> None:
    targets = Metadata[Targets].from_bytes(_one(world.files(), "targets.json"))
    targets.signed.targets["digits/1/manifest.json"].unrecognized_fields["custom"] = {"withdrawn": "no"}
    assert world.trust.update(_resigned(world, targets)).is_withdrawn("digits", 1)


def _resigned(world: World, targets: Metadata[Targets]) -> Files:
    """Signed by the fleet's own keys: only its contents are strange."""
    files = world.files()
    targets.signed.version += 1
    data = _signed(targets, world.signers("targets"))
    snapshot = Metadata[Snapshot].from_bytes(_one(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets.signed.version, data, ["sha256"])
    snapshot_data = _signed(snapshot, world.signers("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot_data, ["sha256"])
    return {
        "1.root.json": files["1.root.json"],
        f"{targets.signed.version}.targets.json": data,
        f"{snapshot.signed.version}.snapshot.json": snapshot_data,
        "timestamp.json": _signed(timestamp, world.signers("timestamp")),
    }


# ---- the device's own trouble


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
