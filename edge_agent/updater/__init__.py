"""The loop's device half: verify → fetch → specialise → load → judge → swap → prove → report, and the way back."""

from edge_agent.updater.updater import Updater

__all__ = ["Updater"]
