"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

F = TypeVar("F", bound=Callable[..., Any])


def default_home() -> Path:
    """`$SHOAL_AGENT_HOME`, else the platform's folder for user data."""
    named = os.environ.get("SHOAL_AGENT_HOME")
    return Path(named) if named else Path(platformdirs.user_data_dir("shoal")) / "agent"


def home_option(function: F) -> F:
    """`--home`, on every command."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_home,
        show_default="$SHOAL_AGENT_HOME or the user's data folder",
        help="The agent's home folder.",
    )(function)


def json_option(function: F) -> F:
    """`--json`, on every command that tells something."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)
