"""The benchmark of learning runs every way on the same devices, and tells keys from what a round takes."""

import numpy as np
import pytest

from shared.flower import assume_identity
from shared.learning.models import initial_state
from shared.learning.spec import new_spec
from simulations.benchmarks.learning import DEVICES, WAYS, Lab, Run, figures_of, pruned_after, run

pytestmark = pytest.mark.slow
ROUNDS = 4


@pytest.fixture(scope="module")
def lab() -> Lab:
    assume_identity(run_id=1)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 16 * DEVICES)
    images = rng.standard_normal((len(labels), 1, 12, 12), dtype=np.float32) + labels[:, None, None, None].astype("f4")
    parts = tuple(np.arange(start, len(labels), DEVICES) for start in range(DEVICES))
    spec = new_spec("cnn-small", {"shape": "1x12x12", "classes": "dark,light"})
    return Lab(images, labels, parts, (images, labels), spec, initial_state(spec, rng), 0)


@pytest.fixture(scope="module")
def runs(lab: Lab) -> dict[str, Run]:
    return {key: run(lab, WAYS[key], ROUNDS, lambda line: None) for key in ("plain", "small", "pruned")}


def test_keys_are_made_once_and_counted_apart(runs: dict[str, Run]) -> None:
    assert runs["plain"].keys == 0
    assert runs["small"].keys == pytest.approx(runs["pruned"].keys, rel=0.02)
    assert runs["small"].keys > 100_000
    first, *later = runs["small"].sent
    assert first > 3 * max(later), "only the first round takes whole words and the whole model"
    assert max(later) < 1.1 * min(later)


def test_a_pruned_model_takes_fewer_bytes_once_it_was_sent_whole(runs: dict[str, Run]) -> None:
    before, after = runs["small"].sent, runs["pruned"].sent
    start = pruned_after(ROUNDS)
    assert after[start] > after[start + 1]
    assert after[start + 1] < before[start + 1]


def test_all_rounds_and_all_keys_are_in_the_bytes_that_are_told(runs: dict[str, Run]) -> None:
    figures = {one.name: one for one in figures_of({key: [found] for key, found in runs.items()})}
    small, plain = runs["small"], runs["plain"]
    saved = 100 * (1 - (sum(small.sent) + small.keys) / sum(plain.sent))
    assert figures[f"bytes saved, both ways, {WAYS['small'].name}"].value == pytest.approx(saved)
    once = (np.mean(runs["pruned"].sent[2:]) + runs["pruned"].keys / ROUNDS) / np.mean(plain.sent)
    assert figures[f"bytes saved, both ways, {WAYS['pruned'].name}, once pruned"].value == pytest.approx(
        100 * (1 - once)
    )
