"""Flower client apps by registered name. Nothing heavy is imported before an app is loaded.

An app is a function that takes Flower mods and returns a `ClientApp`. Ours are modules here, named for their app; others come from
installed packages through the entry-point group `shoal.client_apps`. Nothing a coordinator sends can add one.

An app that raises `InputError` or `Malformed` says that this device cannot do the task, whoever asks again: its reply is then an
error `UNFIT` with the message. Anything else that it raises is this attempt's failure alone.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from shared.client_apps import BUILT_IN, GROUP, UNFIT, app_names
from shared.errors import InputError, Malformed, NotFound

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

Mod = Callable[..., Any]
_MAX_REASON = 500  # characters


def load_app(name: str, mods: Sequence[Mod] = ()) -> "ClientApp":
    """A new `ClientApp` with `mods` around its train and evaluate functions, the first outermost.

    The app's own module is imported when a message first reaches it: a mod that answers by itself, as in the key phases of secure
    aggregation, need not wait seconds for torch. Raises `NotFound`, which lists what there is.
    """
    if name in BUILT_IN:
        return _deferred(lambda: import_module(f"{__name__}.{name.replace('-', '_')}").build, mods)
    for point in entry_points(group=GROUP, name=name):
        return _deferred(point.load, mods)
    raise NotFound(f"no client app {name!r} is installed on this device; there are {', '.join(app_names())}")


def _deferred(load: Callable[[], Callable[[Sequence[Mod]], "ClientApp"]], mods: Sequence[Mod]) -> "ClientApp":
    from flwr.clientapp import ClientApp

    from shared.flower import reply_error

    app = ClientApp(mods=list(mods))
    inner: list[ClientApp] = []

    def pass_on(message: Any, context: Any) -> Any:
        if not inner:
            inner.append(load()(()))
        try:
            return inner[0](message, context)
        except (InputError, Malformed) as error:
            return reply_error(message, UNFIT, error.message[:_MAX_REASON])

    app.train()(pass_on)
    app.evaluate()(pass_on)
    return app
