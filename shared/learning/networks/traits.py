"""What a factory says of itself: the input it is made for, and the layers that pruning leaves alone. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from shared.learning.spec import InputSchema
from shared.learning.state import State
from shared.settings import Numbers

F = TypeVar("F", bound=Callable[..., Any])
InputKind = Literal["image", "window", "any"]
_ATTRIBUTE = "shoal_traits"
_IMAGE_AXES = 3


@dataclass(frozen=True)
class Trained:
    """Weights to start from. `read` gives them as the network's own state, and raises `NotFound` where its package is not.
    `mean` and `std` are those of `InputSchema` that they were trained with.
    """

    read: Callable[[], State] = field(repr=False)
    mean: Numbers = 0.0
    std: Numbers = 1.0


@dataclass(frozen=True)
class Traits:
    """`default_schema` is what a model takes for which no shape and classes are given.

    The outputs of `protected` layers are never pruned; with none, those of the last layer. An image is channels x height x
    width; a window, as sensors give it, channels x 1 x time. `weights` are trained ones by name.
    """

    default_schema: InputSchema | None = None
    protected: tuple[str, ...] = ()
    input_kind: InputKind = "any"
    weights: Mapping[str, Trained] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.protected)) != len(self.protected) or not all(self.protected):
            raise ValueError("protected layers are different names")
        if self.default_schema is not None:
            self.require(self.default_schema)

    def require(self, schema: InputSchema) -> None:
        """Raises `ValueError` for an input of another kind."""
        shape = schema.shape
        if self.input_kind == "image" and len(shape) != _IMAGE_AXES:
            raise ValueError(f"takes images, channels x height x width, not {list(shape)}")
        if self.input_kind == "window" and (len(shape) != _IMAGE_AXES or shape[1] != 1):
            raise ValueError(f"takes sensor windows, channels x 1 x time, not {list(shape)}")


def network(traits: Traits) -> Callable[[F], F]:
    """Marks a factory with its traits. One without the mark works too: it takes any input and protects its last layer."""

    def mark(factory: F) -> F:
        setattr(factory, _ATTRIBUTE, traits)
        return factory

    return mark


def traits_of(factory: Callable[..., Any]) -> Traits:
    found = getattr(factory, _ATTRIBUTE, None)
    return found if isinstance(found, Traits) else Traits()


def numbered(count: int) -> tuple[str, ...]:
    """Classes without names: "0", "1", …"""
    return tuple(map(str, range(count)))
