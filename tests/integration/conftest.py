"""Fixtures of the integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.grid_scene import Scene, Scenes
from tests.job_place import Place, Places


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with Places(tmp_path) as made:
        yield made


@pytest.fixture
def place(places: Places) -> Place:
    return places.make()


@pytest.fixture
def scenes() -> Iterator[Scenes]:
    with Scenes() as made:
        yield made


@pytest.fixture
def scene(scenes: Scenes) -> Scene:
    return scenes.make()
