"""What is kept of a model that was made to fit this device: written, read again, and read as older agents wrote it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.runtimes import Artifact, file_name
from edge_agent.trainer.variant import VARIANT, Measured, Variant, read_variant, write_variant
from shared.errors import Corrupt
from shared.ids import digest_of

MODEL = b"a model"
GOOD = Variant(
    runtime="onnxruntime",
    origin="shipped",
    digest=digest_of(MODEL),
    size_bytes=len(MODEL),
    profile="generic-x86",
    weight_bits=7,
    batch=8,
    measured=(Measured("onnxruntime", 1.0, 2.0, 5.0), Measured("openvino", refused="answers differ")),
    accuracy=0.9,
)
# As an agent wrote it when there was nothing but ONNX.
OLD = """{
 "accuracy": 0.9,
 "batch": 8,
 "digest": "DIGEST",
 "fallback": "",
 "max_logit_difference": null,
 "measured": [
  {
   "batch_ms": 5.0,
   "max_logit_difference": null,
   "one_ms": 1.0,
   "one_p99_ms": 2.0,
   "refused": "",
   "runtime": "onnxruntime",
   "top1_agreement": null
  },
  {
   "batch_ms": 0.0,
   "max_logit_difference": null,
   "one_ms": 0.0,
   "one_p99_ms": 0.0,
   "refused": "answers differ",
   "runtime": "openvino",
   "top1_agreement": null
  }
 ],
 "origin": "shipped",
 "profile": "generic-x86",
 "recovery_batches": 0,
 "runtime": "onnxruntime",
 "size_bytes": 7,
 "top1_agreement": null,
 "weight_bits": 7,
 "within_latency_budget": true
}"""
FILES: dict[Artifact, str] = {"onnx": "model.onnx", "pte": "model.pte"}


@pytest.mark.parametrize("artifact", FILES)
def test_a_variant_is_read_as_it_was_written_and_its_file_is_named_for_what_it_is(
    tmp_path: Path, artifact: Artifact
) -> None:
    variant = replace(GOOD, artifact=artifact)
    write_variant(tmp_path / "v", variant, MODEL)
    assert read_variant(tmp_path / "v") == variant
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == sorted([FILES[artifact], VARIANT])
    assert (tmp_path / "v" / variant.file).read_bytes() == MODEL


def test_a_variant_that_an_older_agent_wrote_holds_an_onnx_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / VARIANT).write_text(OLD.replace("DIGEST", GOOD.digest))
    assert read_variant(tmp_path) == GOOD
    assert read_variant(tmp_path).file == "model.onnx"


def test_an_onnx_graph_is_written_so_that_an_older_agent_reads_it(tmp_path: Path) -> None:
    write_variant(tmp_path / "v", GOOD, MODEL)
    assert (tmp_path / "v" / VARIANT).read_text() == OLD.replace("DIGEST", GOOD.digest)


@pytest.mark.parametrize(
    "artifact",
    ["pte", "../../identity/key", "ONNX", 1, None],
)
def test_a_variant_that_names_another_artifact_than_lies_there_is_damaged(tmp_path: Path, artifact: object) -> None:
    write_variant(tmp_path / "v", GOOD, MODEL)
    text = tmp_path / "v" / VARIANT
    text.write_text(json.dumps({**json.loads(text.read_bytes()), "artifact": artifact}))
    with pytest.raises(Corrupt, match="install the release again"):
        read_variant(tmp_path / "v")


def test_another_model_than_the_measured_one_is_noticed(tmp_path: Path) -> None:
    write_variant(tmp_path / "v", replace(GOOD, artifact="pte"), MODEL)
    (tmp_path / "v" / file_name("pte")).write_bytes(MODEL + b"x")
    with pytest.raises(Corrupt) as damaged:
        read_variant(tmp_path / "v")
    assert "model.pte is not the one that was measured" in damaged.value.detail
