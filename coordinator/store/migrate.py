"""Brings a database to the tables that this code expects (Alembic, driven from here: there is no ini file)."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from coordinator.store.engine import reading, transaction
from shared.errors import Conflict

SCRIPTS = Path(__file__).with_name("migrations")


def current(engine: Engine) -> str | None:
    """The migration that the database is at; None for an empty one."""
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: Engine) -> None:
    """Run what is missing, each migration in a transaction. Raises `Conflict` for a database newer than this code."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with transaction(engine) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found not in known:
            raise Conflict(f"the database is at migration {found}, which this version does not know; upgrade Shoal")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
