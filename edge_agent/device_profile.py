"""This device's profile: `HOME/profile.toml`, or the generic one."""

from pathlib import Path

from shared.learning.profile import GENERIC_X86, Profile, load_profile

PROFILE_FILE = "profile.toml"


def read_profile(path: Path) -> Profile:
    """Raises `ConfigError`."""
    return load_profile(path) if path.exists() else GENERIC_X86
