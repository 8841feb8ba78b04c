"""Our own inference.proto against the one that Triton's client ships.

Each is read in a process of its own: both define protobuf package `inference`, and one process cannot hold the two.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

_DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])

def message(descriptor):
    return {
        "fields": {
            field.name: [
                field.number, field.type, field.is_repeated,
                field.message_type.full_name if field.message_type else "",
                field.containing_oneof.name if field.containing_oneof else "",
            ]
            for field in descriptor.fields
        },
        "nested": {name: message(nested) for name, nested in descriptor.nested_types_by_name.items()},
    }

file = module.DESCRIPTOR
print(json.dumps({
    "package": file.package,
    "messages": {name: message(d) for name, d in file.message_types_by_name.items()},
    "methods": {
        m.name: [m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming]
        for m in file.services_by_name["GRPCInferenceService"].methods
    },
}))
"""


def _described(module: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, "-c", _DUMP, module], capture_output=True, text=True, check=True)
    described: dict[str, Any] = json.loads(result.stdout)
    return described


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return _described("protos.inference_pb2")


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return _described("tritonclient.grpc.service_pb2")


def _disagreements(ours: dict[str, Any], theirs: dict[str, Any], where: str) -> list[str]:
    found = [f"{where}.{name}" for name, field in ours["fields"].items() if theirs["fields"].get(name) != field]
    for name, nested in ours["nested"].items():
        if name not in theirs["nested"]:
            found.append(f"{where}.{name}")
        else:
            found += _disagreements(nested, theirs["nested"][name], f"{where}.{name}")
    return found


def test_every_field_has_the_name_number_type_and_oneof_that_triton_uses(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    assert ours["package"] == theirs["package"] == "inference"
    assert ours["messages"].keys() <= theirs["messages"].keys()
    assert len(ours["messages"]) >= 20
    wrong = [
        field
        for name, message in ours["messages"].items()
        for field in _disagreements(message, theirs["messages"][name], name)
    ]
    assert wrong == []


def test_every_method_has_the_signature_that_triton_uses(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert {"ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"} <= set(
        ours["methods"]
    )
    assert {name: theirs["methods"].get(name) for name in ours["methods"]} == ours["methods"]


def test_a_request_of_triton_has_no_field_that_we_would_silently_drop(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    for name in ("ModelInferRequest", "InferTensorContents", "InferParameter"):
        assert theirs["messages"][name]["fields"].keys() == ours["messages"][name]["fields"].keys()
