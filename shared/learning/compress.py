"""The whole way from a float state to a checked int8 graph, as one function."""

from dataclasses import dataclass, field

import numpy as np

from shared.learning.export import to_onnx
from shared.learning.qat import Deployable
from shared.learning.spec import ModelSpec, Recipe
from shared.learning.state import State
from shared.learning.train import Images


@dataclass(frozen=True)
class Recovery:
    """`steps` batches of distillation from the float network, after calibration."""

    steps: int = 0
    lr: float = 1e-3
    batch_size: int = 32


@dataclass(frozen=True)
class Quantized:
    onnx: bytes = field(repr=False)
    reference: Images = field(repr=False)  # fake-quantized logits for the probe
    float_logits: Images = field(repr=False)  # the float network's, for the probe


def quantize(
    spec: ModelSpec,
    state: State,
    examples: Images,
    probe: Images,
    *,
    recipe: Recipe,
    recovery: Recovery,
    rng: np.random.Generator,
) -> Quantized:
    """Fold, calibrate on `examples`, recover, freeze, convert, export. The graph has passed `check_graph`.

    Raises `UpdateRejected` when the state does not fit the spec, `Malformed` when the network does not export, or exports to
    operators we do not allow.
    """
    network = Deployable(spec, state, recipe)
    network.calibrate(examples)
    network.recover(examples, recovery.steps, rng, lr=recovery.lr, batch_size=recovery.batch_size)
    network.freeze()
    reference = network.logits(probe)
    float_logits = network.float_logits(probe)
    graph = to_onnx(network.convert(), spec.schema, origin=network.teacher)
    return Quantized(graph, reference, float_logits)
