"""A database of any age becomes the one that the code expects, or is left alone."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from coordinator.fleet.device import AuditEntry
from coordinator.store.engine import open_engine, reading, transaction
from coordinator.store.fleet import SqlFleetStore, SqlMetricStore
from coordinator.store.migrate import SCRIPTS, current, upgrade
from coordinator.store.tables import metadata
from shared.errors import Conflict
from shared.ids import DeviceId
from shared.session import MetricBatch
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


def migrate_to(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_metrics_that_were_acknowledged_before_spools_had_names_stay_so(tmp_path: Path) -> None:
    """And a device that goes on with its old spool, which has no name, is not asked for what was stored already."""
    database = open_engine(f"sqlite:///{tmp_path / 'old.db'}")
    migrate_to(database, "0001")
    whole, gap, late = "dev-whole", "dev-gap", "dev-late"
    with transaction(database) as connection:
        for place, (device, numbers) in enumerate({whole: (1, 2, 3), gap: (1, 2, 4), late: (7, 8)}.items()):
            values = {"device": device, "place": place, "key": str(place)}
            connection.execute(
                text(
                    "INSERT INTO devices VALUES (:device, :place, :device, 'active', '{}', '{}', :key, '', 0, '', 0, 0, '', '')"
                ),
                values,
            )
            for number in numbers:
                row = {"device": device, "number": number}
                connection.execute(text("INSERT INTO metric_batches VALUES (:device, :number, 1.0, 2.0, '[]')"), row)

    upgrade(database)

    store = SqlMetricStore(database)
    assert {device: batch.sequence for device, batch in store.latest().items()} == {whole: 3, gap: 4, late: 8}
    assert store.add(DeviceId(whole), [MetricBatch(4, 3.0, ())], 5.0) == 4
    assert store.add(DeviceId(gap), [MetricBatch(3, 3.0, ())], 5.0) == 4
    assert store.add(DeviceId(late), [MetricBatch(9, 3.0, ())], 5.0) == 0
    assert store.add(DeviceId(whole), [MetricBatch(1, 9.0, (), "new")], 6.0) == 1
    database.dispose()


def test_tokens_of_before_say_who_used_them_where_that_can_still_be_known(tmp_path: Path) -> None:
    database = open_engine(f"sqlite:///{tmp_path / 'old.db'}")
    migrate_to(database, "0002")
    with transaction(database) as connection:
        connection.execute(
            text(
                "INSERT INTO devices VALUES ('dev-1', 1, 'one', 'active', '{}', '{}', 'key-1', '', 0, '', 0, 0, '', '')"
            )
        )
        for token, key in (("unused", None), ("used", "key-1"), ("renewed", "key-of-then")):
            values = {"token": token, "key": key}
            connection.execute(text("INSERT INTO join_tokens VALUES (:token, 'x', '{}', 0, 1, 2, :key, 1)"), values)

    upgrade(database)

    found = {token.id: token for token in SqlFleetStore(database).tokens()}
    assert {name: token.device for name, token in found.items()} == {"unused": "", "used": "dev-1", "renewed": ""}
    assert {(token.created_by, token.revoked_at) for token in found.values()} == {("", 0.0)}
    database.dispose()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    database = open_engine(f"sqlite:///{tmp_path / 'busy.db'}")
    upgrade(database)
    store = SqlFleetStore(database)
    with transaction(database) as connection:
        connection.execute(text("UPDATE audit_log SET actor = 'x'"))
        assert store.devices() == []
    database.dispose()
