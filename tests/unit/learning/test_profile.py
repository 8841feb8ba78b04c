import pytest

from shared.errors import ConfigError
from shared.learning.profile import GENERIC_X86, Profile, parse_profile


def test_a_profile_is_read_from_toml() -> None:
    text = 'name = "raspberry-pi-4b"\nruntimes = ["onnxruntime"]\nthreads = 4\nlatency_budget_ms = 33\nweight_bits = 8\nwatts = 6.4'
    profile = parse_profile(text)
    assert profile == Profile("raspberry-pi-4b", ("onnxruntime",), 4, 33.0, weight_bits=8, watts=6.4)


def test_the_default_runs_anywhere_on_x86() -> None:
    assert GENERIC_X86.weight_bits == 7
    assert parse_profile('name = "generic-x86"') == GENERIC_X86


REFUSED = {
    "no name": "threads = 1",
    "a name with a slash": 'name = "a/b"',
    "an unknown key": 'name = "a"\ncores = 4',
    "a runtime twice": 'name = "a"\nruntimes = ["x", "x"]',
    "no runtime": 'name = "a"\nruntimes = []',
    "batches the wrong way round": 'name = "a"\nmin_batch = 8\nmax_batch = 4',
    "infinite watts": 'name = "a"\nwatts = inf',
    "six-bit weights": 'name = "a"\nweight_bits = 6',
    "no threads": 'name = "a"\nthreads = 0',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_a_profile_is_refused_with(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_profile(text)
