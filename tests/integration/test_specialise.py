"""A release made to fit this device, with the real runtimes; and with runtimes that answer wrong."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from coordinator.builder import MakeBundle
from coordinator.worker import answer
from edge_agent.runtimes import Runtime, Session, TensorSpec, available
from edge_agent.trainer.specialise import specialise
from edge_agent.trainer.variant import read_variant
from shared.bundle import Bundle, read_bundle, write_bundle
from shared.errors import Conflict, Corrupt, Unsupported
from shared.ids import digest_of
from shared.learning.examples import Split, split_examples
from shared.learning.hyperparameters import TrainSettings
from shared.learning.models import initial_state
from shared.learning.profile import GENERIC_X86
from shared.learning.spec import new_spec
from shared.learning.state import pack_state
from shared.learning.train import FloatLearner, fit
from shared.session import Gate
from tests.unit.learning.pictures import pictures

pytestmark = pytest.mark.slow
DATA = split_examples(*pictures(250, seed=2))
PROFILE = replace(GENERIC_X86, max_batch=8)
AS_SHIPPED = Gate(requantize=False)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("release")
    spec = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})
    x, y = pictures(300)
    np.savez(folder / "public.npz", x=x, y=y)
    rng = np.random.default_rng(0)
    settings = TrainSettings(lr=0.02, epochs=4)
    fitted = fit(FloatLearner(spec), initial_state(spec, rng), x, y, settings=settings, rng=rng)
    (folder / "weights.safetensors").write_bytes(pack_state(fitted.state))
    answer(MakeBundle(spec.to_json(), str(folder / "public.npz"), str(folder / "bundle")), folder)
    return read_bundle(folder / "bundle")


class Liar:
    """A runtime that runs the real one and bends its answers."""

    def __init__(self, real: Runtime, bend: float) -> None:
        self.name, self.artifact, self.version = real.name, real.artifact, real.version
        self._real, self._bend = real, bend

    def obstacle(self) -> str:
        return self._real.obstacle()

    def load(self, path: Path, *, threads: int) -> Session:
        return BentSession(self._real.load(path, threads=threads), self._bend)


class Programs(Liar):
    """A runtime that loads programs, not graphs."""

    def __init__(self, real: Runtime) -> None:
        super().__init__(real, 0.0)
        self.artifact = "pte"


class BentSession:
    def __init__(self, real: Session, bend: float) -> None:
        self._real, self._bend = real, bend

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._real.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._real.outputs

    def run(self, inputs: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {name: array + np.float32(self._bend) for name, array in self._real.run(inputs, out).items()}

    def close(self) -> None:
        self._real.close()


def test_as_shipped_it_is_judged_on_the_probe_and_measured(release: Bundle, tmp_path: Path) -> None:
    variant = specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED)
    assert variant.origin == "shipped"
    assert variant.digest == digest_of(release.graph)
    assert variant.accuracy is not None
    assert variant.accuracy > 0.8
    assert variant.max_logit_difference is not None
    assert variant.max_logit_difference < 0.25
    assert {one.runtime for one in variant.measured} == available().keys() & set(PROFILE.runtimes)
    assert all(one.one_ms > 0 and one.batch_ms > 0 and not one.refused for one in variant.measured)
    assert read_variant(tmp_path / "v") == variant
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]


def test_requantized_here_it_answers_as_its_fake_quantized_network(release: Bundle, tmp_path: Path) -> None:
    variant = specialise(release, DATA, PROFILE, tmp_path / "v", gate=Gate(), recovery_batches=5)
    assert (variant.origin, variant.fallback) == ("local", "")
    assert variant.digest == digest_of((tmp_path / "v" / "model.onnx").read_bytes())
    assert variant.digest != digest_of(release.graph)
    assert variant.accuracy is not None
    assert variant.accuracy > 0.8
    assert variant.max_logit_difference is not None
    assert variant.max_logit_difference < 0.25
    assert variant.recovery_batches == 5
    assert read_variant(tmp_path / "v") == variant


def test_a_runtime_that_answers_wrong_is_passed_over(release: Bundle, tmp_path: Path) -> None:
    real = available()
    runtimes: dict[str, Runtime] = {**real, "openvino": Liar(real["openvino"], 3.0)}
    variant = specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED, runtimes=runtimes)
    refused = {one.runtime: one.refused for one in variant.measured}
    assert variant.runtime == "onnxruntime"
    assert "differ by 3" in refused["openvino"]
    assert refused["onnxruntime"] == ""


def test_a_runtime_that_loads_what_was_not_made_is_passed_over(release: Bundle, tmp_path: Path) -> None:
    real = available()
    runtimes: dict[str, Runtime] = {**real, "openvino": Programs(real["openvino"])}
    variant = specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED, runtimes=runtimes)
    refused = {one.runtime: one.refused for one in variant.measured}
    assert (variant.runtime, variant.artifact) == ("onnxruntime", "onnx")
    assert refused == {"openvino": "it loads model.pte, and none was made of the shipped graph", "onnxruntime": ""}
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["model.onnx", "variant.json"]


def test_when_every_runtime_answers_wrong_nothing_is_installed(release: Bundle, tmp_path: Path) -> None:
    runtimes: dict[str, Runtime] = {name: Liar(real, 3.0) for name, real in available().items()}
    with pytest.raises(Unsupported, match="no runtime"):
        specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED, runtimes=runtimes)
    assert list(tmp_path.iterdir()) == []


def test_a_local_graph_that_misses_the_tolerance_gives_way_to_the_shipped_one(release: Bundle, tmp_path: Path) -> None:
    tight = Gate(max_logit_difference=1e-9)
    with pytest.raises(Unsupported):
        specialise(release, DATA, PROFILE, tmp_path / "v", recovery_batches=0, gate=tight)
    variant = specialise(without_probe(release), DATA, PROFILE, tmp_path / "w", recovery_batches=0, gate=tight)
    assert variant.origin == "shipped"
    assert "no runtime on this device answers as the local graph" in variant.fallback
    assert variant.recovery_batches == 0


def without_probe(bundle: Bundle) -> Bundle:
    return replace(bundle, report=replace(bundle.report, probe=type(bundle.report.probe)()))


def test_one_corrupted_scale_is_noticed(release: Bundle, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(release.graph)
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(0.2), scale.name))
    bad = replace(release, graph=model.SerializeToString())
    with pytest.raises(Unsupported, match="no runtime"):
        specialise(bad, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED)
    assert not (tmp_path / "v").exists()


def test_a_graph_over_the_budget_and_runtimes_that_are_missing_are_told(release: Bundle, tmp_path: Path) -> None:
    small = replace(PROFILE, size_budget_bytes=1000)
    with pytest.raises(Unsupported, match="prune the model further"):
        specialise(release, DATA, small, tmp_path / "v", gate=AS_SHIPPED)
    exotic = replace(PROFILE, runtimes=("tensorrt",))
    with pytest.raises(Unsupported, match="tensorrt"):
        specialise(release, DATA, exotic, tmp_path / "v", gate=AS_SHIPPED)


def test_an_installed_variant_is_never_overwritten_and_damage_is_noticed(release: Bundle, tmp_path: Path) -> None:
    specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED)
    with pytest.raises(Conflict):
        specialise(release, DATA, PROFILE, tmp_path / "v", gate=AS_SHIPPED)
    with (tmp_path / "v" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(Corrupt):
        read_variant(tmp_path / "v")


def test_a_device_with_nothing_held_out_still_gets_its_variant(release: Bundle, tmp_path: Path) -> None:
    few = Split(DATA.train_x[:3], DATA.train_y[:3], DATA.held_x[:0], DATA.held_y[:0])
    assert specialise(release, few, PROFILE, tmp_path / "v", gate=AS_SHIPPED).accuracy is None


def test_a_device_without_examples_takes_the_shipped_graph_whatever_the_gate(release: Bundle, tmp_path: Path) -> None:
    variant = specialise(release, None, PROFILE, tmp_path / "v", gate=Gate())
    assert (variant.origin, variant.accuracy, variant.fallback) == ("shipped", None, "")


def test_without_requantizing_no_torch_is_loaded(release: Bundle, tmp_path: Path) -> None:
    x, y = pictures(40, seed=2)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    code = (
        "import sys; from pathlib import Path; from edge_agent.trainer.specialise import specialise; "
        "from shared.learning.examples import load_file, split_examples; "
        "from shared.learning.profile import GENERIC_X86; "
        "from shared.bundle import read_bundle; from shared.session import Gate; "
        "a = [Path(p) for p in sys.argv[1:]]; "
        "data = split_examples(*load_file(a[1])); "
        "specialise(read_bundle(a[0]), data, GENERIC_X86, a[2], gate=Gate(requantize=False)); "
        "sys.exit('torch' in sys.modules)"
    )
    write_bundle(tmp_path / "b", release)
    command = [sys.executable, "-c", code, str(tmp_path / "b"), str(tmp_path / "d.npz"), str(tmp_path / "v")]
    assert subprocess.run(command, check=False, timeout=100).returncode == 0
