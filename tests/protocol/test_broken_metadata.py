"""Release metadata that is endless, cut, of another kind or strange: refused, or read so that nothing is installed."""

import pytest
from tuf.api.metadata import Metadata, Targets

from shared.signing.trust import MAX_METADATA_BYTES
from tests.protocol.tuf_world import World, name_of, one_of, resigned
from tests.unit.releases.factories import NOW, a_manifest


@pytest.mark.parametrize("part", ["2.root.json", "timestamp.json", "snapshot.json", "targets.json"])
def test_endless_data_is_refused(world: World, part: str) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = part if part == "2.root.json" else name_of(files, part)
    world.refuses({**files, name: b"[" * (MAX_METADATA_BYTES + 1)}, "too large")


@pytest.mark.parametrize("part", ["timestamp.json", "snapshot.json", "targets.json"])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncated_metadata_is_refused(world: World, part: str, length: int) -> None:
    world.repository.publish(a_manifest(2), NOW)
    files = world.files()
    name = name_of(files, part)
    world.refuses({**files, name: files[name][:length]}, "release metadata refused")


@pytest.mark.parametrize("data", [b"null", b"[]", b'{"signed": 1}', b'{"a":' * 3000, b"\xff\xfe"])
def test_metadata_that_is_nothing_of_the_kind_is_refused(world: World, data: bytes) -> None:
    world.refuses({**world.files(), "timestamp.json": data}, "release metadata refused")


def test_metadata_of_the_wrong_role_is_refused(world: World) -> None:
    files = world.files()
    world.refuses({**files, "timestamp.json": one_of(files, "snapshot.json")}, "release metadata refused")


def test_a_target_without_a_digest_that_we_know_is_refused(world: World) -> None:
    files = world.files()
    targets = Metadata[Targets].from_bytes(one_of(files, "targets.json"))
    targets.signed.targets["digits/1/manifest.json"].hashes = {"md5": "0" * 32}
    world_files = resigned(world, targets)
    world.refuses(world_files, "not valid metadata")


def test_a_strange_mark_of_withdrawal_counts_as_withdrawn(world: World) -> None:
    targets = Metadata[Targets].from_bytes(one_of(world.files(), "targets.json"))
    targets.signed.targets["digits/1/manifest.json"].unrecognized_fields["custom"] = {"withdrawn": "no"}
    assert world.trust.update(resigned(world, targets)).is_withdrawn("digits", 1)
