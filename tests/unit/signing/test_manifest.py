import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.ids import digest_of
from shared.signing.manifest import FILES, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileEntry, Manifest

MANIFEST = Manifest(
    "digits", 3, {name: FileEntry(digest_of(name.encode()), 10) for name in FILES}, 1e9, {"job": "job-1", "round": 6}
)


@given(
    st.integers(1, 10**6),
    st.dictionaries(st.text(max_size=10), st.text(max_size=10) | st.integers() | st.booleans(), max_size=5),
    st.floats(0, 4e9),
)
def test_a_manifest_comes_back_from_its_bytes(release: int, lineage: dict[str, Any], created_at: float) -> None:
    manifest = replace(MANIFEST, release=release, lineage=lineage, created_at=created_at)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_equal_manifests_have_equal_bytes_whatever_the_order() -> None:
    turned = replace(
        MANIFEST,
        files=dict(reversed(list(MANIFEST.files.items()))),
        lineage=dict(reversed(list(MANIFEST.lineage.items()))),
    )
    assert (turned.to_bytes(), turned.digest) == (MANIFEST.to_bytes(), MANIFEST.digest)


def test_any_other_file_gives_another_digest() -> None:
    for name in FILES:
        changed = replace(MANIFEST, files={**MANIFEST.files, name: FileEntry(digest_of(b"other"), 10)})
        assert changed.digest != MANIFEST.digest


def _json(**changes: Any) -> bytes:
    values = {**json.loads(MANIFEST.to_bytes()), **changes}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _files(**changes: Any) -> bytes:
    return _json(files={**json.loads(MANIFEST.to_bytes())["files"], **changes})


ENTRY = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "a list": b"[]",
        "a path for a name": _files(**{"../weights": ENTRY}),
        "a file too many": _files(**{"setup.py": ENTRY}),
        "a file too few": _json(files={"model.json": ENTRY}),
        "no files": _json(files={}),
        "a bad digest": _files(**{"model.json": {"sha256": "X" * 64, "size": 1}}),
        "an empty file": _files(**{"model.json": {"sha256": "0" * 64, "size": 0}}),
        "an endless file": _files(**{"model.json": {"sha256": "0" * 64, "size": MAX_FILE_BYTES + 1}}),
        "a size that is true": _files(**{"model.json": {"sha256": "0" * 64, "size": True}}),
        "an entry with more": _files(**{"model.json": {**ENTRY, "url": "http://elsewhere"}}),
        "release zero": _json(release=0),
        "a release that is no number": _json(release="1"),
        "a bad model name": _json(model="../digits"),
        "an unknown field": _json(extra=1),
        "lineage with structure": _json(lineage={"a": [1]}),
        "time that is no number": MANIFEST.to_bytes().replace(b"1000000000.0", b"NaN"),
        "spaces": MANIFEST.to_bytes().replace(b",", b", "),
        "too large": _json(lineage={"a": "x" * MAX_MANIFEST_BYTES}),
        "too deep": b"[" * 50_000,
    }.values(),
)
def test_bytes_that_are_no_manifest_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Manifest.from_bytes(data)
