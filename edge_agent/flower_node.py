"""The secure mod for Flower's own engines, where one `ClientApp` serves every node: who signs is read from the node's own disk.

    app = ClientApp(mods=[secure_mod_of_node()])

A SuperNode names the folder: `--node-config 'identity="/var/lib/edge-agent/identity"'`, that of an enrolled agent or one that
`edge_agent.link.credentials.store_identity` wrote. Virtual clients of a simulation have no settings of their own: there the
environment variable `SHOAL_IDENTITIES` names a folder with one such folder for each `partition-id`. Neither is for the server
to choose: the run's own settings are not read, and without a usable identity nothing is trained and nothing is answered.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message

from edge_agent.secure_mod import ModPolicy, Next, make_secure_mod
from shared.clock import SystemClock
from shared.errors import Corrupt, InputError
from shared.flower import REFUSED, reply_error
from shared.secagg.policy import of_a_device
from shared.signing.identity import DeviceIdentity, FleetVerifier

NODE_KEY = "identity"
VARIABLE = "SHOAL_IDENTITIES"


class NodeSecureMod:
    """Flower mod: `make_secure_mod` with the identity of the node that a message is for. `client_app` is what `SecureGrid` calls
    the app.
    """

    def __init__(self, policy: ModPolicy, client_app: str, environment: Mapping[str, str]) -> None:
        self._policy = policy
        self._client_app = client_app
        self._environment = environment

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        try:
            identity, verifier = read_identity(identity_folder(context, self._environment))
        except (Corrupt, InputError) as error:
            return reply_error(message, REFUSED, error.message)
        mod = make_secure_mod(identity, verifier, self._policy, client_app=self._client_app)
        return mod(message, context, call_next)


def secure_mod_of_node(
    policy: ModPolicy | None = None, *, client_app: str = "", environment: Mapping[str, str] = os.environ
) -> NodeSecureMod:
    """Put it first in the app's list of mods, so that nothing passes it by."""
    return NodeSecureMod(policy or ModPolicy(of_a_device()), client_app, environment)


def identity_folder(context: Context, environment: Mapping[str, str]) -> Path:
    """Raises `InputError` where the node is not told."""
    named, all_of_them = context.node_config.get(NODE_KEY), environment.get(VARIABLE)
    if isinstance(named, str):
        return Path(named)
    if all_of_them and "partition-id" in context.node_config:
        return Path(all_of_them) / str(context.node_config["partition-id"])
    raise InputError(
        f"this node has no identity: start it with --node-config '{NODE_KEY}=\"FOLDER\"', or set ${VARIABLE}"
    )


def read_identity(folder: Path) -> tuple[DeviceIdentity, FleetVerifier]:
    """Who this device is and whom it believes, from an agent's `identity` folder. Raises `Corrupt`."""
    try:
        ca_der = (folder / "authority.der").read_bytes()
    except OSError as error:
        raise Corrupt("this device has no certificate of an authority; enrol again", detail=str(error)) from error
    return DeviceIdentity.load(folder / "current", ca_der), FleetVerifier(ca_der, SystemClock().now)
