"""Typed identifiers and digests. A reader can tell from a signature which id goes where."""

import hashlib
import re
import secrets
from typing import NewType

from shared.errors import Malformed

DeviceId = NewType("DeviceId", str)  # "dev-" + 16 hex, chosen by the coordinator at enrolment
NodeId = NewType("NodeId", int)  # Flower's 63-bit number of the same device
JobId = NewType("JobId", str)  # "job-" + 10 hex
TaskId = NewType("TaskId", str)  # "tsk-" + 16 hex
CommandId = NewType("CommandId", str)  # "cmd-" + 16 hex
RolloutId = NewType("RolloutId", str)  # "rol-" + 10 hex
Digest = NewType("Digest", str)  # lower-case hex SHA-256, 64 characters

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 (FIPS 180-4) of `data`."""
    return Digest(hashlib.sha256(data).hexdigest())


def parse_digest(text: str) -> Digest:
    """Raises `Malformed` unless `text` is 64 lower-case hex characters (so it is also safe as a file name)."""
    if not _DIGEST.match(text):
        raise Malformed(f"not a SHA-256 digest: {text[:80]!r}")
    return Digest(text)


def parse_name(text: str) -> str:
    """A label that is safe in a path, a metric and a URL. Raises `Malformed`."""
    if not _NAME.match(text):
        raise Malformed(f"not a valid name: {text[:80]!r} (use a-z, 0-9, '.', '_', '-'; at most 63)")
    return text


def new_device_id() -> DeviceId:
    return DeviceId(f"dev-{secrets.token_hex(8)}")


def new_node_id() -> NodeId:
    """A random positive 63-bit integer: Flower's node ids are unsigned 64-bit, SQL's integers signed."""
    return NodeId(secrets.randbits(62) + 1)


def new_job_id() -> JobId:
    return JobId(f"job-{secrets.token_hex(5)}")


def new_task_id() -> TaskId:
    return TaskId(f"tsk-{secrets.token_hex(8)}")


def new_command_id() -> CommandId:
    return CommandId(f"cmd-{secrets.token_hex(8)}")


def new_rollout_id() -> RolloutId:
    return RolloutId(f"rol-{secrets.token_hex(5)}")


def new_event_id() -> str:
    return f"evt-{secrets.token_hex(8)}"
