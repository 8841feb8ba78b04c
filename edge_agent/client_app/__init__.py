"""Flower client apps by registered name. Nothing heavy is imported before an app is loaded.

An app is a function that takes Flower mods and returns a `ClientApp`. Ours are below; others come from installed packages
through the entry-point group `shoal.client_apps`. Nothing a coordinator sends can add one.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from shared.errors import NotFound

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

GROUP = "shoal.client_apps"
Mod = Callable[..., Any]
_BUILT_IN: Mapping[str, str] = {
    "echo": "edge_agent.client_app.echo",
    "image-classifier": "edge_agent.client_app.image_classifier",
    "softmax": "edge_agent.client_app.softmax",
}


def app_names() -> list[str]:
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def load_app(name: str, mods: Sequence[Mod] = ()) -> "ClientApp":
    """A new `ClientApp` with `mods` around its train and evaluate functions, the first outermost.

    The app's own module is imported when a message first reaches it: a mod that answers by itself, as in the key phases of secure
    aggregation, need not wait seconds for torch. Raises `NotFound`, which lists what there is.
    """
    if name in _BUILT_IN:
        return _deferred(lambda: import_module(_BUILT_IN[name]).build, mods)
    for point in entry_points(group=GROUP, name=name):
        return _deferred(point.load, mods)
    raise NotFound(f"no client app {name!r} is installed on this device; there are {', '.join(app_names())}")


def _deferred(load: Callable[[], Callable[[Sequence[Mod]], "ClientApp"]], mods: Sequence[Mod]) -> "ClientApp":
    from flwr.clientapp import ClientApp

    app = ClientApp(mods=list(mods))
    inner: list[ClientApp] = []

    def pass_on(message: Any, context: Any) -> Any:
        if not inner:
            inner.append(load()(()))
        return inner[0](message, context)

    app.train()(pass_on)
    app.evaluate()(pass_on)
    return app
