"""Each fuzz target on its seeds and on what hypothesis makes up, and for a moment with atheris where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_on_its_seeds(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_on_damaged_seeds(name: str) -> None:
    """Bytes of a seed changed, cut off or added."""
    corpus = seeds(name)

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(corpus), st.binary(max_size=60), st.integers(0, 1 << 16))
    def damaged(seed: bytes, more: bytes, place: int) -> None:
        place %= len(seed) + 1
        TARGETS[name](seed[:place] + more + seed[place + len(more) // 2 :])

    damaged()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_a_moment_of_atheris(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", name, "--corpus", str(tmp_path), "-atheris_runs=200", "-seed=1"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
