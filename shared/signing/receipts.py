"""Receipts: a device's signed word about a release: what it measured, and whether it serves it.

Only a receipt in state `proven` counts as success, and the coordinator judges its numbers again.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from shared.errors import Malformed, SignatureInvalid
from shared.ids import Digest, RolloutId, parse_digest, parse_name
from shared.text import clean_text

State = Literal["proven", "refused", "failed", "reverted"]
MAX_RECEIPT_BYTES = 16 * 1024
_PURPOSE = b"shoal receipt v1\x00"


class Signer(Protocol):
    def sign(self, data: bytes) -> bytes: ...


class Verifier(Protocol):
    def verify(self, certificate: bytes, signature: bytes, data: bytes) -> str: ...


@dataclass(frozen=True)
class Receipt:
    """Accuracies are shares of the held-out examples, 0 to 1; latencies are medians for one request, ms; None: not measured.

    Text is kept as `shared.text.clean_text` leaves it, so a signed receipt with other text is not in canonical form.
    """

    device: str
    rollout_id: RolloutId
    model: str
    release: int
    bundle_digest: Digest  # of the manifest
    state: State
    at: float
    reason: str = ""
    variant_digest: str = ""  # of the graph that really serves
    runtime: str = ""
    answers: int = 0  # given by the served digest, through the serving path
    errors: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    max_logit_difference: float | None = None
    top1_agreement: float | None = None
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    size_bytes: int = 0

    def __post_init__(self) -> None:
        parse_name(self.model)
        parse_digest(self.bundle_digest)
        if self.state not in get_args(State):
            raise Malformed(f"a receipt's state is one of {', '.join(get_args(State))}")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise Malformed(f"a receipt's {item.name} is not a finite number")
            if isinstance(value, str):
                object.__setattr__(self, item.name, clean_text(value))

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Receipt":
        """Raises `Malformed` for anything that `to_bytes` did not write."""
        if len(data) > MAX_RECEIPT_BYTES:
            raise Malformed("the receipt is too large")
        try:
            value = json.loads(data)
            receipt = cls(**{name: _checked(name, item) for name, item in value.items()})
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Malformed("not a receipt", detail=str(error)[:200]) from error
        if receipt.to_bytes() != data:
            raise Malformed("the receipt is not in canonical form")
        return receipt


_NUMBERS = {"at": (float,), "release": (int,), "answers": (int,), "errors": (int,), "size_bytes": (int,)}
_MEASURED = {
    "accuracy_before",
    "accuracy_after",
    "max_logit_difference",
    "top1_agreement",
    "latency_before_ms",
    "latency_after_ms",
}


def _checked(name: str, value: Any) -> Any:
    kinds = (float, type(None)) if name in _MEASURED else _NUMBERS.get(name, (str,))
    if type(value) not in kinds:
        raise TypeError(f"{name} is {type(value).__name__}")
    return value


def sign_receipt(signer: Signer, receipt: Receipt) -> tuple[bytes, bytes]:
    """The receipt's bytes and the device's signature over them."""
    data = receipt.to_bytes()
    return data, signer.sign(_PURPOSE + data)


def verify_receipt(
    verifier: Verifier, data: bytes, signature: bytes, certificate: bytes, expected_device: str
) -> Receipt:
    """Raises `SignatureInvalid` unless `expected_device` signed it about itself, `Malformed` unless it is a receipt."""
    signer = verifier.verify(certificate, signature, _PURPOSE + data)
    receipt = Receipt.from_bytes(data)
    if not signer == receipt.device == expected_device:
        raise SignatureInvalid(f"a receipt about {receipt.device[:40]} was signed by {signer[:40]}")
    return receipt
