"""The coordinator's settings: one frozen dataclass, read from `HOME/coordinator.toml`, flags on top."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigError
from shared.settings import load_toml, with_overrides

if TYPE_CHECKING:
    from sqlalchemy import URL

FILE_NAME = "coordinator.toml"


@dataclass(frozen=True)
class CoordinatorConfig:
    """Ports: 0 lets the operating system choose; `HOME/run/ready.json` then says which."""

    fleet_name: str = "fleet"
    host: str = "127.0.0.1"  # address that the services bind
    advertised_host: str = "localhost"  # what agents dial; a name in the server's certificate
    extra_hosts: tuple[str, ...] = ()  # more names or addresses for the server's certificate
    enrolment_port: int = 7450
    fleet_port: int = 7451
    metrics_port: int = 7452  # Prometheus, on `metrics_host`
    metrics_host: str = "127.0.0.1"
    database_url: str = ""  # empty: SQLite in the home folder; postgresql+psycopg://… otherwise
    blobs_url: str = ""  # empty: a folder in the home folder; otherwise any fsspec URL, s3://… say
    heartbeat_s: float = 5.0
    reconnect_grace_s: float = 10.0  # how long a task survives its device's stream
    device_certificate_days: float = 90.0
    max_blob_mib: int = 4096
    retention_days: float = 90.0  # of the audit log, device metrics, ended rollouts and join tokens that expired unused
    rollout_tick_s: float = 0.5
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        for name in ("enrolment_port", "fleet_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} is a port, 0 to 65535")
        for name in (
            "heartbeat_s",
            "reconnect_grace_s",
            "device_certificate_days",
            "retention_days",
            "rollout_tick_s",
            "max_blob_mib",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError("log_level is one of debug, info, warning, error")

    def database(self, home: Path) -> "URL | str":
        """A file in `home` unless another is set. A path may hold what would mean something in a URL."""
        from sqlalchemy import URL  # half a second, and most commands need no database

        return self.database_url or URL.create("sqlite", database=str(home.resolve() / "coordinator.db"))


@dataclass(frozen=True)
class Home:
    """Where the coordinator keeps what it must not lose. Everything under `keys` is readable by its owner alone."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / FILE_NAME

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def inbox(self) -> Path:
        return self.path / "inbox"

    @property
    def staging(self) -> Path:
        return self.path / "staging"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def admin_socket(self) -> Path:
        return self.run / "admin.sock"

    @property
    def ready_file(self) -> Path:
        return self.run / "ready.json"


def load_config(home: Home, overrides: Mapping[str, Any] | None = None) -> CoordinatorConfig:
    """Raises `ConfigError`, also when `coordinator init` was not run here."""
    if not home.config_file.exists():
        raise ConfigError(f"no coordinator here: run `coordinator init --home {home.path}` first")
    return with_overrides(load_toml(CoordinatorConfig, home.config_file), overrides)
