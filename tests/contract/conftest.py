"""Databases and stores for the contract suites: SQLite always, PostgreSQL when SHOAL_TEST_POSTGRES_URL names a server."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from coordinator.fleet.ports import FleetStore, MetricStore
from coordinator.store.engine import open_engine
from coordinator.store.fleet import SqlFleetStore, SqlMetricStore
from coordinator.store.memory_fleet import MemoryFleetStore, MemoryMetricStore
from coordinator.store.migrate import upgrade
from tests.contract.fleet_rows import ENTRY, device, token

Build = Callable[[type, type], object]


@contextmanager
def _sqlite(folder: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{folder / 'test.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@contextmanager
def _postgresql() -> Iterator[Engine]:
    """A database of its own, dropped afterwards."""
    url = os.environ.get("SHOAL_TEST_POSTGRES_URL")
    if not url:
        pytest.skip("no PostgreSQL: set SHOAL_TEST_POSTGRES_URL")
    name = f"shoal_{uuid.uuid4().hex}"
    server = open_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = open_engine(make_url(url).set(database=name).render_as_string(hide_password=False))
    upgrade(engine)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A fresh, migrated database of each kind."""
    with _sqlite(tmp_path) if request.param == "sqlite" else _postgresql() as database:
        yield database


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    """`store_kind(Memory, Sql)` builds the store under test: in memory, or on a fresh database."""
    if request.param == "memory":
        yield lambda memory, _sql: memory()
        return
    with ExitStack() as stack:
        database = stack.enter_context(_sqlite(tmp_path) if request.param == "sqlite" else _postgresql())
        yield lambda _memory, sql: sql(database)


@pytest.fixture
def fleet(store_kind: Build) -> FleetStore:
    return store_kind(MemoryFleetStore, SqlFleetStore)  # type: ignore[return-value]


@pytest.fixture
def metrics(store_kind: Build, fleet: FleetStore) -> MetricStore:
    """For a fleet of one, dev1."""
    fleet.add_tokens([token("t1")], ENTRY)
    fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    return store_kind(MemoryMetricStore, SqlMetricStore)  # type: ignore[return-value]
