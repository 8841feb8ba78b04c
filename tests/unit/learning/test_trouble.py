"""A user's network that does not export: one sentence says which operator, and on which line of the user's file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from shared.errors import Malformed, UpdateRejected
from shared.learning import models, trouble
from shared.learning.compress import Recovery, quantize
from shared.learning.models import initial_state
from shared.learning.qat import Deployable, QatLearner
from shared.learning.spec import ModelSpec, Recipe, new_spec
from tests.unit.learning import user_networks

HERE = "tests/unit/learning/user_networks.py line "
X = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)


def registered(network: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setattr(models, "_BUILT_IN", {"users": lambda schema: network()})
    return new_spec("users", {"shape": "1x8x8", "classes": 3})


def prepared(spec: ModelSpec) -> None:
    QatLearner(spec)


def folded(spec: ModelSpec) -> None:
    Deployable(spec, initial_state(spec, np.random.default_rng(0)), Recipe())


def quantized(spec: ModelSpec) -> None:
    state = initial_state(spec, np.random.default_rng(0))
    quantize(spec, state, X, X, recipe=Recipe(), recovery=Recovery(), rng=np.random.default_rng(0))


def line_of(code: str) -> int:
    lines = Path(user_networks.__file__).read_text().splitlines()
    return 1 + next(index for index, line in enumerate(lines) if line.strip() == code)


TROUBLE = {
    "a branch on values, in training": (user_networks.Branching, prepared, "aten.item", "if y.sum() > 0:"),
    "a branch on values, on the way to int8": (user_networks.Branching, folded, "aten.item", "if y.sum() > 0:"),
    "shapes that do not fit": (user_networks.Refusing, prepared, "", "return torch.cat([y, y[:, :, None]])"),
}
SLOW = {
    "an operator that ONNX lacks": (user_networks.Inverse, "erf_inv", "return torch.erfinv(0.5 * torch.tanh(y))"),
    "an operator that no device runs": (
        user_networks.Fourier,
        "onnx:DFT",
        "spectrum: torch.Tensor = torch.fft.fft(y).abs()",
    ),
}


def check(act: Callable[[ModelSpec], None], spec: ModelSpec, operator: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        act(spec)
    message = caught.value.message
    assert message.startswith("the network does not export")
    assert operator in message
    assert message.endswith(f"{HERE}{line_of(code)}: {code}")
    assert "\n" not in str(caught.value)
    assert str(Path(user_networks.__file__).parents[3]) not in str(caught.value)


@pytest.mark.parametrize(("network", "act", "operator", "code"), TROUBLE.values(), ids=TROUBLE.keys())
def test_operator_and_line_are_said_of(
    network: type[nn.Module],
    act: Callable[[ModelSpec], None],
    operator: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(act, registered(network, monkeypatch), operator, code)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "operator", "code"), SLOW.values(), ids=SLOW.keys())
def test_operator_and_line_are_said_at_the_last_step_of(
    network: type[nn.Module], operator: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(quantized, registered(network, monkeypatch), operator, code)


@pytest.mark.slow
def test_a_plain_network_of_a_user_goes_the_whole_way(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized(registered(user_networks.Plain, monkeypatch))


def test_an_error_of_ours_stays_what_it_is() -> None:
    ours = UpdateRejected("the state does not fit")
    with pytest.raises(UpdateRejected) as caught, trouble.explained():
        raise ours
    assert caught.value is ours


def test_a_trace_through_generated_code_and_torch_alone_names_no_line() -> None:
    trace = 'File "<eval_with_key>.3", line 4, in forward\n  x\nFile "/lib/torch/nn/modules/conv.py", line 9, in forward\n  y'
    assert trouble.line_in_trace(trace) == ""
