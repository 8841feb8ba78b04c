"""What the updater works with, in one value."""

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.config import AgentConfig, Home
from edge_agent.inference.ports import InferencePort
from edge_agent.journal import Journal
from edge_agent.link.port import LinkPort
from edge_agent.storage import DataStore
from edge_agent.trainer.ports import TrainerPort
from shared.clock import Clock
from shared.learning.profile import Profile
from shared.signing.identity import DeviceIdentity
from shared.signing.trust import Trust


@dataclass(frozen=True)
class Tools:
    """`identity` is asked each time: certificates are renewed."""

    home: Home
    config: AgentConfig
    profile: Profile
    clock: Clock
    journal: Journal
    link: LinkPort
    trainer: TrainerPort
    inference: InferencePort
    trust: Trust
    data: DataStore
    identity: Callable[[], DeviceIdentity]
