"""A fleet's release metadata, a device that trusts it, and means to forge it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from coordinator.releases.metadata import RoleRule
from coordinator.releases.repository import Repository
from shared.errors import Untrusted
from shared.signing.certificates import load_key
from shared.signing.trust import Trust
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


def forge(files: Files, targets: list[CryptoSigner], online: list[CryptoSigner] | None, world: World) -> Files:
    """The newest metadata with a malicious release 2 in it, signed by the given keys; `online` None keeps the real ones."""
    forged = Metadata[Targets].from_bytes(one_of(files, "targets.json"))
    forged.signed.version += 1
    evil = a_manifest(2, salt="evil")
    path = "digits/2/manifest.json"
    forged.signed.targets[path] = TargetFile(len(evil.to_bytes()), {"sha256": evil.digest}, path)
    data = signed(forged, targets)
    version = forged.signed.version
    snapshot = Metadata[Snapshot].from_bytes(one_of(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, data, ["sha256"])
    snapshot_data = signed(snapshot, world.signers("snapshot") if online is None else online)
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot_data, ["sha256"])
    return {
        **{name: content for name, content in files.items() if name.endswith("root.json")},
        f"{version}.targets.json": data,
        f"{snapshot.signed.version}.snapshot.json": snapshot_data,
        "timestamp.json": signed(timestamp, world.signers("timestamp") if online is None else online),
    }


def signed(metadata: Metadata, signers: list[CryptoSigner]) -> bytes:  # type: ignore[type-arg]  # any role
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def one_of(files: Mapping[str, bytes], ending: str) -> bytes:
    (data,) = [data for name, data in files.items() if name.endswith(ending)]
    return data


def name_of(files: Mapping[str, bytes], ending: str) -> str:
    return next(name for name in files if name.endswith(ending))


def resigned(world: World, targets: Metadata[Targets]) -> Files:
    """Signed by the fleet's own keys: only its contents are strange."""
    files = world.files()
    targets.signed.version += 1
    data = signed(targets, world.signers("targets"))
    snapshot = Metadata[Snapshot].from_bytes(one_of(files, "snapshot.json"))
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets.signed.version, data, ["sha256"])
    snapshot_data = signed(snapshot, world.signers("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot_data, ["sha256"])
    return {
        "1.root.json": files["1.root.json"],
        f"{targets.signed.version}.targets.json": data,
        f"{snapshot.signed.version}.snapshot.json": snapshot_data,
        "timestamp.json": signed(timestamp, world.signers("timestamp")),
    }
