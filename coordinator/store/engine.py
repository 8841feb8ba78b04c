"""One SQLAlchemy engine for the coordinator: SQLite by default, PostgreSQL by URL.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that returned survives power loss, and only then is anything acknowledged.
Writers take the lock when the transaction begins (`BEGIN IMMEDIATE`), so two of them queue instead of failing half way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.errors import ShoalError, StorageFull, Unavailable

BUSY_TIMEOUT_S = 30.0
_READ_ONLY = "shoal_read_only"


def open_engine(url: str) -> Engine:
    """An engine for `sqlite:///path` or `postgresql+psycopg://…`. Nothing is connected yet."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(_READ_ONLY) else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Commit on success, roll back on any error. Raises `StorageFull` or `Unavailable` in place of the driver's errors."""
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as error:
        raise _translate(error) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _translate(error) from error
        raise


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """`transaction` for reads alone: one snapshot, and on SQLite no waiting for whoever writes."""
    with transaction(engine.execution_options(**{_READ_ONLY: True})) as connection:
        yield connection


def _translate(error: DBAPIError) -> ShoalError:
    text = str(error.orig)
    if "full" in text or "No space left" in text:
        return StorageFull("the database's disk is full; nothing was changed", detail=text[:200])
    return Unavailable("the database did not answer; try again", detail=text[:200])
