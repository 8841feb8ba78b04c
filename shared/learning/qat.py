"""Quantization-aware training with torchao's PT2E flow: export → annotate → fake-quantize → train → convert.

`QatLearner` trains the float master under fake quantization; parameter names survive the export, so states pass through
unchanged. It costs about a second to make and is kept warm between rounds. `Deployable` is the last step before int8:
BatchNorm folded away, so that what is checked is what is converted.

One private name of torchao is touched, here alone; `tests/unit/learning/test_qat.py` checks it against the pin.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shared.learning.models import build, example_batch, load_state
from shared.learning.quiet import hushed
from shared.learning.spec import InputSchema, ModelSpec, Recipe
from shared.learning.state import State, check_like
from shared.learning.train import Images, predict
from shared.learning.trouble import explained

with hushed():
    from torch.fx.experimental.optimization import fuse
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        qat_utils,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer

MAX_BATCH = 4096
_EPSILON = 2.0**-12  # smallest scale: a channel of zeros must not divide by nothing
_CALIBRATION_BATCH = 64


class QatLearner:
    """A network in training mode with fake quantization on every convolution and linear layer.

    Ranges are forgotten on `load`: a round's result depends on what came in, not on the rounds before it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Raises `NotFound` and `Malformed` as `models.build` does, and `Malformed` for a network that does not export."""
        self.spec = spec
        self.module = _prepare(build(spec).train(), spec.schema, spec.recipe, MovingAverageMinMaxObserver)
        reference = build(spec)
        self._names = [name for name, value in reference.state_dict().items() if value.dtype == torch.float32]
        self._tensors = {name: value for name, value in _tensors(self.module) if name in set(self._names)}

    def load(self, state: State) -> None:
        check_like(state, {name: tuple(self._tensors[name].shape) for name in self._names})
        with torch.no_grad():
            for name in self._names:
                self._tensors[name].copy_(torch.from_numpy(np.array(state[name])))
                if name.endswith("running_var"):
                    self._tensors[name].clamp_(min=0.0)  # as in models.load_state
        for part in _fake_quantizers(self.module):
            part.activation_post_process.reset_min_max_vals()

    def state(self) -> State:
        return {name: self._tensors[name].detach().numpy().copy() for name in self._names}


class Deployable:
    """One state on its way to int8: folded, fake-quantized, calibrated on examples, perhaps recovered, then frozen."""

    def __init__(self, spec: ModelSpec, state: State, recipe: Recipe) -> None:
        """Raises `UpdateRejected` when the state does not fit, `Malformed` for a network that does not export."""
        self.schema = spec.schema
        self.teacher = build(spec)
        load_state(self.teacher, state)
        self.teacher.eval()
        with explained():
            folded = fuse(self.teacher)
        self.module = _prepare(folded, spec.schema, recipe, MinMaxObserver)

    def calibrate(self, x: Images) -> None:
        """Set the activations' ranges to what these examples give in float arithmetic."""
        weights, activations = self._split()
        for part in (*weights, *activations):
            part.disable_fake_quant()
        for begin in range(0, len(x), _CALIBRATION_BATCH):
            predict(self.module, x[begin : begin + _CALIBRATION_BATCH])
        for part in (*weights, *activations):
            part.enable_fake_quant()
        for part in activations:
            part.disable_observer()

    def recover(
        self, x: Images, steps: int, rng: np.random.Generator, *, lr: float = 1e-3, batch_size: int = 32
    ) -> None:
        """A few batches against the float network's own answers (Hinton et al. 2015, temperature 2). No labels needed."""
        optimizer = torch.optim.SGD(self.module.parameters(), lr, momentum=0.9)
        for images in _cycle(x, steps, batch_size, rng):
            with torch.no_grad():
                target = self.teacher(images)
            loss = distillation_loss(self.module(images), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def freeze(self) -> None:
        """Fix the weights' ranges too, to what the weights are now."""
        predict(self.module, example_batch(self.schema).numpy())
        for part in _fake_quantizers(self.module):
            part.disable_observer()

    def logits(self, x: Images) -> Images:
        """What the fake-quantized network answers: the reference for every int8 graph made from it."""
        return predict(self.module, x)

    def float_logits(self, x: Images) -> Images:
        """What the float network answers."""
        return predict(self.teacher, x)

    def convert(self) -> torch.fx.GraphModule:
        """The network with real integers and quantize/dequantize pairs. Ends this object's use."""
        with hushed():
            converted: torch.fx.GraphModule = convert_pt2e(self.module)
        return converted

    def _split(self) -> tuple[list[Any], list[Any]]:
        parts = _fake_quantizers(self.module)
        return [p for p in parts if p.is_per_channel], [p for p in parts if not p.is_per_channel]


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """Kullback-Leibler divergence of the softened answers, scaled so that its gradient does not depend on temperature."""
    ours = functional.log_softmax(student / temperature, dim=1)
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _cycle(x: Images, steps: int, batch_size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    passes = -(-steps * batch_size // len(x))
    order = np.concatenate([np.zeros(0, np.int64), *(rng.permutation(len(x)) for _ in range(passes))])
    for step in range(steps):
        yield torch.from_numpy(x[order[step * batch_size : (step + 1) * batch_size]])


def _prepare(module: nn.Module, schema: InputSchema, recipe: Recipe, observer: type[Any]) -> torch.fx.GraphModule:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(_configuration(recipe, observer))
    with hushed(), explained():
        exported = torch.export.export(module, (example_batch(schema),), dynamic_shapes=({0: batch},)).module()
        with _patterns_that_can_match(exported):
            prepared: torch.fx.GraphModule = prepare_qat_pt2e(exported, quantizer)
    return prepared


def _configuration(recipe: Recipe, observer: type[Any]) -> QuantizationConfig:
    """As torchao's default for x86, with narrower weights where the recipe says so, and unfused fake quantization: the
    fused operator rounds scales another way than `convert_pt2e`, which showed as logits that differ by 0.3.
    """
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=observer, eps=_EPSILON),
    )
    half = 2 ** (recipe.weight_bits - 1)
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-half,
        quant_max=half - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        is_dynamic=False,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=_EPSILON
        ),
    )
    return QuantizationConfig(activations, activations, weights, None, True)


@contextlib.contextmanager
def _patterns_that_can_match(graph: torch.fx.GraphModule) -> Iterator[None]:
    """torchao traces twelve conv-BatchNorm patterns at 0.3 s each. Those of convolutions the graph lacks match nothing, so
    they are passed over: 0.8 s instead of 3.4 s, and the same result.
    """
    original = qat_utils._fuse_conv_bn_qat_helper
    present = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}

    def helper(module: Any, conv: Any, inputs: Any, is_cuda: bool) -> Any:
        used = any(target.startswith(f"aten.{conv.__name__}.") for target in present)
        return original(module, conv, inputs, is_cuda=is_cuda) if used else module

    qat_utils._fuse_conv_bn_qat_helper = helper
    try:
        yield
    finally:
        qat_utils._fuse_conv_bn_qat_helper = original


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _fake_quantizers(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, FakeQuantize)]
