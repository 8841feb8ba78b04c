"""A release's manifest: which files make up the bundle, by digest. The manifest's own digest is what TUF metadata signs.

Because one signed digest fixes every file, weights of one release cannot be mixed with a graph of another.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Malformed
from shared.ids import Digest, digest_of, parse_digest, parse_name

FILES = ("model.json", "weights.safetensors", "model.onnx", "report.json")
MAX_MANIFEST_BYTES = 64 * 1024
MAX_FILE_BYTES = 4 * 1024**3
Scalar = str | int | float | bool


@dataclass(frozen=True)
class FileEntry:
    digest: Digest
    size: int  # bytes

    def __post_init__(self) -> None:
        parse_digest(self.digest)
        if not 0 < self.size <= MAX_FILE_BYTES:
            raise Malformed(f"a bundle file of {self.size} bytes")


@dataclass(frozen=True)
class Manifest:
    """`lineage` says where the bundle came from (job, round, parent release); `created_at` is seconds since the epoch."""

    model: str
    release: int
    files: Mapping[str, FileEntry]
    created_at: float
    lineage: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_name(self.model)
        if self.release < 1:
            raise Malformed("releases are numbered from 1")
        if set(self.files) != set(FILES):
            raise Malformed(f"a bundle is {', '.join(FILES)}; found {', '.join(sorted(self.files))[:200]}")
        if not math.isfinite(self.created_at):
            raise Malformed("a manifest's time is not a number")

    @property
    def digest(self) -> Digest:
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests give equal bytes."""
        value = {
            "created_at": self.created_at,
            "files": {name: {"sha256": entry.digest, "size": entry.size} for name, entry in self.files.items()},
            "lineage": dict(self.lineage),
            "model": self.model,
            "release": self.release,
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Raises `Malformed` for anything that `to_bytes` did not write."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise Malformed("the manifest is too large")
        try:
            value = json.loads(data)
            manifest = cls(
                model=_typed(value["model"], str),
                release=_typed(value["release"], int),
                files={
                    name: FileEntry(parse_digest(_typed(entry["sha256"], str)), _typed(entry["size"], int))
                    for name, entry in _typed(value["files"], dict).items()
                },
                created_at=float(_typed(value["created_at"], float)),
                lineage={key: _scalar(item) for key, item in _typed(value["lineage"], dict).items()},
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Malformed("not a manifest", detail=str(error)[:200]) from error
        if manifest.to_bytes() != data:
            raise Malformed("the manifest is not in canonical form")
        return manifest


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _scalar(value: Any) -> Scalar:
    if type(value) not in (str, int, float, bool):
        raise TypeError(f"lineage holds plain values, found {type(value).__name__}")
    return value  # type: ignore[no-any-return]  # checked above
