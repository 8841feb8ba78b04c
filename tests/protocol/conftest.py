"""Fixtures of the protocols' tests."""

from pathlib import Path

import pytest

from tests.protocol.tuf_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
