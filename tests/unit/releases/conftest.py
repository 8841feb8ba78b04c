"""Fixtures of the releases' tests."""

from pathlib import Path

import pytest

from tests.unit.releases.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
