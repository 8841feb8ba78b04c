"""The composition root: the only file that knows all the parts of the coordinator."""

import asyncio
import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import grpc.aio
import structlog
from sqlalchemy import Engine

from coordinator.builder import BlockingBuilder, Builder
from coordinator.config import CoordinatorConfig, Home
from coordinator.directory import FleetDirectory
from coordinator.fleet.registry import Registry
from coordinator.models import ReleasePublisher, inspector
from coordinator.releases.metadata import Pen, Places
from coordinator.releases.repository import Repository
from coordinator.releases.rollouts import Fleet as RolloutFleet
from coordinator.releases.rollouts import RolloutService
from coordinator.releases.service import ReleaseService
from coordinator.rounds.grid import Fleet as RoundFleet
from coordinator.rounds.loop import Workshop
from coordinator.rounds.owned import OwnedBlobs
from coordinator.rounds.service import JobService
from coordinator.rpc.admin import AdminServicer, Nouns
from coordinator.rpc.blobs import BlobsServicer, fresh_inbox
from coordinator.rpc.enrolment import EnrolmentServicer
from coordinator.rpc.listening import joined
from coordinator.rpc.metrics import MetricsServicer
from coordinator.rpc.prometheus import FleetCollector, MetricsPage, by_state, serve_metrics
from coordinator.rpc.server import ServerIdentity, admin_server, enrolment_server, fleet_server
from coordinator.rpc.session import SessionHub
from coordinator.rpc.traffic import TrafficMeter
from coordinator.store.engine import open_engine
from coordinator.store.fleet import SqlFleetStore, SqlMetricStore
from coordinator.store.migrate import upgrade
from coordinator.store.releases import SqlReleaseStore
from coordinator.store.rounds import SqlJobStore
from protos.fleet.v1 import admin_pb2_grpc, blobs_pb2_grpc, enrolment_pb2_grpc, metrics_pb2_grpc, session_pb2_grpc
from shared.allocator import keep_freed_memory
from shared.blobs import Blobs, FolderBlobs
from shared.clock import Clock, SystemClock
from shared.errors import Conflict
from shared.files import write_atomic
from shared.observe import configure_logs
from shared.remote_blobs import open_blobs
from shared.signing.certificates import Authority, generate_key, key_to_pem, make_csr, to_pem
from shared.signing.identity import FleetVerifier

_log = structlog.get_logger()
DAY_S = 86_400.0
SERVER_CERTIFICATE_DAYS = 30.0
STOP_GRACE_S = 5.0
FORGET_EVERY_S = 3600.0
_KILLED_BY = 128  # plus the signal, as shells have it
_KEPT_MEMORY_MIB = 128


def initialise(home: Home, config: CoordinatorConfig) -> str:
    """Make a coordinator's home and return the authority's fingerprint. Raises `Conflict` where there is one already.

    The settings file is written last, so a home that was cut off half way is not taken for a whole one.
    """
    if home.config_file.exists():
        raise Conflict(f"{home.path} holds a coordinator already; choose another --home")
    engine = open_engine(config.database(home.path))  # first: a URL that cannot be used leaves nothing behind
    for folder in (home.path, home.keys, home.metadata, home.blobs, home.work, home.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = SystemClock().now()
    authority = Authority.create(config.fleet_name, now)
    authority.save(home.keys)
    Repository.init(_pen(home), now)
    upgrade(engine)
    engine.dispose()
    write_atomic(home.config_file, _to_toml(config).encode(), mode=0o600)
    return authority.fingerprint


def serve(home: Home, config: CoordinatorConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises `Conflict` when another coordinator runs in this home."""
    configure_logs(level=config.log_level, as_json=config.log_json)
    keep_freed_memory(_KEPT_MEMORY_MIB)
    with _alone(home):
        asyncio.run(_serve(home, config))


@dataclass(frozen=True)
class _Parts:
    """Everything that is alive while the coordinator serves."""

    nouns: Nouns
    blobs: Blobs
    inbox: Blobs
    owned: OwnedBlobs
    traffic: TrafficMeter
    metrics: SqlMetricStore
    forget: Callable[[], None]  # history that is older than the settings say
    engine: Engine


async def _serve(home: Home, config: CoordinatorConfig) -> None:
    stopping = _stop_on_signals()
    async with running(home, config) as parts:
        sides: tuple[asyncio.Task[Any], ...] = (
            asyncio.create_task(regularly("tick", config.rollout_tick_s, parts.nouns.rollouts.tick), name="tick"),
            asyncio.create_task(regularly("retention", FORGET_EVERY_S, parts.forget), name="retention"),
            asyncio.create_task(stopping.wait(), name="stop"),
        )
        done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        for side in sides:
            side.cancel()
        for side in done:
            side.result()  # a side task that died takes the process with it
    _log.info("coordinator stopped")


def _stop_on_signals() -> asyncio.Event:
    """The first signal asks to stop; who sends a second one does not want to wait for what is under way."""
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()

    def heard(number: int) -> None:
        if stopping.is_set():
            _log.warning("coordinator stops at once")
            os._exit(_KILLED_BY + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)
    return stopping


async def regularly(what: str, every_s: float, do: Callable[[], object]) -> None:
    """For ever. A mistake of our own is logged and costs one turn: the coordinator must not end of it, at every start again."""
    while True:
        try:
            await asyncio.to_thread(do)
        except Exception as error:  # noqa: BLE001  # as said above
            _log.error("failed, and is tried again", what=what, exc_info=error)
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def running(home: Home, config: CoordinatorConfig) -> AsyncIterator[_Parts]:
    """The coordinator, serving; nothing else may run in its home. Jobs are let go of at the end, and go on at the next start."""
    clock, authority = SystemClock(), Authority.load(home.keys)
    sweep(home)
    parts = _build(home, config, authority, clock)
    try:
        await asyncio.to_thread(parts.nouns.jobs.sweep, parts.owned.digests())
        async with _listening(home, config, authority, parts, clock):
            await asyncio.to_thread(parts.nouns.jobs.resume)
            try:
                yield parts
            finally:
                await asyncio.to_thread(parts.nouns.jobs.close)
    finally:
        parts.engine.dispose()


def sweep(home: Home) -> None:
    """Empty the folders of what a former process was in the middle of: nobody goes on with it."""
    for folder in (home.work, home.staging):
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build(home: Home, config: CoordinatorConfig, authority: Authority, clock: Clock) -> _Parts:
    engine = open_engine(config.database(home.path))
    upgrade(engine)
    fleet_store, metrics = SqlFleetStore(engine), SqlMetricStore(engine)
    registry = Registry(fleet_store, authority, clock, certificate_valid_s=config.device_certificate_days * DAY_S)
    blobs = open_store(home, config, clock.now())
    inbox = fresh_inbox(home.inbox)
    owned = OwnedBlobs(blobs, home.path / "job-blobs")
    traffic = TrafficMeter()
    hub = SessionHub(registry, traffic, heartbeat_s=config.heartbeat_s)
    directory = FleetDirectory(registry)
    verifier = FleetVerifier(authority.certificate_der, clock.now)
    release_store = SqlReleaseStore(engine)
    builder = BlockingBuilder(Builder(home.work))
    releases = ReleaseService(release_store, Repository(_pen(home)), blobs, inspector(builder), clock)
    rollouts = RolloutService(release_store, releases, RolloutFleet(hub, directory.for_releases, verifier), clock)
    hub.subscribe(rollouts)
    round_fleet = RoundFleet.open(
        hub, directory, lasting=owned, inbox=inbox, clock=clock, reconnect_grace_s=config.reconnect_grace_s
    )
    workshop = Workshop(builder, ReleasePublisher(releases, builder, blobs, home.work))
    jobs = JobService(SqlJobStore(engine), round_fleet, workshop, traffic=traffic, verifier=verifier, clock=clock)
    nouns = Nouns(registry, hub, releases, rollouts, jobs)

    def forget() -> None:
        before = clock.now() - config.retention_days * DAY_S
        kinds = {
            "audit": fleet_store.forget_audit,
            "tokens": fleet_store.forget_tokens,
            "metrics": metrics.forget,
            "rollouts": release_store.forget_records,
        }
        forgotten = {kind: drop(before) for kind, drop in kinds.items()}
        if any(forgotten.values()):
            _log.info("old history dropped", **forgotten)

    return _Parts(nouns, blobs, inbox, owned, traffic, metrics, forget, engine)


@contextlib.asynccontextmanager
async def _listening(
    home: Home, config: CoordinatorConfig, authority: Authority, parts: _Parts, clock: Clock
) -> AsyncIterator[None]:
    """The servers and the metrics page; `ready.json` names their ports while they run."""
    servers, ports = _servers(home, config, authority, parts, clock)
    page = _metrics_page(config, parts)
    for server in servers:
        await server.start()
    ready = {"pid": os.getpid(), "metrics": page.port, **ports}
    write_atomic(home.ready_file, json.dumps(ready, sort_keys=True).encode())
    _log.info("coordinator serves", **ready)
    try:
        yield
    finally:
        home.ready_file.unlink(missing_ok=True)
        await parts.nouns.hub.close()
        await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in servers))
        page.close()


def _servers(
    home: Home, config: CoordinatorConfig, authority: Authority, parts: _Parts, clock: Clock
) -> tuple[list[grpc.aio.Server], Mapping[str, int]]:
    """Enrolment, fleet and admin, not yet started, and the ports of the first two."""
    ports: dict[str, int] = {}
    registry = parts.nouns.registry
    identify = _ServerCertificate(authority, config, clock)

    def fleet_address() -> str:
        return joined(config.advertised_host, ports["fleet"])

    def register_enrolment(server: grpc.aio.Server) -> None:
        servicer = EnrolmentServicer(registry, fleet_address, lambda: parts.nouns.releases.first_root)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(servicer, server)

    def register_admin(server: grpc.aio.Server) -> None:
        admin_pb2_grpc.add_AdminServicer_to_server(AdminServicer(parts.nouns, fleet_address), server)

    def register_fleet(server: grpc.aio.Server) -> None:
        register_enrolment(server)
        register_admin(server)
        session_pb2_grpc.add_SessionServicer_to_server(parts.nouns.hub, server)
        blobs = BlobsServicer(parts.blobs, parts.inbox, parts.traffic, max_bytes=config.max_blob_mib << 20)
        blobs_pb2_grpc.add_BlobsServicer_to_server(blobs, server)
        metrics_pb2_grpc.add_MetricsServicer_to_server(MetricsServicer(parts.metrics, clock), server)

    enrolment, ports["enrolment"] = enrolment_server(
        identify, registry, joined(config.host, config.enrolment_port), register_enrolment
    )
    fleet, ports["fleet"] = fleet_server(identify, registry, joined(config.host, config.fleet_port), register_fleet)
    return [enrolment, fleet, admin_server(registry, home.admin_socket, register_admin)], ports


def _metrics_page(config: CoordinatorConfig, parts: _Parts) -> MetricsPage:
    nouns = parts.nouns
    sources = (
        by_state("jobs", "Federated jobs by state", lambda: Counter(str(job.state) for job in nouns.jobs.jobs())),
        by_state("rollouts", "Rollouts by state", nouns.rollouts.counts),
    )
    collector = FleetCollector(nouns.registry.devices, nouns.hub.attached, parts.metrics, sources)
    return serve_metrics(collector, config.metrics_host, config.metrics_port)


class _ServerCertificate:
    """What the server shows: a fresh key in memory, issued by the fleet's own authority, renewed at half of its life.

    gRPC asks from threads of its own. Two that ask at once may make two certificates: either will do.
    """

    def __init__(self, authority: Authority, config: CoordinatorConfig, clock: Clock) -> None:
        self._authority = authority
        self._hosts: Sequence[str] = tuple(
            dict.fromkeys(("localhost", "127.0.0.1", config.advertised_host, *config.extra_hosts))
        )
        self._clock = clock
        self._identity: ServerIdentity | None = None
        self._renew_at = 0.0

    def __call__(self) -> ServerIdentity:
        now = self._clock.now()
        if self._identity is None or now >= self._renew_at:
            key, valid_for_s = generate_key(), SERVER_CERTIFICATE_DAYS * DAY_S
            certificate = self._authority.issue(
                make_csr(key, "coordinator"),
                "coordinator",
                "coordinator",
                now=now,
                valid_for_s=valid_for_s,
                hosts=self._hosts,
            )
            authority_pem = to_pem(self._authority.certificate_der)
            self._identity = ServerIdentity(key_to_pem(key), to_pem(certificate), authority_pem)
            self._renew_at = now + valid_for_s / 2
        return self._identity


def _pen(home: Home) -> Pen:
    return Pen(Places(home.metadata, home.keys))


def open_store(home: Home, config: CoordinatorConfig, now: float) -> Blobs:
    """Where blobs last, without what a process that was killed left unfinished there. Raises `ConfigError`."""
    if not config.blobs_url:
        own = FolderBlobs(home.blobs)
        own.sweep(before=math.inf)
        return own
    blobs = open_blobs(config.blobs_url, home.staging, where="blobs_url")
    if isinstance(blobs, FolderBlobs):
        blobs.sweep(before=now - DAY_S)  # others may write there too
    return blobs


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Two coordinators in one home would both write."""
    home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home.run / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"a coordinator runs in {home.path} already") from error
        yield


def _to_toml(config: CoordinatorConfig) -> str:
    """Flat settings of text, numbers, truth values and lists of text, which TOML and JSON write alike."""
    lines = [
        "# Shoal coordinator. Every key may be left out; `coordinator serve --help` lists flags that override some."
    ]
    for item in fields(config):
        value = getattr(config, item.name)
        lines.append(f"{item.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"
