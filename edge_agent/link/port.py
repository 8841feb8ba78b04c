"""What the agent's other parts need from the link."""

import asyncio
from pathlib import Path
from typing import Protocol

from shared.ids import Digest, TaskId
from shared.session import AgentEvent


class LinkPort(Protocol):
    @property
    def attached(self) -> asyncio.Event:
        """Set while the coordinator listens."""
        ...

    def send(self, event: AgentEvent) -> None:
        """Without a session it is dropped: what must arrive is repeated at the next one."""
        ...

    async def fetch(self, digest: Digest) -> Path:
        """The blob's file in the cache. Resumes; one download a digest at a time. Raises `Unavailable` after several tries,
        `NotFound`, `DigestMismatch`, `StorageFull`."""
        ...

    async def put(self, path: Path, digest: Digest, task_id: TaskId) -> None:
        """Upload a file; resumes. Raises `Unavailable` after several tries, and what the coordinator answers."""
        ...
