"""A model as a folder of four files, each checked before anything believes it. No torch, no pickle.

model.json            what the model is (`shared.learning.spec`)
weights.safetensors   the float master
model.onnx            int8, for devices that only serve
report.json           what was measured when it was built, and where it came from
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from shared.errors import Conflict, DigestMismatch, InputError, Malformed, NotFound, UpdateRejected
from shared.files import fsync_folder, storage_errors, write_atomic
from shared.ids import Digest, digest_of
from shared.learning.graph import MAX_GRAPH_BYTES, check_graph
from shared.learning.measure import Probe
from shared.learning.spec import MAX_SPEC_BYTES, ModelSpec
from shared.learning.state import State, pack_state, unpack_state
from shared.settings import Scalar, from_mapping
from shared.signing.manifest import FileEntry

MODEL, WEIGHTS, GRAPH, REPORT = "model.json", "weights.safetensors", "model.onnx", "report.json"
MAX_REPORT_BYTES = 1024**2
LIMITS: Mapping[str, int] = {
    MODEL: MAX_SPEC_BYTES,
    WEIGHTS: 2 * 1024**3,
    GRAPH: MAX_GRAPH_BYTES,
    REPORT: MAX_REPORT_BYTES,
}


@dataclass(frozen=True)
class Report:
    """Accuracies are shares of the held-out public examples; None: not measured. `accuracy` is the int8 graph's."""

    accuracy: float | None = None
    accuracy_float: float | None = None
    examples: int = 0  # held out, behind the accuracies
    forgetting: float | None = None  # accuracy lost on older data, a share
    parameters: int = 0
    macs: int = 0  # multiply-accumulates for one example
    graph_bytes: int = 0
    weights_bytes: int = 0
    weight_bits: int = 0
    max_logit_difference: float | None = None  # int8 in ONNX Runtime against fake-quantized, on a probe
    top1_agreement: float | None = None
    probe: Probe = field(default_factory=Probe)
    lineage: dict[str, Scalar] = field(default_factory=dict)  # job, round, parent release …

    def __post_init__(self) -> None:
        for name in ("accuracy", "accuracy_float", "top1_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share between 0 and 1")
        for value in (self.forgetting, self.max_logit_difference, *self.lineage.values()):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("a figure is not finite")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False)


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check. `graph` is the file's bytes."""

    spec: ModelSpec
    state: State = field(repr=False)
    graph: bytes = field(repr=False)
    report: Report


class Signed(Protocol):
    """What a signed manifest says of one file."""

    @property
    def digest(self) -> Digest: ...

    @property
    def size(self) -> int: ...


def write_bundle(path: Path, bundle: Bundle) -> None:
    """A folder that is whole or absent. Raises `Conflict` if `path` exists, `Malformed` or `UpdateRejected` for parts that
    `read_bundle` would refuse, `StorageFull`; nothing is then left behind.
    """
    check_graph(bundle.graph, bundle.spec.schema)
    contents = {
        MODEL: bundle.spec.to_json().encode(),
        WEIGHTS: pack_state(bundle.state),
        GRAPH: bundle.graph,
        REPORT: bundle.report.to_json().encode(),
    }
    for name, data in contents.items():
        _check_size(name, len(data))
    unpack_state(contents[WEIGHTS])
    write_folder(path, contents)


def require_absent(path: Path) -> None:
    """Raises `Conflict`."""
    if path.exists():
        raise Conflict(f"{path} exists already: choose another place, or remove it")


def write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Files in a new folder, all or none: written beside it, synced, renamed. Raises `Conflict` and `StorageFull`."""
    require_absent(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with storage_errors(path.name):
        try:
            temporary.mkdir(parents=True)
            for name, data in contents.items():
                write_atomic(temporary / name, data)
            os.rename(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def read_bundle(path: Path, expected: Mapping[str, Signed] | None = None) -> Bundle:
    """Read and check everything: names, sizes, digests if `expected` (a signed manifest's) is given, the spec, the weights,
    the graph against the spec's schema.

    Raises `NotFound` for no folder, `DigestMismatch` for other bytes than expected, `Malformed` for the rest.
    """
    return _judge(_contents(path), expected)


def _judge(contents: Mapping[str, bytes], expected: Mapping[str, Signed] | None) -> Bundle:
    for name, entry in (expected or {}).items():
        if name not in contents or len(contents[name]) != entry.size or digest_of(contents[name]) != entry.digest:
            raise DigestMismatch(f"{name[:80]} of the bundle is not what was signed")
    spec = ModelSpec.from_json(contents[MODEL])
    try:
        state = unpack_state(contents[WEIGHTS])
    except UpdateRejected as error:
        raise Malformed(f"{WEIGHTS}: {error.message}", detail=error.detail) from error
    check_graph(contents[GRAPH], spec.schema)
    return Bundle(spec, state, contents[GRAPH], _parse_report(contents[REPORT]))


def _contents(path: Path) -> dict[str, bytes]:
    try:
        with os.scandir(path) as entries:
            found = {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no bundle at {path}") from error
    if found.keys() != LIMITS.keys():
        raise Malformed(f"a bundle is {', '.join(LIMITS)}; found {', '.join(sorted(found))[:200] or 'nothing'}")
    contents = {}
    for name, entry in found.items():
        if not entry.is_file(follow_symlinks=False):
            raise Malformed(f"{name} of the bundle is not a plain file")
        _check_size(name, entry.stat(follow_symlinks=False).st_size)
        contents[name] = Path(entry.path).read_bytes()
    return contents


def _check_size(name: str, size: int) -> None:
    if not size:
        raise Malformed(f"{name} is empty")
    if size > LIMITS[name]:
        raise Malformed(f"{name} has {size} bytes, at most {LIMITS[name]} are allowed")


def _parse_report(data: bytes) -> Report:
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{REPORT} is not a JSON object", detail=str(error)[:200]) from error
    try:
        return from_mapping(Report, value, where=REPORT)
    except InputError as error:
        raise Malformed(error.message) from error


def inspect_bundle(path: Path) -> dict[str, FileEntry]:
    """Digest and size of each file of a bundle that `read_bundle` accepts: the same bytes are judged and digested.

    Raises as `read_bundle` does.
    """
    contents = _contents(path)
    _judge(contents, None)
    return {name: FileEntry(digest_of(data), len(data)) for name, data in sorted(contents.items())}
