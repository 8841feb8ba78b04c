"""Asks a service through the stock Triton client: `python triton_session.py ADDRESS`. Prints what it saw as JSON.

A process of its own, because tritonclient and our generated code both register protobuf package `inference`.
"""

import json
import sys
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def ask(client: Any, model: str = "digits", rows: int = 2, width: int = 4, version: str = "") -> Any:
    tensor = triton.InferInput("x", [rows, width], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, width), np.float32))
    wanted = [triton.InferRequestedOutput("logits")]
    return client.infer(model, [tensor], model_version=version, outputs=wanted, request_id="r-1")


def status_of(client: Any, **arguments: Any) -> str:
    try:
        ask(client, **arguments)
    except InferenceServerException as error:
        return str(error.status())
    return "OK"


def streamed(client: Any) -> list[list[list[float]]]:
    answers: Queue[Any] = Queue()
    client.start_stream(callback=lambda result, error: answers.put(error or result.as_numpy("logits").tolist()))
    for value in range(5):
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.full((1, 4), value, np.float32))
        client.async_stream_infer("digits", [tensor])
    out = [answers.get(timeout=20) for _ in range(5)]
    client.stop_stream()
    return out


def main(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        result = ask(client)
        response = result.get_response()
        print(
            json.dumps(
                {
                    "live": client.is_server_live(),
                    "ready": client.is_server_ready(),
                    "model_ready": client.is_model_ready("digits"),
                    "absent_ready": client.is_model_ready("letters"),
                    "server": client.get_server_metadata(as_json=True),
                    "model": client.get_model_metadata("digits", as_json=True),
                    "logits": result.as_numpy("logits").tolist(),
                    "id": response.id,
                    "version": response.model_version,
                    "parameters": {name: value.string_param for name, value in response.parameters.items()},
                    "unknown_model": status_of(client, model="letters"),
                    "unknown_version": status_of(client, version="7"),
                    "wrong_width": status_of(client, width=5),
                    "stream": streamed(client),
                    "statistics": client.get_inference_statistics("digits", as_json=True),
                    "index": client.get_model_repository_index(as_json=True),
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1])
