"""What a model is, as data: a registered factory's name, its arguments, what was pruned, what goes in and comes out.

`ModelSpec` is a bundle's `model.json`. It names code that is installed on the device and never carries any. No torch here:
a device that only serves reads it too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from shared.errors import ConfigError, Malformed
from shared.ids import parse_name
from shared.settings import Numbers, Scalar, from_mapping

FORMAT = 1
MAX_SPEC_BYTES = 4 * 1024**2
_MAX_AXES = 4
_MAX_ELEMENTS = 1 << 24
_MAX_CLASSES = 10_000
_SHAPE, _CLASSES, _MEAN, _STD = "shape", "classes", "mean", "std"  # factory arguments that describe the schema


@dataclass(frozen=True)
class InputSchema:
    """One example as the model takes it, and the names of its answers.

    `shape` leaves out the batch axis. An application sends `(raw - mean) / std`; stored examples are normalised already. Each
    of `mean` and `std` is one number, or one for each of the `shape[0]` channels.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    dtype: Literal["float32"] = "float32"
    mean: Numbers = 0.0
    std: Numbers = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= _MAX_AXES or min(self.shape) < 1 or math.prod(self.shape) > _MAX_ELEMENTS:
            raise ValueError(f"shape has 1 to {_MAX_AXES} positive axes and at most {_MAX_ELEMENTS} elements")
        if not 2 <= len(self.classes) <= _MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are 2 to {_MAX_CLASSES} different names")
        means, stds = (part if isinstance(part, tuple) else (part,) for part in (self.mean, self.std))
        if not all(map(math.isfinite, means)) or not all(0 < std < math.inf for std in stds):
            raise ValueError("mean is finite and std positive")
        for part in (self.mean, self.std):
            if isinstance(part, tuple) and len(part) != self.shape[0]:
                raise ValueError(f"mean and std are one number, or one for each of {self.shape[0]} channels")


@dataclass(frozen=True)
class Recipe:
    """How the float master becomes int8: weights symmetric per output channel, activations unsigned per tensor.

    `weight_bits` of 7 keeps sums of two products within 16 bits. x86 without VNNI adds them saturating, and 8-bit weights
    then give other answers in every runtime (logits off by up to 3); with VNNI, or on ARM, 8 is safe and a little finer.
    """

    weight_bits: int = 7

    def __post_init__(self) -> None:
        if self.weight_bits not in (7, 8):
            raise ValueError("weight_bits is 7 or 8")


@dataclass(frozen=True)
class PruneStep:
    """Channels removed at one layer, with everything that hung on them. Indices count in the layer as it was then."""

    layer: str
    outputs: bool
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 0 or len(set(self.channels)) != len(self.channels):
            raise ValueError("a pruning step names different channels, counted from 0")


@dataclass(frozen=True)
class ModelSpec:
    """`model.json`. Two specs are equal exactly when they build the same network."""

    factory: str
    schema: InputSchema
    arguments: dict[str, Scalar] = field(default_factory=dict)
    history: tuple[PruneStep, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    format: int = FORMAT

    def __post_init__(self) -> None:
        try:
            parse_name(self.factory)
        except Malformed as error:
            raise ValueError(error.message) from error
        if self.format != FORMAT:
            raise ValueError(f"model.json has format {self.format}, this version reads {FORMAT}: update the agent")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.arguments.values()):
            raise ValueError("an argument is not finite")

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Raises `Malformed` for unknown keys, wrong types and impossible values."""
        if len(text) > MAX_SPEC_BYTES:
            raise Malformed("model.json is too large")
        try:
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError("not an object")
            return from_mapping(cls, value, where="model.json")
        except (ValueError, RecursionError) as error:
            raise Malformed("model.json is not a JSON object", detail=str(error)[:200]) from error
        except ConfigError as error:
            raise Malformed(error.message) from error

    def pruned(self, steps: tuple[PruneStep, ...]) -> "ModelSpec":
        return replace(self, history=(*self.history, *steps))


def new_spec(factory: str, arguments: Mapping[str, Scalar], *, default: InputSchema | None = None) -> ModelSpec:
    """A spec from a job file's plain values: `shape` ("1x28x28"), `classes` (a number, or names with commas between), `mean`
    and `std` (a number, or one a channel with commas between) make the schema, the rest is the factory's.

    What is not given is as in `default`. Raises `ConfigError`.
    """
    rest = dict(arguments)
    usual = default or InputSchema((1, 28, 28), _class_names(10))
    shape = _shape(rest.pop(_SHAPE)) if _SHAPE in rest else usual.shape
    values: dict[str, Any] = {
        "factory": factory,
        "schema": {
            "shape": shape,
            "classes": _class_names(rest.pop(_CLASSES)) if _CLASSES in rest else usual.classes,
            **{key: _numbers(rest.pop(key), key) for key in (_MEAN, _STD) if key in rest},
        },
        "arguments": rest,
    }
    if shape[:1] == usual.shape[:1]:  # other channels are other things, to normalise in their own way
        values["schema"] = {_MEAN: usual.mean, _STD: usual.std, **values["schema"]}
    return from_mapping(ModelSpec, values, where="model")


def _shape(value: Scalar) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(value).split("x"))
    except ValueError as error:
        raise ConfigError("write the shape of one example as 1x28x28", path="model.shape") from error


def _class_names(value: Scalar) -> tuple[str, ...]:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError("classes is a number, or names with commas between", path="model.classes")
    if isinstance(value, int):
        return tuple(str(index) for index in range(min(value, _MAX_CLASSES + 1)))
    return tuple(name.strip() for name in value.split(","))


def _numbers(value: Scalar, key: str) -> Numbers:
    try:
        if isinstance(value, str):
            return tuple(float(part) for part in value.split(","))
        if not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):  # refused below, with what is neither text nor number
        pass
    raise ConfigError(f"{key} is a number, or one for each channel with commas between", path=f"model.{key}")
