"""The agent's settings and its home folder. Settings come from `HOME/agent.toml`, flags on top; everything has a default."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.files import check_socket_path
from shared.settings import load_toml, with_overrides

FILE_NAME = "agent.toml"
_MAY_BE_ZERO = ("trainer_memory_mib", "inference_port", "max_epsilon", "min_corrupt")
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class AgentConfig:
    """Port 0 lets the operating system choose, and `HOME/run/ready.json` then says which."""

    fleet_address: str = ""  # empty: what the coordinator named at enrolment
    inference_port: int = 0  # where applications on this device ask, on the loopback address
    trainer_memory_mib: int = 0  # writable, libraries included; 0: what follows from the profile
    trainer_idle_s: float = 120.0  # the trainer is let go after so long without a task
    require_secure: bool = False  # refuse to train or evaluate unless the reply is masked
    min_group: int = 3  # smallest group to be summed with
    min_corrupt: float = (
        0.05  # of a group, working with the coordinator: so many at least must learn nothing all the same
    )
    max_epsilon: float = (
        0.0  # of all private jobs together, over any one ingested file; 0: what each job states. If set,
    )
    max_epsilon_delta: float = 1e-6  # at this delta, it answers only in rounds in which devices add noise themselves
    recovery_batches: int = 30  # of fine-tuning after a release is pruned for this device
    shadow_requests: int = 32  # compared before a swap when there is live traffic
    shadow_wait_s: float = 3.0
    cache_mib: int = 1024  # of blobs, the least recently used forgotten first
    metrics_every_s: float = 5.0
    metrics_spool_batches: int = 20_000  # sampling pauses when so many are unacknowledged
    share_secure_metrics: bool = False  # also report what the app measured in a secure round
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 30.0
    barred_retry_s: float = 300.0  # after "revoked" or "who are you"
    drain_s: float = 10.0  # on SIGTERM
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        if self.fleet_address:
            check_address(self.fleet_address, "fleet_address")
        for name, value in vars(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and (value < 0 or (value == 0 and name not in _MAY_BE_ZERO)):
                raise ValueError(f"{name} must {'not be negative' if name in _MAY_BE_ZERO else 'be positive'}")
        if self.inference_port > 65535:
            raise ValueError("inference_port is a port, 0 to 65535")
        if self.min_group < 3 or not self.min_corrupt < 0.5:
            raise ValueError("min_group is at least 3: a sum over two hides nothing; min_corrupt is a share below 0.5")
        if not (math.isfinite(self.max_epsilon) and self.max_epsilon_delta < 1):
            raise ValueError("max_epsilon is finite, and max_epsilon_delta below 1")
        if self.max_epsilon and self.share_secure_metrics:
            raise ValueError("max_epsilon bounds what leaves this device, and shared metrics have no noise: choose one")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError("reconnect_min_s must not exceed reconnect_max_s")
        if self.log_level not in _LEVELS:
            raise ValueError(f"log_level is one of {', '.join(_LEVELS)}")


def check_address(address: str, name: str = "address") -> str:
    """Raises `ValueError` unless `address` is HOST:PORT."""
    host, _, port = address.rpartition(":")
    if "/" in address:
        raise ValueError(f"{name} is HOST:PORT, without a scheme or a path, not {address!r}")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{name} is HOST:PORT, not {address!r}")
    return address


@dataclass(frozen=True)
class Home:
    """Where one device keeps everything. What it learned, sent, received or signs with is for the agent's user alone."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / FILE_NAME

    @property
    def identity(self) -> Path:
        return self.path / "identity"

    @property
    def trust(self) -> Path:
        return self.path / "trust"

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def cache(self) -> Path:
        return self.path / "blobs"

    @property
    def outgoing(self) -> Path:
        return self.path / "outgoing"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def ledger(self) -> Path:
        """What differential privacy has cost."""
        return self.path / "privacy" / "ledger.jsonl"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def ready_file(self) -> Path:
        return self.run / "ready.json"

    @property
    def status_socket(self) -> Path:
        return self.socket("agent")

    def socket(self, name: str) -> Path:
        """`HOME/run/NAME.sock`. Raises `ConfigError` when the path is too long for a Unix socket."""
        return check_socket_path(self.run / f"{name}.sock")

    def prepare(self) -> None:
        """Make the folders, close those that others have no business in, and check that sockets fit. Raises `ConfigError`."""
        self.socket("inference")
        private = (
            self.identity,
            self.run,
            self.state,
            self.data,
            self.ledger.parent,
            self.models,
            self.outgoing,
            self.cache,
        )
        try:
            for folder in (self.path, *private):
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            for folder in private:
                folder.chmod(0o700)  # whatever the umask, or a former version, made of it
        except OSError as error:
            raise ConfigError(f"cannot be prepared: {error.strerror}; is it ours?", path=str(self.path)) from error

    def forget_updates(self, kept: Iterable[Path] = ()) -> None:
        """Empty `outgoing` of what a crash, or a trainer that was killed, left behind. Raises `OSError`."""
        names = {path.name for path in kept}
        for path in self.outgoing.rglob("*"):
            if path.is_file() and path.name not in names:
                path.unlink(missing_ok=True)


def load_config(home: Home, overrides: Mapping[str, Any] | None = None) -> AgentConfig:
    """The file if there is one, then `overrides` that are not None. Raises `ConfigError`."""
    config = load_toml(AgentConfig, home.config_file) if home.config_file.exists() else AgentConfig()
    return with_overrides(config, overrides)
