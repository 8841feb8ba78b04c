"""The one place in the agent that speaks the fleet's wire protocol."""

from edge_agent.link.link import Link
from edge_agent.link.port import LinkPort

__all__ = ["Link", "LinkPort"]
