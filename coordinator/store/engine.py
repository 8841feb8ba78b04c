"""One SQLAlchemy engine for the coordinator: SQLite by default, PostgreSQL by URL.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that returned survives power loss, and only then is anything acknowledged.
Writers take the lock when the transaction begins (`BEGIN IMMEDIATE`), so two of them queue instead of failing half way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from shared.errors import ConfigError, ShoalError, StorageFull, Unavailable

BUSY_TIMEOUT_S = 30.0
_READ_ONLY = "shoal_read_only"
_SQLITE, _POSTGRESQL = "sqlite", "postgresql+psycopg"


def check_url(url: URL | str) -> URL:
    """Raises `ConfigError` for what is no URL of a database that we know. Nothing is connected."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):  # a bare ValueError for a port that is no number; it may quote the password
        raise _bad_url("it cannot be read as a URL; in a password write %40 for @, %3A for : and %2F for /") from None
    if found.drivername == _SQLITE:
        if not (found.database or "").startswith("/"):  # without a path SQLite keeps it in memory
            raise _bad_url("SQLite needs an absolute path, as in sqlite:////srv/shoal/coordinator.db")
        return found
    if found.drivername != _POSTGRESQL:
        raise _bad_url(f"it begins with {_POSTGRESQL}:// or {_SQLITE}:///")
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo
    except ImportError as error:
        raise _bad_url("PostgreSQL needs a driver: pip install 'shoal[postgres]'", error) from error
    try:
        make_conninfo(**dict.fromkeys(found.query, ""))
    except ProgrammingError as error:
        raise _bad_url("PostgreSQL does not know what stands behind the ?", error) from error
    return found


def _bad_url(message: str, reason: Exception | None = None) -> ConfigError:
    """Without the URL: it may hold a password."""
    return ConfigError(message, path="database_url", detail=str(reason or "").strip()[:200])


def open_engine(url: URL | str) -> Engine:
    """An engine for `sqlite:////path` or `postgresql+psycopg://…`. Nothing is connected yet. Raises `ConfigError`."""
    place = check_url(url)
    if place.drivername == _POSTGRESQL:
        return create_engine(place, pool_pre_ping=True)
    engine = create_engine(place, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

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
