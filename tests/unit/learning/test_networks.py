"""Our networks: what each says of itself, and that each goes the whole way from a name to an int8 graph."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from torch import nn

from shared.errors import ConfigError, Malformed
from shared.learning import models
from shared.learning.compress import Recovery, quantize
from shared.learning.measure import agreement
from shared.learning.models import (
    Trained,
    Traits,
    build,
    example_batch,
    factory_names,
    find_factory,
    initial_state,
    load_state,
    network,
    starting_point,
    state_of,
    traits_of,
)
from shared.learning.networks.cnn import cnn_small
from shared.learning.networks.resnet import resnet8
from shared.learning.prune import prune, size_of
from shared.learning.qat import QatLearner
from shared.learning.spec import InputSchema, ModelSpec, PruneStep, Recipe, new_spec
from shared.learning.state import State
from shared.learning.train import FloatLearner, predict, refresh_statistics
from shared.settings import Scalar


@dataclass(frozen=True)
class Known:
    """A small variant for the tests, and the published size of the default one."""

    arguments: dict[str, Scalar]
    parameters: int
    layers: int  # convolutions and linear ones


NETWORKS = {
    "cnn-small": Known({"shape": "1x12x12", "width": 8}, 29_434, 4),
    "dscnn-1d": Known({"shape": "3x1x40", "classes": 5, "width": 8}, 18_540, 8),
    "efficientnet-lite0": Known({"shape": "1x16x16", "classes": 3}, 4_652_008, 50),
    "mobilenet-v2": Known({"shape": "1x16x16", "classes": 10, "width_percent": 10}, 3_504_872, 53),
    "resnet18": Known({"shape": "1x32x32", "classes": 10, "width": 8}, 11_689_512, 21),
    "resnet8": Known({"shape": "1x12x12", "width": 8}, 174_274, 10),
}
QUICK_TO_EXPORT = ["dscnn-1d", "resnet8"]
each = pytest.mark.parametrize("name", sorted(NETWORKS))


def small(name: str) -> ModelSpec:
    return new_spec(name, NETWORKS[name].arguments)


def examples(spec: ModelSpec, count: int = 48) -> np.ndarray:
    return np.random.default_rng(1).random((count, *spec.schema.shape), dtype=np.float32)


def lively(spec: ModelSpec) -> State:
    """With the statistics of examples, and answers as far apart as a trained network's: fresh ones fade to nothing."""
    state = initial_state(spec, np.random.default_rng(0))
    state = refresh_statistics(FloatLearner(spec), state, examples(spec))
    (head,) = traits_of(find_factory(spec.factory)).protected
    spread = float(np.ptp(answers(spec, state), axis=1).mean())
    return {**state, f"{head}.weight": state[f"{head}.weight"] * np.float32(2 / spread)}


def answers(spec: ModelSpec, state: State) -> np.ndarray:
    module = build(spec)
    load_state(module, state)
    return predict(module.eval(), examples(spec, 4))


def weighted(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}


def test_every_network_of_ours_is_in_the_table() -> None:
    assert sorted(NETWORKS) == [name for name in factory_names() if name in models._BUILT_IN]


@each
def test_by_default_it_has_the_published_size_and_takes_what_it_states(name: str) -> None:
    spec, _ = starting_point(name, {}, np.random.default_rng(0))
    stated = traits_of(find_factory(name)).default_schema
    assert spec.schema == stated
    assert sum(value.numel() for value in build(spec).parameters()) == NETWORKS[name].parameters


@each
def test_the_protected_layer_gives_the_answers(name: str) -> None:
    spec = small(name)
    layers = weighted(build(spec))
    assert len(layers) == NETWORKS[name].layers
    (protected,) = traits_of(find_factory(name)).protected
    head = layers[protected]
    assert isinstance(head, nn.Linear)
    assert head.out_features == len(spec.schema.classes)


@each
def test_a_state_comes_back_bit_for_bit(name: str) -> None:
    module = build(small(name))
    state = initial_state(small(name), np.random.default_rng(3))
    load_state(module, state)
    assert all(np.array_equal(array, state[key]) for key, array in state_of(module).items())


@each
def test_half_its_channels_go_and_the_history_rebuilds_it_bit_for_bit(name: str) -> None:
    spec = small(name)
    state = initial_state(spec, np.random.default_rng(0))
    smaller, kept = prune(spec, state, 0.5, round_to=4)
    before, after = size_of(spec), size_of(smaller)
    assert after.parameters < 0.6 * before.parameters
    assert after.macs < 0.6 * before.macs
    assert np.array_equal(answers(smaller, kept), answers(ModelSpec.from_json(smaller.to_json()), kept))
    assert answers(smaller, kept).shape == (4, len(spec.schema.classes))


@pytest.mark.parametrize(
    "name", [name if name in QUICK_TO_EXPORT else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_every_convolution_and_the_answers_are_fake_quantized(name: str) -> None:
    learner = QatLearner(small(name))
    parts = [part for part in learner.module.modules() if type(part).__name__ == "FakeQuantize"]
    assert sum(bool(part.is_per_channel) for part in parts) == NETWORKS[name].layers
    assert sum("batch_norm" in str(node.target) for node in learner.module.graph.nodes) == NETWORKS[name].layers - 1


@pytest.mark.slow
@each
def test_integers_answer_as_the_fake_quantized_network_does(name: str) -> None:
    spec = small(name)
    x = examples(spec)
    made = quantize(spec, lively(spec), x, x, recipe=Recipe(), recovery=Recovery(), rng=np.random.default_rng(0))
    session = onnxruntime.InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    found = agreement(made.reference, session.run(None, {"input": x})[0])
    assert np.ptp(made.reference, axis=1).mean() > 1  # answers that are all alike would agree whatever the graph does
    assert found.max_logit_difference < 0.05


@pytest.mark.parametrize("name", ["cnn-small", "mobilenet-v2", "resnet18", "resnet8"])
@pytest.mark.parametrize("shape", ["1x1x1", "3x5x7", "6x1x64"])
def test_networks_for_images_take_small_and_flat_ones(name: str, shape: str) -> None:
    spec = new_spec(name, {"shape": shape, "classes": 3})
    assert build(spec).eval()(example_batch(spec.schema)).shape == (2, 3)


def test_a_narrow_mobilenet_leaves_four_pixels_a_side_of_a_small_image() -> None:
    spec = new_spec("mobilenet-v2", {"shape": "1x28x28", "width_percent": 35})
    module = build(spec).eval()
    assert module.blocks(module.stem(example_batch(spec.schema))).shape[2:] == (4, 4)  # type: ignore[operator]
    assert size_of(spec).macs < 6_000_000


REFUSED: dict[str, tuple[str, dict[str, Scalar]]] = {
    "a window that is an image": ("dscnn-1d", {"shape": "3x2x40"}),
    "a window without a height": ("dscnn-1d", {"shape": "3x40"}),
    "an image without channels": ("resnet8", {"shape": "28x28"}),
    "a width that is no multiple of 8": ("resnet18", {"width": 12}),
    "a width that is no number": ("dscnn-1d", {"width": "wide"}),
    "a stride of 3": ("resnet8", {"stem_stride": 3}),
    "a share of nothing": ("mobilenet-v2", {"width_percent": 0}),
    "a share that is no whole number": ("mobilenet-v2", {"width_percent": 35.5}),
    "an argument that it does not have": ("efficientnet-lite0", {"width": 8}),
}


@pytest.mark.parametrize(("name", "arguments"), REFUSED.values(), ids=REFUSED.keys())
def test_it_refuses(name: str, arguments: dict[str, Scalar]) -> None:
    with pytest.raises(Malformed, match=f"the factory {name} refuses"):
        build(new_spec(name, arguments))


# --- what a factory protects --------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """resnet8 whose first layer is protected too. Its outputs are added to those of the first block."""

    @network(Traits(protected=("stem.conv", "head")))
    def factory(schema: InputSchema) -> nn.Module:
        return resnet8(schema, width=8)

    monkeypatch.setitem(models._BUILT_IN, "guarded", factory)  # a plain dict underneath
    return new_spec("guarded", {"shape": "1x12x12"})


def test_a_protected_layer_keeps_its_outputs_and_so_does_what_is_added_to_them(guarded: ModelSpec) -> None:
    _, kept = prune(guarded, initial_state(guarded, np.random.default_rng(0)), 0.5, round_to=4)
    assert kept["stem.conv.weight"].shape == (8, 1, 3, 3)
    assert kept["blocks.0.second.conv.weight"].shape == (8, 4, 3, 3)
    assert kept["blocks.1.first.conv.weight"].shape == (8, 8, 3, 3)


@pytest.mark.parametrize("layer", ["stem.conv", "blocks.0.second.conv", "head"])
def test_a_history_that_removes_outputs_of_a_protected_layer_is_refused(guarded: ModelSpec, layer: str) -> None:
    with pytest.raises(Malformed, match=f"pruning history at {layer} removes outputs of a layer that guarded protects"):
        build(guarded.pruned((PruneStep(layer, True, (0,)),)))


def test_a_factory_that_protects_what_it_does_not_have_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = network(Traits(protected=("tail",)))(lambda schema: resnet8(schema, width=8))
    monkeypatch.setitem(models._BUILT_IN, "odd", factory)
    spec = new_spec("odd", {"shape": "1x12x12"})
    with pytest.raises(ConfigError, match="odd protects 'tail', which is no layer of it"):
        prune(spec, initial_state(spec, np.random.default_rng(0)), 0.5)


# --- factories of installed packages ------------------------------------------------------------------------------------------

PACKAGE = """
from torch import nn
from shared.learning.models import Traits, network
from shared.learning.spec import InputSchema

@network(Traits(InputSchema((2, 6, 6), ("no", "yes")), protected=("head", "eye"), input_kind="image"))
def marked(schema, *, width=8):
    return Net(schema, width)

def plain(schema):
    return Net(schema, 8)

class Net(nn.Module):
    def __init__(self, schema, width):
        super().__init__()
        self.eye = nn.Conv2d(schema.shape[0], width, 3)
        self.mind = nn.Conv2d(width, width, 3)
        self.head = nn.Linear(width, len(schema.classes))

    def forward(self, x):
        return self.head(self.mind(self.eye(x).relu()).relu().mean((2, 3)))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shoal_lotus.py").write_text(PACKAGE)
    notes = tmp_path / "shoal_lotus-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: shoal-lotus\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text(
        "[shoal.models]\nlotus = shoal_lotus:marked\nreed = shoal_lotus:plain\ncnn-small = shoal_lotus:plain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_package_adds_factories_with_and_without_traits_and_replaces_none_of_ours() -> None:
    assert {"lotus", "reed"} < set(factory_names())
    spec, state = starting_point("lotus", {}, np.random.default_rng(0))
    assert spec.schema.classes == ("no", "yes")
    _, kept = prune(spec, state, 0.5, round_to=4)
    assert {name: len(kept[f"{name}.weight"]) for name in ("eye", "mind", "head")} == {"eye": 8, "mind": 4, "head": 2}

    spec, state = starting_point("reed", {"shape": "2x6x6", "classes": 3}, np.random.default_rng(0))
    _, kept = prune(spec, state, 0.5, round_to=4)
    assert {name: len(kept[f"{name}.weight"]) for name in ("eye", "mind", "head")} == {"eye": 4, "mind": 4, "head": 3}
    assert find_factory("cnn-small") is cnn_small


@pytest.mark.usefixtures("installed")
def test_the_input_kind_of_a_packages_factory_is_held() -> None:
    with pytest.raises(Malformed, match="takes images"):
        build(new_spec("lotus", {"shape": "12"}))


# --- trained weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> State:
    """The weights "seeds" of a resnet8 for three channels and four classes."""
    state = initial_state(new_spec("resnet8", {"shape": "3x8x8", "classes": 4, "width": 8}), np.random.default_rng(7))
    traits = Traits(
        InputSchema((3, 8, 8), ("a", "b", "c", "d"), mean=(0.0, 0.1, 0.0), std=3.0),
        protected=("head",),
        weights={
            "seeds": Trained(lambda: state, mean=(0.1, 0.2, 0.3), std=2.0),
            "stones": Trained(lambda: {**state, "stem.conv.weight": np.zeros((8, 3, 5, 5), np.float32)}),
        },
    )
    monkeypatch.setitem(models._BUILT_IN, "grown", network(traits)(lambda schema: resnet8(schema, width=8)))
    return state


def test_a_model_starts_from_trained_weights_and_the_spec_does_not_say_so(trained: State) -> None:
    spec, state = starting_point("grown", {"weights": "seeds"}, np.random.default_rng(0))
    assert spec.arguments == {}
    assert (spec.schema.mean, spec.schema.std) == ((0.1, 0.2, 0.3), 2.0)
    assert state.keys() == trained.keys()
    assert all(np.array_equal(state[name], trained[name]) for name in trained)


def test_with_other_classes_the_layer_that_gives_the_answers_starts_fresh(trained: State) -> None:
    _, state = starting_point("grown", {"weights": "seeds", "classes": 2}, np.random.default_rng(0))
    _, fresh = starting_point("grown", {"classes": 2}, np.random.default_rng(0))
    assert np.array_equal(state["head.weight"], fresh["head.weight"])
    assert all(np.array_equal(state[name], trained[name]) for name in trained if not name.startswith("head"))


WRONG: dict[str, tuple[dict[str, Scalar], str]] = {
    "weights that there are not": ({"weights": "leaves"}, "grown has the weights seeds, stones, not 'leaves'"),
    "other channels": ({"weights": "seeds", "shape": "1x8x8"}, "one for each of 1 channels"),
    "another kernel": ({"weights": "stones"}, r"grown's stones weights do not fit: .* for stem.conv.weight"),
}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(("arguments", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_start_is_refused_for(arguments: dict[str, Scalar], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        starting_point("grown", arguments, np.random.default_rng(0))


@pytest.mark.usefixtures("trained")
def test_mean_and_std_of_the_default_are_for_as_many_channels_only() -> None:
    rng = np.random.default_rng(0)
    assert starting_point("grown", {"shape": "3x16x16"}, rng)[0].schema.std == 3.0
    assert starting_point("grown", {"shape": "1x8x8"}, rng)[0].schema == InputSchema((1, 8, 8), ("a", "b", "c", "d"))
    assert starting_point("grown", {"mean": 0.5}, rng)[0].schema.mean == 0.5
    assert starting_point("grown", {"mean": 0.5, "weights": "seeds"}, rng)[0].schema.mean == 0.5


def test_weights_is_an_argument_like_any_other_where_a_factory_has_none() -> None:
    with pytest.raises(Malformed, match="refuses its arguments"):
        starting_point("resnet8", {"weights": "seeds"}, np.random.default_rng(0))
