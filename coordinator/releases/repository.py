"""The publisher of release metadata: The Update Framework (specification 1.0) with python-tuf.

Files in `metadata/`, with consistent snapshots: `N.root.json`, `N.targets.json`, `N.snapshot.json`, `timestamp.json`. The
timestamp is written last, and what it does not lead to does not exist: a crash between any two writes leaves the repository as it
was before, and the next change writes the same version again. A key is rotated by signing with the old and the new keys first and
writing the new root last, so devices can follow before and after.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from coordinator.releases.metadata import ROLES, Pen, parse
from shared.errors import Conflict, Corrupt, InputError, NotFound
from shared.signing.manifest import Manifest
from shared.signing.trust import WITHDRAWN, target_path


@dataclass(frozen=True)
class _InForce:
    """What the timestamp leads to. `files` holds that, and every root."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp
    files: Mapping[str, bytes] = field(repr=False)


class Repository:
    """Not safe to call from several threads at once: `ReleaseService` holds a lock."""

    def __init__(self, pen: Pen) -> None:
        """Opens what `init` made. Raises `NotFound` before that, `Corrupt`."""
        self._pen = pen
        self._in_force = _load(pen)

    @classmethod
    def init(cls, pen: Pen, now: float) -> "Repository":
        """Make keys and first metadata. Where that was done nothing changes; where it was cut off it is done anew."""
        if not (pen.places.metadata / "timestamp.json").exists():
            pen.places.metadata.mkdir(parents=True, exist_ok=True)
            root = Root(version=1, expires=pen.rules["root"].expiry(now), consistent_snapshot=True)
            for role in ROLES:
                pen.make_keys(root, role)
            pen.write_root(root, ())
            targets = Targets(version=1, expires=pen.rules["targets"].expiry(now))
            data = pen.write_targets(targets, (root,))
            data = pen.write_snapshot(1, (1, data), now, (root,))
            pen.write_timestamp(1, (1, data), now, (root,))
        return cls(pen)

    @property
    def root_version(self) -> int:
        return self._in_force.root.version

    # ---- what devices get

    @property
    def first_root(self) -> bytes:
        """What a device trusts from enrolment on."""
        return self._in_force.files["1.root.json"]

    def bundle_of_metadata(self) -> dict[str, bytes]:
        """Every file that a device needs, by name: all roots, timestamp, snapshot, targets."""
        return dict(self._in_force.files)

    # ---- releases

    def is_published(self, model: str, release: int) -> bool:
        return target_path(model, release) in self._in_force.targets.targets

    def is_withdrawn(self, model: str, release: int) -> bool:
        target = self._in_force.targets.targets.get(target_path(model, release))
        return target is not None and bool((target.custom or {}).get(WITHDRAWN))

    def publish(self, manifest: Manifest, now: float) -> None:
        """Sign a manifest's digest. Publishing it again changes nothing. Raises `Conflict` for another one of that number."""
        path, data = target_path(manifest.model, manifest.release), manifest.to_bytes()
        found = self._in_force.targets.targets.get(path)
        if found is None:
            self._sign_targets({path: TargetFile(len(data), {"sha256": manifest.digest}, path)}, now)
        elif found.hashes.get("sha256") != manifest.digest:
            raise Conflict(f"release {manifest.model}:{manifest.release} was signed with other contents")

    def withdraw(self, model: str, release: int, now: float) -> None:
        """Mark a release so that devices may go back behind it. Doing it again changes nothing. Raises `NotFound`."""
        path = target_path(model, release)
        found = self._in_force.targets.targets.get(path)
        if found is None:
            raise NotFound(f"release {model}:{release} was never signed")
        if not self.is_withdrawn(model, release):
            marked = TargetFile(found.length, dict(found.hashes), path, {"custom": {WITHDRAWN: True}})
            self._sign_targets({path: marked}, now)

    # ---- upkeep

    def refresh(self, now: float) -> tuple[str, ...]:
        """Sign again what has lived through half its life (root and targets: two thirds); returns which roles that were.

        The root is left alone while its keys are elsewhere.
        """
        in_force = self._in_force
        if self._is_due("root", in_force.root, 2 / 3, now) and self._holds_root_keys():
            self._change_root(lambda root: None, now)
            return ROLES
        if self._is_due("targets", in_force.targets, 2 / 3, now):
            self._sign_targets({}, now)
            return ROLES[1:]
        if self._is_due("snapshot", in_force.snapshot, 1 / 2, now):
            version = in_force.targets.version
            self._sign_snapshot((version, in_force.files[f"{version}.targets.json"]), now, (in_force.root,))
            self._in_force = _load(self._pen)
            return ROLES[2:]
        if self._is_due("timestamp", in_force.timestamp, 1 / 2, now):
            version = in_force.snapshot.version
            self._sign_timestamp((version, in_force.files[f"{version}.snapshot.json"]), now, (in_force.root,))
            self._in_force = _load(self._pen)
            return ROLES[3:]
        return ()

    def rotate(self, role: str, now: float) -> None:
        """Replace a role's keys; the old ones stop counting with the new root. Needs the root's keys.

        Raises `InputError` for an unknown role, `Corrupt` when the root's keys are not there.
        """
        if role not in ROLES:
            raise InputError(f"a role is one of {', '.join(ROLES)}, not {role!r}")
        old = list(self._in_force.root.roles[role].keyids)

        def replace_keys(root: Root) -> None:
            for keyid in old:
                root.revoke_key(keyid, role)
            self._pen.make_keys(root, role)

        self._change_root(replace_keys, now)
        for keyid in old:
            self._pen.key_file(role, keyid).unlink(missing_ok=True)

    def _is_due(self, role: str, signed: Signed, share: float, now: float) -> bool:
        return now >= signed.expires.timestamp() - (1 - share) * self._pen.rules[role].valid_for_s

    def _holds_root_keys(self) -> bool:
        root = self._in_force.root.roles["root"]
        return sum(self._pen.key_file("root", keyid).exists() for keyid in root.keyids) >= root.threshold

    # ---- writing, each file after what it vouches for

    def _change_root(self, change: Callable[[Root], None], now: float) -> None:
        old = self._in_force.root
        new = parse(Root, self._in_force.files[f"{old.version}.root.json"])
        change(new)
        new.version, new.expires = old.version + 1, self._pen.rules["root"].expiry(now)
        self._pen.signers("root", (old, new))  # missing root keys stop this before anything is written
        self._sign_targets({}, now, (old, new))
        self._pen.write_root(new, (old,))
        self._in_force = _load(self._pen)

    def _sign_targets(self, changed: Mapping[str, TargetFile], now: float, roots: tuple[Root, ...] = ()) -> None:
        roots = roots or (self._in_force.root,)
        old = self._in_force.targets
        targets = Targets(
            version=old.version + 1,
            expires=self._pen.rules["targets"].expiry(now),
            targets={**old.targets, **changed},
        )
        self._sign_snapshot((targets.version, self._pen.write_targets(targets, roots)), now, roots)
        self._in_force = _load(self._pen)

    def _sign_snapshot(self, targets: tuple[int, bytes], now: float, roots: tuple[Root, ...]) -> None:
        version = self._in_force.snapshot.version + 1
        self._sign_timestamp((version, self._pen.write_snapshot(version, targets, now, roots)), now, roots)

    def _sign_timestamp(self, snapshot: tuple[int, bytes], now: float, roots: tuple[Root, ...]) -> None:
        self._pen.write_timestamp(self._in_force.timestamp.version + 1, snapshot, now, roots)


def _load(pen: Pen) -> _InForce:
    folder = pen.places.metadata
    if not (folder / "timestamp.json").exists():
        raise NotFound(f"no release metadata in {folder}; run `coordinator init` first")
    try:
        files = {path.name: path.read_bytes() for path in folder.glob("[0-9]*.root.json")}
        newest = max(int(name.partition(".")[0]) for name in files)
        root = parse(Root, files[f"{newest}.root.json"])

        def read(role: str, name: str) -> bytes:
            files[name] = (folder / name).read_bytes()
            metadata = Metadata.from_bytes(files[name])
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            return files[name]

        timestamp = parse(Timestamp, read("timestamp", "timestamp.json"))
        snapshot = parse(Snapshot, read("snapshot", f"{timestamp.snapshot_meta.version}.snapshot.json"))
        targets = parse(Targets, read("targets", f"{snapshot.meta['targets.json'].version}.targets.json"))
    except (OSError, ValueError, KeyError, RepositoryError) as error:
        raise Corrupt(f"release metadata in {folder} does not hold; restore it", detail=str(error)[:200]) from error
    return _InForce(root, targets, snapshot, timestamp, files)
