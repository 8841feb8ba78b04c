"""This device's profile: `HOME/profile.toml`, or the generic one, and how the coordinator is told of it."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

from shared.client_apps import app_names
from shared.learning.profile import GENERIC_X86, Profile, load_profile

PROFILE_FILE = "profile.toml"


def read_profile(path: Path) -> Profile:
    """Raises `ConfigError`."""
    return load_profile(path) if path.exists() else GENERIC_X86


def to_report(profile: Profile) -> str:
    """As JSON, with the names of the client apps that are installed here: a job for another one is refused when it is submitted."""
    return json.dumps({**asdict(profile), "client_apps": _installed()}, sort_keys=True)


@cache
def _installed() -> list[str]:
    """What this process could load when it began: looking through all packages takes a while."""
    return app_names()
