"""Quantization-aware training and the way to int8. Private names of torchao that we touch are checked here."""

import contextlib
import inspect
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shared.errors import UpdateRejected
from shared.learning.compress import Recovery, quantize
from shared.learning.hyperparameters import TrainSettings
from shared.learning.measure import agreement, judge
from shared.learning.models import initial_state
from shared.learning.prune import prune
from shared.learning.qat import QatLearner, qat_utils  # type: ignore[attr-defined]  # the module it touches
from shared.learning.spec import ModelSpec, Recipe, new_spec
from shared.learning.state import State
from shared.learning.train import FloatLearner, evaluate, fit
from tests.unit.learning.pictures import pictures

SPEC = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})
X, Y = pictures(320)
HELD_X, HELD_Y = pictures(200, seed=4)


@pytest.fixture(scope="module")
def learner() -> QatLearner:
    return QatLearner(SPEC)


@pytest.fixture(scope="module")
def good() -> State:
    settings = TrainSettings(lr=0.02, epochs=4)
    start = initial_state(SPEC, np.random.default_rng(0))
    return fit(FloatLearner(SPEC), start, X, Y, settings=settings, rng=np.random.default_rng(0)).state


def test_the_private_name_of_torchao_is_still_what_we_replace() -> None:
    assert list(inspect.signature(qat_utils._fuse_conv_bn_qat_helper).parameters) == [
        "m",
        "conv_fn",
        "example_inputs",
        "is_cuda",
    ]
    assert "_fuse_conv_bn_qat_helper" in inspect.getsource(qat_utils._fuse_conv_bn_qat)


def test_every_convolution_and_the_answers_are_fake_quantized_with_batchnorm_inside(learner: QatLearner) -> None:
    kinds = [type(part).__name__ for part in learner.module.modules()]
    targets = [str(node.target) for node in learner.module.graph.nodes]
    assert kinds.count("FakeQuantize") >= 8
    assert sum("conv2d" in target for target in targets) == 3
    assert sum("batch_norm" in target for target in targets) == 3
    assert (
        sum("rsqrt" in target or "sqrt" in target for target in targets) >= 3
    )  # weights scaled by BatchNorm, as folded


def test_a_state_passes_through_unchanged(learner: QatLearner, good: State) -> None:
    learner.load(good)
    again = learner.state()
    assert again.keys() == good.keys()
    assert all(np.array_equal(again[name], good[name]) for name in good)


def test_it_learns_and_what_it_learned_works_without_fake_quantization(learner: QatLearner) -> None:
    settings = TrainSettings(lr=0.02, epochs=4)
    start = initial_state(SPEC, np.random.default_rng(0))
    fitted = fit(learner, start, X, Y, settings=settings, rng=np.random.default_rng(0))
    plain = FloatLearner(SPEC)
    plain.load(fitted.state)
    assert evaluate(plain.module, HELD_X, HELD_Y).accuracy > 0.95
    assert any(not np.array_equal(fitted.state[name], start[name]) for name in start if "running" in name)


def test_a_warm_learner_forgets_what_it_trained_before(learner: QatLearner, good: State) -> None:
    settings = TrainSettings(lr=0.02)
    first = fit(learner, good, X, Y, settings=settings, rng=np.random.default_rng(2)).state
    fit(learner, first, X * 3, Y, settings=settings, rng=np.random.default_rng(3))
    again = fit(learner, good, X, Y, settings=settings, rng=np.random.default_rng(2)).state
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_state_of_another_shape_is_rejected(learner: QatLearner, good: State) -> None:
    with pytest.raises(UpdateRejected):
        learner.load({**good, "0.0.weight": good["0.0.weight"][:4]})


def run(graph: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"input": x})[0]
    return logits


def quantized(spec: ModelSpec, state: State, *, steps: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    made = quantize(spec, state, X, HELD_X, recipe=Recipe(7), recovery=Recovery(steps), rng=np.random.default_rng(0))
    return made.onnx, made.reference, made.float_logits


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 5])
def test_integers_answer_as_the_fake_quantized_network_does(good: State, steps: int) -> None:
    graph, reference, floats = quantized(SPEC, good, steps=steps)
    answers = run(graph, HELD_X)
    found = agreement(reference, answers)
    assert found.max_logit_difference < 0.25
    assert found.top1_agreement >= 0.99
    assert judge(answers, HELD_Y).accuracy > judge(floats, HELD_Y).accuracy - 0.02
    assert np.array_equal(run(graph, HELD_X[:1])[0].argmax(), answers[0].argmax())


@pytest.mark.slow
def test_the_graph_is_integers_and_names_no_file_of_the_machine_that_built_it(good: State) -> None:
    graph, _, _ = quantized(SPEC, good)
    assert len(graph) < 0.6 * sum(array.nbytes for array in good.values())
    for trace in (b"site-packages", b".py", str(Path.home()).encode()):
        assert trace not in graph


@pytest.mark.slow
def test_a_pruned_network_goes_the_same_way(good: State) -> None:
    spec, state = prune(SPEC, good, 0.5, round_to=4)
    learner = QatLearner(spec)
    fitted = fit(learner, state, X, Y, settings=TrainSettings(lr=0.02, epochs=3), rng=np.random.default_rng(0))
    graph, reference, _ = quantized(spec, fitted.state)
    answers = run(graph, HELD_X)
    assert agreement(reference, answers).top1_agreement >= 0.99
    assert judge(answers, HELD_Y).accuracy > 0.9


@pytest.mark.slow
def test_passing_over_patterns_that_cannot_match_changes_nothing(
    learner: QatLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.learning.qat._patterns_that_can_match", lambda graph: contextlib.nullcontext())
    full = QatLearner(SPEC)
    assert str(full.module.graph) == str(learner.module.graph)
