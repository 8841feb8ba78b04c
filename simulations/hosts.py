"""Many real agents in one process: `python -m simulations.hosts enrol | run PLAN.json`.

Each agent is what `edge-agent run` builds, with a home, a key, a journal and a session of its own, but its trainer and its
inference service live in this process too: they share imports, one training thread and one event loop. So fifty agents fit where
fifty times three processes would not. What that gives up: an agent cannot be killed alone, and has no memory cap of its own.

The plan names agents with their homes; for `enrol` also the coordinator's enrolment address and a join token each, so the file is
readable by its owner alone and is deleted afterwards.
"""

import asyncio
import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from shared.errors import ConfigError, ShoalError
from shared.settings import from_mapping

if TYPE_CHECKING:
    from edge_agent.agent import Agent

_log = structlog.get_logger()
_PAUSE_S = 0.5  # before asking again for an approval


@dataclass(frozen=True)
class HostedAgent:
    name: str
    home: Path
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class HostPlan:
    agents: tuple[HostedAgent, ...]
    enrolment: str = ""

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("a host has at least one agent")
        if len({agent.home for agent in self.agents}) != len(self.agents):
            raise ValueError("two agents cannot share a home")


def enrol(plan: HostPlan) -> None:
    """One after the other. Raises what `edge_agent.enrol.enrol` raises; who joined before has joined."""
    import time

    from edge_agent.config import Home
    from edge_agent.enrol import Wish, wait_for
    from edge_agent.enrol import enrol as join
    from shared.clock import SystemClock
    from shared.signing.tokens import JoinToken

    for agent in plan.agents:
        wish = Wish(JoinToken.parse(agent.token), plan.enrolment, agent.name)
        wait_for(join(Home(agent.home), wish, SystemClock()), lambda: time.sleep(_PAUSE_S))


def build(hosted: HostedAgent) -> "Agent":
    """Call it inside the running loop. Raises what `build_agent` raises."""
    from edge_agent.app import build_agent, worker_settings
    from edge_agent.config import Home, load_config
    from edge_agent.inference.inline import InlineInference
    from edge_agent.trainer.inline import InlineTrainer

    home = Home(hosted.home)
    config = load_config(home)
    trainer = InlineTrainer(worker_settings(home, config))
    return build_agent(home, config, trainer=trainer, inference=InlineInference(port=config.inference_port))


async def run(plan: HostPlan) -> None:
    """Until SIGTERM or Ctrl-C, or until one agent fails: then all stop, and its error is raised."""
    agents = [build(hosted) for hosted in plan.agents]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for agent in agents:
            agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    running = [
        asyncio.create_task(agent.run(), name=hosted.name) for agent, hosted in zip(agents, plan.agents, strict=True)
    ]
    await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    stop()
    await asyncio.wait(running)
    for task in running:
        task.result()


def main() -> None:
    from shared.observe import configure_logs

    configure_logs(level="info")
    try:
        action, path = sys.argv[1:]
        plan = from_mapping(HostPlan, json.loads(Path(path).read_text(encoding="utf-8")), where=path)
        match action:
            case "enrol":
                enrol(plan)
            case "run":
                import uvloop

                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(run(plan))
            case _:
                raise ConfigError(f"a host can enrol or run, not {action}")
    except ShoalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
