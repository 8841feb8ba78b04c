"""The composition root: the only file that knows all the parts. May be used many times in one process."""

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from edge_agent.agent import Agent, Parts
from edge_agent.config import AgentConfig, Home, load_config
from edge_agent.device_profile import PROFILE_FILE, read_profile
from edge_agent.inference.ports import InferencePort, ServiceStatus
from edge_agent.inference.process import InferenceProcess
from edge_agent.journal import Journal
from edge_agent.link.credentials import Credentials
from edge_agent.link.link import Link, LinkSettings
from edge_agent.link.transfer import Cache
from edge_agent.metrics import Sampler, Traffic
from edge_agent.storage import DataStore
from edge_agent.tasks import TaskRunner
from edge_agent.trainer.ports import TrainerPort
from edge_agent.trainer.process import Limits, ProcessTrainer
from edge_agent.trainer.worker import WorkerSettings
from edge_agent.updater import Updater
from edge_agent.updater.tools import Tools
from shared.allocator import keep_freed_memory
from shared.clock import Clock, SystemClock
from shared.errors import Conflict
from shared.learning.profile import Profile
from shared.observe import configure_logs
from shared.signing.trust import Trust

_LOCK_FILE = "agent.lock"
_KEPT_MEMORY_MIB = 32
_LIBRARIES_MIB = (
    640  # writable memory of a trainer before it trains: torch and torchao take 440 MiB, the accountant 120
)


def build_agent(
    home: Home,
    config: AgentConfig,
    *,
    trainer: TrainerPort | None = None,
    inference: InferencePort | None = None,
    clock: Clock | None = None,
) -> Agent:
    """Call it inside the running event loop. `trainer` and `inference` replace the child processes.

    Raises `NotFound` before enrolment, `Corrupt` for damaged files, `ConfigError` for a home folder that cannot hold sockets.
    """
    clock = clock or SystemClock()
    home.prepare()
    credentials = Credentials(home.identity, clock)
    profile = read_profile(home.path / PROFILE_FILE)
    journal = Journal(home.journal)
    agent: Agent
    inference = inference or _inference(home, config, clock, lambda: agent)
    trainer = trainer or ProcessTrainer(home.socket("trainer"), worker_settings(home, config), _limits(config, profile))
    agent = Agent(Parts(home, config, profile, credentials.membership, clock, journal, trainer, inference))
    link = _link(home, config, credentials, clock, agent)
    tools = Tools(
        home=home,
        config=config,
        profile=profile,
        clock=clock,
        journal=journal,
        link=link,
        trainer=trainer,
        inference=inference,
        trust=Trust(home.trust, credentials.root_json),
        data=DataStore(home.data),
        identity=lambda: credentials.identity,
    )
    sampler = _sampler(config, journal, clock, inference, link)
    tasks = TaskRunner(trainer, link, clock, link.send, sampler.last_task)
    agent.connect(link, Updater(tools, agent.report), tasks, sampler)
    return agent


def worker_settings(home: Home, config: AgentConfig) -> WorkerSettings:
    """For a trainer of this device."""
    return WorkerSettings(
        home=home.path,
        identity=home.identity,
        data=home.data,
        state=home.state,
        outgoing=home.outgoing,
        require_secure=config.require_secure,
        min_group=config.min_group,
        min_corrupt=config.min_corrupt,
        max_epsilon=config.max_epsilon,
        max_epsilon_delta=config.max_epsilon_delta,
        log_level=config.log_level,
        log_json=config.log_json,
    )


def _limits(config: AgentConfig, profile: Profile) -> Limits:
    memory_mib = config.trainer_memory_mib or profile.memory_mib + _LIBRARIES_MIB
    return Limits(memory_mib=memory_mib, threads=profile.threads)


def _inference(home: Home, config: AgentConfig, clock: Clock, agent: Callable[[], Agent]) -> InferencePort:
    """`agent` is asked once the service was restarted: the two are made from each other."""

    async def on_restart() -> None:
        await agent().restore()

    return InferenceProcess(home.run, port=config.inference_port, on_restart=on_restart, clock=clock)


def _link(home: Home, config: AgentConfig, credentials: Credentials, clock: Clock, agent: Agent) -> Link:
    address = config.fleet_address or credentials.membership.fleet_address
    settings = LinkSettings(address, config.reconnect_min_s, config.reconnect_max_s, config.barred_retry_s)
    cache = Cache(home.cache, config.cache_mib << 20)
    return Link(credentials, settings, cache, clock, opening=agent.opening, handle=agent.handle)


def _sampler(config: AgentConfig, journal: Journal, clock: Clock, inference: InferencePort, link: Link) -> Sampler:
    async def status() -> ServiceStatus:
        return await inference.slots.status()  # asked each time: a restarted service has another client

    return Sampler(
        journal,
        clock,
        status,
        lambda: Traffic(link.transfers.sent_bytes, link.transfers.received_bytes),
        link.report,
        limit=config.metrics_spool_batches,
        share_secure=config.share_secure_metrics,
    )


def run(home: Home, overrides: Mapping[str, Any] | None = None) -> None:
    """`edge-agent run`: until SIGTERM or Ctrl-C. Raises what ended it otherwise, `Conflict` when one runs here already."""
    config = load_config(home, overrides)
    configure_logs(level=config.log_level, as_json=config.log_json)
    home.prepare()
    lock = _locked(home)
    keep_freed_memory(_KEPT_MEMORY_MIB)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_told(home, config))
    finally:
        lock.close()


async def _until_told(home: Home, config: AgentConfig) -> None:
    agent = build_agent(home, config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()


def _locked(home: Home) -> Any:
    """One agent a home: the kernel lets go of the lock when the process ends, however it ends."""
    import fcntl

    lock = (home.run / _LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Conflict(f"an agent runs in {home.path} already") from None
    return lock


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


__all__ = ["AgentConfig", "Home", "build_agent", "run", "worker_settings"]
