"""Fixtures of the integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.rounds.memory import MemoryJobStore
from tests.job_place import Place
from tests.memory_fleet import MemoryFleet


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(MemoryFleet(), MemoryJobStore(), tmp_path)
    found.fleet.attach_all()
    yield found
    for service in found.services:
        service.close()
    found.fleet.close()
