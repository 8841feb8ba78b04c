"""A database of any age becomes the one that the code expects, or is left alone."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from coordinator.fleet.device import AuditEntry
from coordinator.store.engine import open_engine, reading, transaction
from coordinator.store.fleet import SqlFleetStore
from coordinator.store.migrate import current, upgrade
from coordinator.store.tables import metadata
from shared.errors import Conflict
from tests.contract.conftest import engine

__all__ = ["engine"]


def test_the_migrations_lead_to_the_tables_of_the_code(engine: Engine) -> None:
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_upgrading_again_changes_nothing(engine: Engine) -> None:
    store = SqlFleetStore(engine)
    store.append_audit(AuditEntry(1.0, "admin", "test", "fleet"))
    before = current(engine)

    upgrade(engine)

    assert current(engine) == before
    assert len(store.audit(10)) == 1


def test_a_database_newer_than_the_code_is_refused_and_left_alone(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(Conflict, match=r"9999.*upgrade Shoal"):
        upgrade(engine)

    assert current(engine) == "9999"


def test_a_new_database_is_at_no_migration(tmp_path: Path) -> None:
    fresh = open_engine(f"sqlite:///{tmp_path / 'new.db'}")
    assert current(fresh) is None
    fresh.dispose()


def test_a_migration_that_fails_leaves_no_table_behind(tmp_path: Path) -> None:
    """The last table of the migration stands in the way, so it fails after it made the others."""
    database = open_engine(f"sqlite:///{tmp_path / 'half.db'}")
    last = "rollout_events"
    with transaction(database) as connection:
        connection.execute(text(f"CREATE TABLE {last} (id INTEGER)"))

    with pytest.raises(Exception, match="already exists"):
        upgrade(database)

    with reading(database) as connection:
        assert inspect(connection).get_table_names() == [last]
    database.dispose()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    database = open_engine(f"sqlite:///{tmp_path / 'busy.db'}")
    upgrade(database)
    store = SqlFleetStore(database)
    with transaction(database) as connection:
        connection.execute(text("UPDATE audit_log SET actor = 'x'"))
        assert store.devices() == []
    database.dispose()
