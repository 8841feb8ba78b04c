import pytest

from simulations.admin import _proof
from simulations.commands import RolloutDevice


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (
            RolloutDevice("a", 1, "PROVEN", "", {"accuracy_after": 0.984, "runtime": "onnxruntime"}),
            "98.4 % on held-out examples, by onnxruntime",
        ),
        (
            RolloutDevice("a", 1, "REFUSED", "accuracy falls", {"accuracy_after": 0.017, "runtime": "openvino"}),
            "1.7 % on held-out examples, by openvino; accuracy falls",
        ),
        (RolloutDevice("a", 1, "FAILED", "the disk is full", {}), "the disk is full"),
    ],
)
def test_a_device_is_told_of_with_what_it_measured_and_why_it_did_not_take_a_release(
    device: RolloutDevice, told: str
) -> None:
    assert _proof(device) == told
