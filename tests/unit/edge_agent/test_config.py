"""Settings and the home folder."""

from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, Home, load_config
from shared.errors import ConfigError


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    assert load_config(Home(tmp_path)) == AgentConfig()


def test_flags_stand_above_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('metrics_every_s = 2\nlog_level = "debug"\n')
    config = load_config(Home(tmp_path), {"log_level": "error", "fleet_address": None})
    assert (config.metrics_every_s, config.log_level, config.fleet_address) == (2.0, "error", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 1", "unknown key colour"),
        ("metrics_every_s = 0", "metrics_every_s must be positive"),
        ("min_group = 2", "hides nothing"),
        ("max_epsilon = -1.0", "max_epsilon must not be negative"),
        ("max_epsilon = inf", "max_epsilon is finite"),
        ("max_epsilon_delta = 1.0", "max_epsilon_delta below 1"),
        ("max_epsilon = 3.0\nshare_secure_metrics = true", "shared metrics have no noise"),
        ('fleet_address = "nowhere"', "fleet_address is HOST:PORT"),
        ("reconnect_min_s = 60", "must not exceed"),
        ('log_level = "loud"', "log_level is one of"),
        ("trainer_memory_mib = -1", "must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_config(Home(tmp_path))


def test_a_home_too_deep_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    home = Home(tmp_path / ("d" * 90))
    with pytest.raises(ConfigError, match="too long"):
        home.prepare()
    assert not home.path.exists()


def test_secrets_have_folders_of_their_own(tmp_path: Path) -> None:
    home = Home(tmp_path)
    private = (home.identity, home.run, home.state, home.data, home.models, home.outgoing, home.cache)
    home.outgoing.mkdir(mode=0o755)  # as a former version made it
    home.prepare()
    for folder in private:
        assert folder.stat().st_mode & 0o077 == 0
