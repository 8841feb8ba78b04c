"""Attacks on release metadata, named as in the TUF specification (1.0, section 1.5): each is refused and changes nothing on disk.

The device reads the machine's clock, so what must be expired is signed as if long ago.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from coordinator.releases.metadata import DAY_S, RoleRule
from coordinator.releases.repository import Repository
from shared.errors import Untrusted
from shared.signing.certificates import generate_key
from shared.signing.trust import Trust
from tests.protocol.tuf_world import NOT_AS_SIGNED, World, forge, name_of, one_of, signed
from tests.unit.releases.factories import NOW, a_manifest, a_pen

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
    old_targets = one_of(world.files(), "targets.json")
    version = Metadata[Targets].from_bytes(old_targets).signed.version
    world.repository.publish(a_manifest(2), NOW)
    world.trust.update(world.files())
    files = world.files()
    snapshot = Metadata[Snapshot].from_bytes(one_of(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, old_targets, ["sha256"])
    data = signed(snapshot, world.signers("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    forged = {
        "1.root.json": files["1.root.json"],
        "timestamp.json": signed(timestamp, world.signers("timestamp")),
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
    stale = {**kept_back, "timestamp.json": signed(timestamp, world.signers("timestamp"))}
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
    world.refuses({**new, name_of(new, part): one_of(old, part)}, NOT_AS_SIGNED)


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
    world.refuses({**mine, name_of(mine, part): one_of(other.files(), part)}, why)


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
    forged = {**other.files(), "2.root.json": signed(root, other.signers("root"))}
    world.refuses(forged, "not signed by enough trusted keys")


def test_a_changed_digest_breaks_the_signature(world: World) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = name_of(files, "targets.json")
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
    world.refuses(forge(world.files(), stolen, online_of(world), world), "not signed by enough trusted keys")


def online_of(world: World) -> list[CryptoSigner]:
    return [*world.signers("snapshot"), *world.signers("timestamp")]
